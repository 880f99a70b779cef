"""Domain-adversarial training (DANN): features from which no discriminator can tell the source domain from the target domain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from streamlearn.core.optimization import Trainable
from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["DANN", "domain_loss", "ramp_up", "reverse_gradient"]


class _Reversal(torch.autograd.Function):
    """Forward x, backward -factor · gradient (Ganin et al. 2016, eqs. 16 and 17)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, factor: float) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.factor * gradients[0], None


def reverse_gradient(x: Tensor, factor: float) -> Tensor:
    """``x`` itself, through which a gradient comes back multiplied by ``-factor``; can be differentiated any number of times.

    Args:
        x: any tensor.
        factor: at least 0.

    Example:
        >>> x = torch.ones(2, requires_grad=True)
        >>> reverse_gradient(x, 0.5).sum().backward()
        >>> x.grad.tolist()
        [-0.5, -0.5]
    """
    found: Tensor = _Reversal.apply(x, factor)
    return found


def ramp_up(progress: float, ramp: float) -> float:
    """2 / (1 + exp(-ramp · p)) - 1: from 0 at p = 0 towards 1 (Ganin et al. 2016, section 5.2.2).

    Args:
        progress: p, in [0, 1].
        ramp: steepness, at least 0; ``inf`` gives 1 at once.

    Example:
        >>> ramp_up(0.0, 10.0), round(ramp_up(0.5, 10.0), 4), ramp_up(0.0, math.inf)
        (0.0, 0.9866, 1.0)
    """
    return 1.0 if math.isinf(ramp) else 2 / (1 + math.exp(-ramp * progress)) - 1


def domain_loss(source: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of a domain discriminator, both domains weighted alike whatever their numbers of rows: a scalar.

    Args:
        source: its logits on source rows, which belong to class 0, ``(n, 1)``.
        target: its logits on target rows, class 1, ``(m, 1)``.

    Example:
        >>> round(domain_loss(torch.zeros(3, 1), torch.zeros(2, 1)).item(), 4)  # log 2
        0.6931
    """
    return 0.5 * (F.softplus(source).mean() + F.softplus(-target).mean())


class DANN(Plugin):
    r"""Domain-adversarial training of neural networks.

    .. math:: E(θ_f, θ_y, θ_d) = L_y(θ_f, θ_y) - \frac{λ}{2} \Bigl( \frac1n \sum_{source} L_d + \frac1m \sum_{target} L_d \Bigr)

    whose saddle point is sought: the discriminator minimises the domain loss L_d, the features maximise it (eqs. 9 to 11). One gradient
    step does both at once, because a reversal stands between features and discriminator: forward it changes nothing, backward it
    changes the sign (eqs. 13 to 18). The weight grows with the progress p of the phase, λ = strength · (2 / (1 + exp(-ramp · p)) - 1).

    Two variants are published. ``ramped="both"``: λ weighs the domain loss for both players, as in algorithm 1 of the paper; the
    discriminator learns slowly at first too, and does not outrun the features. ``ramped="features"``: the discriminator is trained at
    full strength from the first step on and only the features meet it at -λ, as in the deep networks of section 5.2.2; the term in the
    record is then L_d itself, which is log 2 = 0.693 when the discriminator cannot tell the domains apart.

    Source rows are those of role ``"train"``. Rows of a memory stay out: they belong to earlier experiences, whose mixture of classes
    and inputs the present target has no reason to share. A batch without source or without target rows has no term. With several
    experiences the discriminator is kept, and the ramp starts anew with each.

    Args:
        strength: the largest λ, at least 0; 0 switches the method off (no discriminator, no term). The paper's ramp ends at 1.
        ramp: steepness of the ramp, at least 0; the paper takes 10, ``math.inf`` gives the full strength from the first step on.
        hidden: widths of the hidden layers (ReLU) of the discriminator, each at least 1; ``()`` is logistic regression, as in the
            paper's shallow networks.
        tap: what is aligned: ``"features"``, what the encoder gives, or the path of a module such as ``"encoder.0"``.
        learning_rate: of the discriminator, above 0; ``None`` takes that of the model. A discriminator that outruns the features is the
            usual failure (its loss stays well below log 2): a rate below the model's cures that as well as ``ramped="both"`` does.
        ramped: whom λ concerns: ``"both"`` players, or the ``"features"`` alone.

    Raises:
        ConfigurationError: the model has no module at path ``tap``.

    Cost: no additional pass of the model; one of the discriminator. Memory: the discriminator.

    Reference: Ganin et al., Domain-adversarial training of neural networks, JMLR 17(59), 2016, eqs. 9-18 and algorithm 1. Deviations:
    eq. 9 adds the mean over source rows and the mean over target rows, here they are averaged, which is the usual binary cross-entropy
    of a joint batch (λ here is 2λ there); p counts the phase in progress, the paper's counts the training as a whole.

    Example:
        >>> from streamlearn.plugins import DANN
        >>> DANN(strength=0.5, hidden=())
        DANN(hidden=(), strength=0.5)
    """

    info = PluginInfo(
        name="dann",
        family="adaptation",
        summary="Trains features adversarially until a discriminator cannot tell source from target rows.",
        reference="Ganin et al. 2016, JMLR 17(59), algorithm 1 and eqs. 9-18",
        memory="the discriminator",
        strength="strength",
        streams=frozenset({"adaptation"}),
    )

    class Config(PluginConfig):
        """Options of `DANN`."""

        strength: Annotated[float, Tunable(0.01, 10.0, log=True)] = Field(1.0, ge=0)
        ramp: float = Field(10.0, ge=0, allow_inf_nan=True)
        hidden: tuple[Annotated[int, Field(ge=1)], ...] = (15,)
        tap: str = Field("features", min_length=1)
        learning_rate: float | None = Field(None, gt=0)
        ramped: Literal["both", "features"] = "both"

    @hookimpl
    def collect_taps(self, run: Run) -> dict[str, str]:
        """The module whose output is aligned, if it is not the encoder as a whole."""
        return {} if self.config.tap == "features" or self.config.strength == 0 else {"aligned": self.config.tap}

    @hookimpl
    def collect_modules(self, run: Run) -> dict[str, Trainable]:
        """The discriminator, from the first experience on that has both domains."""
        if self.config.strength == 0 or run.experience is None or not {"train", "target"} <= set(run.experience.data):
            return {}
        width = math.prod(run.shape_of(self.config.tap))
        return {"discriminator": Trainable(_discriminator(width, self.config.hidden), learning_rate=self.config.learning_rate)}

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The domain loss on reversed features."""
        strength = step.run.value(self, "strength")
        source, target = step.batch.rows("train"), step.batch.rows("target")
        name = f"{self.name}/discriminator"
        if strength == 0 or source.start == source.stop or target.start == target.stop or name not in step.run.modules:
            return None
        factor = strength * ramp_up(step.run.clock.progress, self.config.ramp)
        features = step.tap("features" if self.config.tap == "features" else f"{self.name}/aligned").flatten(1)
        count = source.stop - source.start
        both = self.config.ramped == "both"
        logits = step.module(name)(reverse_gradient(torch.cat([features[source], features[target]]), 1.0 if both else factor))
        loss = domain_loss(logits[:count], logits[count:])
        return factor * loss if both else loss


def _discriminator(width: int, hidden: Sequence[int]) -> nn.Sequential:
    """Fully connected with ReLU, one logit."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*layers, nn.Linear(width, 1))
