"""Online-aware meta-learning (OML): a representation on which learning row after row does not interfere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field
from torch import Tensor

from streamlearn.core.inner_loop import Rates
from streamlearn.core.inner_loop.trajectory import TrajectoryLearner, TrajectoryOptions
from streamlearn.core.plugin import SUPERVISED, Passes, PluginInfo, Tunable, hookimpl
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["OML"]


class OML(TrajectoryLearner):
    r"""Online-aware meta-learning.

    .. math::
        W_{j+1} = W_j - α \, ∇_{W} (s + P)(θ, W_j; \text{rows}_j), \quad j = 0, \dots, k - 1, \qquad
        (L, P)(θ, W_0) = \frac1E \sum_{e=1}^E (L, P)(θ, W_k^e; \text{all rows of } e)

    W is the plastic part of the model, the prediction learning network, and θ the rest, the representation. The rows of a trajectory are
    learnt in their order, ``rows`` at a time, as in a stream: in an episode of N classes all of the first class come first. What has been
    forgotten by the end costs, and so θ learns features on which the steps do not interfere (Javed & White 2019, algorithm 2). The
    gradient goes through all the steps, exactly.

    The trajectory of an episode is its ``support`` rows; the objective is on these and on the ``query`` rows (``query="*"``), which take
    the place of the paper's random rows. A batch without ``support`` rows is one trajectory, asked on all its rows. On a stream of
    experiences beside `Replay`, ``support="train"`` learns the incoming rows in their order and is asked on them and on the memory's.
    Both levels take the whole objective with every plugin's losses and terms, as in `MAML`.

    In an evaluation W learns the labelled support rows of each episode in their order, predicts, and is put back. To go on with what has
    been learnt, take `streamlearn.Prior.of` the model and start a run there with `FromPrior`, beside `FrozenBackbone`: plain
    SGD on the plastic part is then the method's continual phase.

    Args:
        steps: inner steps on each piece of the trajectory, at least 0. With 0 it is the plain step on all rows.
        rate: α, above 0.
        rows: how many rows of the trajectory an inner step takes, at least 1; with BatchNorm at least 2 are taken.
        start: ``"learnt"``: the outer step moves W_0 as well (the authors' code); ``"fixed"``: only θ, as the paper writes it.
        order: 2 differentiates through the inner steps; 1 takes their gradients as constants, which the authors' code did until July 2020.
        recompute: with order 2, go backwards through inner steps that are computed anew one by one: the same gradient in less memory.
        plastic: patterns of the names of W.
        rule: ``"sgd"``; others would have to remember something from one piece to the next.
        evaluation_steps: inner steps on each piece in an evaluation, at least 0; default ``steps``.
        support: the role of the rows of the trajectory.
        query: the role of the rows of the objective; ``"*"`` takes all rows of the episode.
        executor: as for `MAML`.
        chunk: at once at most so many episodes, at least 1; ``None`` for all.

    Raises:
        ConfigurationError: ``plastic`` matches no parameter (a plain module has no heads: list `MultiHead` before, or name its layers), or
            every one, with ``start="fixed"``: then nothing would be learnt.
        TrainingError: an episode has support but no query rows or the reverse.

    Cost: ``steps`` passes over the trajectory, in as many small steps as it has pieces; order 2 about doubles their price. Memory: at
    order 2 the graphs of all inner steps of a batch, or with ``recompute`` the plastic weights of all.

    Reference: Javed & White, Meta-learning representations for continual learning, NeurIPS 2019, algorithm 2. Deviations: episodes number
    their classes anew, which takes the place of drawing a class's output weights anew before each trajectory; the query rows are of the
    episode's classes, not of all; an outer step takes several trajectories; buffers, such as BatchNorm's statistics, move once a step.

    Example:
        >>> from streamlearn.plugins import OML
        >>> OML(rate=0.1, start="fixed")
        OML(rate=0.1, start='fixed')
    """

    info = PluginInfo(
        name="oml",
        family="meta",
        summary="Trains a representation on which a head can learn row after row without forgetting.",
        reference="Javed & White 2019, NeurIPS, algorithm 2",
        provides=frozenset({"inner-loop!", "look-ahead"}),
        passes=lambda plugin: Passes(look_ahead=plugin.config.steps),
        memory="the graphs of the inner steps",
        strength="steps",
        vmappable=True,
        streams=SUPERVISED | {"episodes"},
    )

    class Config(TrajectoryOptions):
        """Options of `OML`."""

        rate: Annotated[float, Tunable(1e-3, 1.0, log=True)] = Field(0.03, gt=0)
        start: Literal["learnt", "fixed"] = "learnt"

    config: Config

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse to learn nothing."""
        learnt = frozenset(run.optimization.trainable_names())
        if self.config.start == "fixed" and self.config.steps and self.plastic(run) >= learnt:
            raise ConfigurationError(
                f"plugin {self.name}: with start='fixed' nothing that plastic={self.config.plastic!r} selects is learnt, and that is every "
                "parameter: leave the representation out of plastic, or take start='learnt'"
            )

    def rates(self, run: Run, parameters: Mapping[str, Tensor]) -> Rates:
        """α."""
        return run.value(self, "rate")

    def begin(self, movable: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """W_0, with or without a way back to it."""
        if self.config.start == "learnt":
            return movable
        return {name: value.detach() for name, value in movable.items()}
