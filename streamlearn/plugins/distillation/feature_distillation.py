"""Feature distillation: keep the old features on the new inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from streamlearn.core.forward import Forward, Teacher
from streamlearn.core.plugin import Passes, Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["Distance", "FeatureDistillation", "feature_distance"]

Distance = Literal["squared", "mean_squared", "cosine"]


def feature_distance(student: Tensor, teacher: Tensor, distance: Distance) -> Tensor:
    """The mean distance of activations, a scalar.

    Args:
        student: ``(rows, ...)``; what follows the first dimension is one vector.
        teacher: of the same shape.
        distance: ``"squared"``, half the squared Euclidean one; ``"mean_squared"``, the squared one over the number of entries;
            ``"cosine"``, 1 minus the cosine.

    Example:
        >>> a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 3.0]])
        >>> [feature_distance(a, b, kind).item() for kind in ("squared", "mean_squared", "cosine")]
        [5.0, 5.0, 1.0]
    """
    a, b = student.flatten(1), teacher.to(student.dtype).flatten(1)
    if distance == "cosine":
        return 1 - functional.cosine_similarity(a, b, dim=1).mean()
    difference = (a - b).square()
    return difference.mean() if distance == "mean_squared" else 0.5 * difference.sum(1).mean()


class FeatureDistillation(Plugin):
    r"""Distillation of features: the encoder stays near to what it was on the present rows.

    .. math:: P = λ \, \frac1n \sum_i d(f(x_i), f^*(x_i))

    with f the features of the model as it is and f* those as the last experience left it, on all rows of the batch, those of a
    replay memory too. There are three distances d:

    .. math:: \tfrac12 \lVert f - f^* \rVert^2 \;\text{("squared")}, \qquad \tfrac1D \lVert f - f^* \rVert^2 \;\text{("mean\_squared")},
              \qquad 1 - \frac{\langle f, f^* \rangle}{\lVert f \rVert \lVert f^* \rVert} \;\text{("cosine")}

    "squared" is the Euclidean loss of less-forgetful learning (LFL), "cosine" the less-forget constraint of LUCIR, and "mean_squared" the
    first divided by D/2, with D the length of f, as codes have it that take a mean over all entries.

    It needs no labels, no tasks and no classes, so it acts alike on every stream and beside every loss. It holds the features and not
    the heads: together with ``LwF`` or a replay memory, which hold those, it makes whole methods.

    Args:
        strength: λ, at least 0; 0 switches the term off. LUCIR uses 5 times the root of the number of old classes over that of new ones.
        distance: ``"squared"``, ``"mean_squared"`` or ``"cosine"``.
        taps: what is compared, one term for each: ``"features"``, the input of the heads, or paths of modules, such as ``"encoder.0"``.

    Raises:
        ConfigurationError: a tap is no module of the model, or is named twice.

    Cost: one forward pass of the teacher per step, which ``LwF`` and others share; with paths in ``taps`` one that is not shared. Memory:
    1 x the model.

    Reference: Jung et al., Less-forgetting learning in deep neural networks, arXiv 1607.00122, 2016, the Euclidean loss; Hou et al.,
    Learning a unified classifier incrementally via rebalancing, CVPR 2019, section 3.2, the less-forget constraint. Deviations: LFL
    also freezes the classifier, and LUCIR has a cosine classifier and a margin loss, which are no part of this; the teacher rests in
    evaluation mode. Avalanche 0.6 leaves it as training left it, so with dropout or batch normalisation its teacher is a random one, and
    its ``mode="mse"`` ends in a TypeError.

    Example:
        >>> from streamlearn.plugins import FeatureDistillation
        >>> FeatureDistillation(strength=5.0, distance="cosine")
        FeatureDistillation(distance='cosine', strength=5.0)
    """

    info = PluginInfo(
        name="feature_distillation",
        family="distillation",
        summary="Keeps the features of the last experience's model on the present inputs.",
        reference="Jung et al. 2016, arXiv 1607.00122; Hou et al. 2019, CVPR, section 3.2 (less-forget constraint)",
        passes=lambda plugin: Passes(teachers=plugin.teachers_read),
        memory="1 x the model",
        ranks="local",
        strength="strength",
        vmappable=True,
    )

    class Config(PluginConfig):
        """Options of `FeatureDistillation`."""

        strength: Annotated[float, Tunable(0.01, 100.0, log=True)] = Field(1.0, ge=0)
        distance: Distance = "squared"
        taps: tuple[str, ...] = Field(("features",), min_length=1)

    @property
    def _paths(self) -> dict[str, str]:
        """The taps that are modules, by themselves."""
        return {tap: tap for tap in self.config.taps if tap != "features"}

    @property
    def teachers_read(self) -> frozenset[str]:
        """The teachers' passes: one that others share, unless modules within it are looked at."""
        return frozenset({f"{self.name}/previous" if self._paths else "previous"})

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse a tap that is named twice: its term would count once."""
        twice = [tap for tap in self.config.taps if self.config.taps.count(tap) > 1]
        if twice:
            raise ConfigurationError(f"plugin {self.name}: option 'taps' names {twice[0]!r} twice: name each once, and raise the strength")

    @hookimpl
    def collect_teachers(self, run: Run) -> dict[str, Teacher]:
        """The model as the last experience left it."""
        return {} if self.config.strength == 0 else {"previous": Teacher("copy", refresh="experience")}

    @hookimpl
    def collect_taps(self, run: Run) -> dict[str, str]:
        """The modules whose outputs are compared."""
        return {} if self.config.strength == 0 else self._paths

    @hookimpl
    def collect_terms(self, step: Step) -> dict[str, Tensor]:
        """One term for each tap."""
        strength = step.run.value(self, "strength")
        teacher = step.teacher(f"{self.name}/previous")
        if teacher is None or strength == 0 or len(step.batch) == 0:
            return {}
        if self._paths:  # the shared pass of the teacher keeps no activation but its features
            teacher = Forward(step.run.teachers[f"{self.name}/previous"], step.batch.x, taps=self._paths)
        with torch.no_grad():
            told = {tap: teacher.tap(tap) for tap in self.config.taps}
        own = {tap: tap if tap == "features" else f"{self.name}/{tap}" for tap in self.config.taps}
        return {tap: strength * feature_distance(step.tap(own[tap]), told[tap], self.config.distance) for tap in self.config.taps}
