"""Correlation alignment (CORAL): the features of both domains get the same covariance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["CORAL", "coral_loss", "covariance"]


def covariance(features: Tensor) -> Tensor:
    """1 / (n - 1) Σ_i (x_i - mean)(x_i - mean)ᵀ, ``(d, d)``.

    Args:
        features: ``(n, d)`` with n of at least 2.

    Example:
        >>> import torch
        >>> covariance(torch.tensor([[0.0, 1.0], [2.0, 1.0]])).tolist()
        [[2.0, 0.0], [0.0, 0.0]]
    """
    centred = features - features.mean(0)
    return centred.T @ centred / (len(features) - 1)


def coral_loss(source: Tensor, target: Tensor) -> Tensor:
    """‖C_source - C_target‖_F² / (4 d²), a scalar.

    Args:
        source: features of one domain, ``(n, d)`` with n of at least 2.
        target: of the other, ``(m, d)`` with m of at least 2.

    Example:
        >>> import torch
        >>> coral_loss(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [4.0]])).item()  # (2 - 8)² / 4
        9.0
    """
    return (covariance(source) - covariance(target)).square().sum() / (4 * source.shape[1] ** 2)


class CORAL(Plugin):
    r"""Deep correlation alignment.

    .. math:: P = \frac{λ}{4 d^2} \| C_{source} - C_{target} \|_F^2

    with C the covariance of the d features of the rows of a domain in the batch (Sun & Saenko 2016, eqs. 1 to 3). Source rows are
    those of role ``"train"``, target rows those of role ``"target"``; rows of a memory stay out. A batch with fewer than two rows of
    either has no term.

    Args:
        strength: λ, at least 0; 0 switches the term off. In the paper it is set so that the term and the classification loss are of one
            size at the end of training.
        tap: what is aligned: ``"features"``, what the encoder gives, or the path of a module; flattened to ``(rows, d)``.

    Raises:
        ConfigurationError: the model has no module at path ``tap``.

    Cost: no additional pass; two d x d products. Memory: none.

    Reference: Sun & Saenko, Deep CORAL: correlation alignment for deep domain adaptation, ECCV workshops 2016, eqs. 1-3. The paper aligns
    the last layer's outputs: name it as ``tap``.

    Example:
        >>> from streamlearn.plugins import CORAL
        >>> CORAL(strength=10.0)
        CORAL(strength=10.0)
    """

    info = PluginInfo(
        name="coral",
        family="adaptation",
        summary="Gives the features of source and target rows the same covariance.",
        reference="Sun & Saenko 2016, ECCV workshops, eqs. 1-3",
        strength="strength",
        streams=frozenset({"adaptation"}),
    )

    class Config(PluginConfig):
        """Options of `CORAL`."""

        strength: Annotated[float, Tunable(0.01, 100.0, log=True)] = Field(1.0, ge=0)
        tap: str = Field("features", min_length=1)

    @hookimpl
    def collect_taps(self, run: Run) -> dict[str, str]:
        """The module whose output is aligned, if it is not the encoder as a whole."""
        return {} if self.config.tap == "features" or self.config.strength == 0 else {"aligned": self.config.tap}

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """λ times the distance of the covariances."""
        strength = step.run.value(self, "strength")
        source, target = step.batch.rows("train"), step.batch.rows("target")
        if strength == 0 or min(source.stop - source.start, target.stop - target.start) < 2:
            return None
        features = step.tap("features" if self.config.tap == "features" else f"{self.name}/aligned").flatten(1)
        return strength * coral_loss(features[source], features[target])
