"""Model-agnostic meta-learning (MAML): train the weights from which a few gradient steps lead far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from torch import Tensor

from streamlearn.core.inner_loop import Rates, UnrolledLearner, UnrolledOptions
from streamlearn.core.plugin import SUPERVISED, PluginInfo, Tunable

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["MAML"]


class MAML(UnrolledLearner):
    r"""Model-agnostic meta-learning.

    .. math:: φ_e = θ - α \, ∇_θ (s + P)(θ; support_e), \qquad (L, P)(θ) = \frac1E \sum_{e=1}^E (L, P)(φ_e; query_e)

    with the gradient step repeated ``steps`` times (Finn et al. 2017, algorithm 2). Both levels take the whole objective with every
    plugin's losses and terms, so that EWC, distillation or a weighting act in the look-ahead as well; the rows L that come out are
    weighted, combined and projected as those of any step. The episodes e of a batch are its domains. A batch without ``support``
    rows is one episode that learns from, and is asked on, all its rows.

    In an evaluation the model takes ``evaluation_steps`` steps on the labelled ``support`` rows of each episode, from θ and on the
    task loss alone, predicts, and forgets them again.

    Args:
        steps: inner steps, at least 0. With 0 it is the plain step on all rows: together with ``evaluation_steps`` that is a network
            trained on all tasks and then fine-tuned, the usual baseline.
        rate: α, above 0.
        order: 2 differentiates through the inner steps; 1 takes their gradients as constants (FOMAML, section 5.2).
        recompute: with order 2, go backwards through inner steps that are computed anew one by one: the same gradient for about a
            fifth more time, and memory of one step in place of ``steps``.
        rule: how a gradient becomes an inner step: ``"sgd"``, ``"momentum"`` and ``"nesterov"`` (0.9) or ``"adam"``.
        plastic: patterns of the names of the parameters that move in inner steps. ``("heads.*",)`` is ANIL (Raghu et al. 2020).
        evaluation_steps: inner steps in an evaluation, at least 0; default ``steps``.
        support: the role of the rows that inner steps learn from.
        query: the role of the rows of the outer objective; ``"*"`` takes all rows of the episode. With ``support="train"`` and replay
            that is C-MAML (Gupta et al. 2020): look ahead on the incoming rows, be asked on these and the memory's.
        executor: ``"vmap"`` goes through the episodes of a batch at once, ``"loop"`` one by one; ``"auto"`` at once where every plugin
            in the objective says that it can stand it (``info.vmappable``), the model has no running statistics and no convolutions,
            and episodes differ in numbers alone. Results agree but for rounding.
        chunk: at once at most so many episodes, at least 1; ``None`` for all.

    Raises:
        ConfigurationError: ``plastic`` matches no parameter.
        TrainingError: an episode has support but no query rows or the reverse, or the batch holds rows of yet another role.

    Cost: ``steps`` evaluations of the objective on the support rows more; order 2 differentiates through them, which about doubles
    their price. Memory: at order 2 the graphs of all inner steps of a batch, or with ``recompute`` the weights of all, ``steps`` x the
    parameters.

    Reference: Finn, Abbeel & Levine, Model-agnostic meta-learning for fast adaptation of deep networks, ICML 2017, eq. 1 and
    algorithm 2. Deviations: BatchNorm's running statistics move once a step, by the first pass over the support rows (over the whole
    batch, in one pass more, when it has several episodes), and an evaluation normalises with them, not with those of the query rows.
    The weighting of the outer rows is that at θ.

    Example:
        >>> from streamlearn.plugins import MAML
        >>> MAML(steps=5, rate=0.01, order=1)
        MAML(order=1, rate=0.01, steps=5)
    """

    info = PluginInfo(
        name="maml",
        family="meta",
        summary="Trains the weights from which a few gradient steps on a new task lead far.",
        reference="Finn et al. 2017, ICML, eq. 1 and algorithm 2; plastic heads: Raghu et al. 2020, ICLR; C-MAML: Gupta et al. 2020",
        provides=frozenset({"inner-loop!", "look-ahead"}),
        passes=UnrolledOptions.passes,
        memory="the graphs of the inner steps",
        strength="steps",
        vmappable=True,
        streams=SUPERVISED | {"episodes"},
    )

    class Config(UnrolledOptions):
        """Options of `MAML`."""

        rate: Annotated[float, Tunable(1e-3, 1.0, log=True)] = Field(0.01, gt=0)

    config: Config

    def rates(self, run: Run, parameters: Mapping[str, Tensor]) -> Rates:
        """α."""
        return run.value(self, "rate")
