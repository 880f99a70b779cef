"""A variational autoencoder: a small generative model of inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from streamlearn.errors import ConfigurationError, UnknownNameError

__all__ = ["VAE", "Likelihood", "divergence"]

Likelihood = Literal["bernoulli", "gaussian"]


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL(N(μ, σ²) ‖ N(0, 1)), summed over dimensions, ``(rows,)`` (Kingma & Welling 2014, appendix B).

    Args:
        mean: μ, ``(rows, dimensions)``.
        log_variance: log σ², of the same shape.

    Example:
        >>> divergence(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2))
        tensor([2.5000])
    """
    return 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)


class VAE(nn.Module):
    r"""A variational autoencoder of fully connected layers with ReLU.

    .. math:: L(x) = \frac1d \Bigl( -\log p(x|z) + KL(q(z|x) \,\|\, N(0, I)) \Bigr), \qquad z = μ(x) + σ(x) ε, \quad ε \sim N(0, I)

    with q(z|x) = N(μ(x), σ²(x)), one draw of ε for each row, and d the number of values in an input (Kingma & Welling 2014, eq. 10, with
    the sign of a loss, for each value). The module called as a function gives this loss; `sample` gives new inputs. Both are what
    `GenerativeReplay` asks of a generator.

    Args:
        shape: of one input; images are flattened, and samples have the shape again.
        hidden: widths of the encoder's hidden layers, each at least 1; the decoder has them in reverse.
        latent: dimensions of z, at least 1.
        likelihood: p(x|z): ``"bernoulli"``, for inputs in [0, 1], whose reconstruction loss is the binary cross-entropy; ``"gaussian"``,
            of variance 1, for any inputs, where it is half the squared error (the constant log 2π / 2 is left out).

    Raises:
        ConfigurationError: a width or ``latent`` is below 1.
        UnknownNameError: there is no such likelihood.

    Reference: Kingma & Welling, Auto-encoding variational Bayes, ICLR 2014. The defaults are the generator of van de Ven et al., Three
    types of incremental learning, Nature Machine Intelligence 4, 2022, for split MNIST. Avalanche's ``MlpVAE`` (0.6) draws z with
    σ²/2 in place of the deviation σ, and is no oracle for this one.

    Example:
        >>> vae = VAE((1, 8, 8), hidden=(32,), latent=5)
        >>> vae(torch.rand(3, 1, 8, 8)).shape, vae.sample(4).shape
        (torch.Size([3]), torch.Size([4, 1, 8, 8]))
    """

    def __init__(
        self, shape: Sequence[int], hidden: Sequence[int] = (400, 400), latent: int = 100, likelihood: Likelihood = "bernoulli"
    ) -> None:
        super().__init__()
        if latent < 1 or any(width < 1 for width in hidden):
            raise ConfigurationError(f"a VAE has hidden={tuple(hidden)} and latent={latent}: give widths of at least 1")
        if likelihood not in get_args(Likelihood):
            raise UnknownNameError("likelihood of a VAE", likelihood, get_args(Likelihood))
        self.shape, self.latent, self.likelihood = tuple(shape), latent, likelihood
        size = math.prod(self.shape)
        self.encoder = _layers(size, hidden)
        inner = hidden[-1] if len(hidden) else size
        self.mean, self.log_variance = nn.Linear(inner, latent), nn.Linear(inner, latent)
        outer = hidden[0] if len(hidden) else latent
        self.decoder = nn.Sequential(*_layers(latent, tuple(reversed(hidden))), nn.Linear(outer, size))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """μ(x) and log σ²(x), ``(rows, latent)`` each."""
        inner = self.encoder(x.flatten(1))
        return self.mean(inner), self.log_variance(inner)

    def decode(self, z: Tensor) -> Tensor:
        """The mean of p(x|z), ``(rows, *shape)``."""
        raw: Tensor = self.decoder(z)
        return (raw.sigmoid() if self.likelihood == "bernoulli" else raw).view(-1, *self.shape)

    def forward(self, x: Tensor, random: torch.Generator | None = None) -> Tensor:
        """L of every row, ``(rows,)``; ε comes from ``random``, a generator on the CPU, or else from torch's own."""
        mean, log_variance = self.encode(x)
        noise = torch.randn(mean.shape, generator=random, dtype=mean.dtype).to(mean.device)
        raw = self.decoder(mean + (0.5 * log_variance).exp() * noise)
        flat = x.flatten(1)
        if self.likelihood == "bernoulli":
            each = binary_cross_entropy_with_logits(raw, flat, reduction="none")
        else:
            each = 0.5 * (raw - flat).square()
        return (each.sum(1) + divergence(mean, log_variance)) / flat.shape[1]

    @torch.no_grad()
    def sample(self, count: int, random: torch.Generator | None = None) -> Tensor:
        """The means of p(x|z) for ``count`` draws of z from N(0, I), ``(count, *shape)``: grey values, not black or white.

        The draws come from ``random``, a generator on the CPU, or else from torch's own.
        """
        like = self.mean.weight
        return self.decode(torch.randn((count, self.latent), generator=random, dtype=like.dtype).to(like.device))


def _layers(width: int, hidden: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers)
