"""Meta-experience replay (MER): Reptile over single rows, so that steps on new rows agree with those on remembered ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.gradients import named_gradients
from streamlearn.core.inner_loop.estimators import leaves
from streamlearn.core.inner_loop.outcome import outcome, refuse_combiners
from streamlearn.core.inner_loop.trajectory import in_order
from streamlearn.core.objective import Objective, weigh, with_terms
from streamlearn.core.plugin import Passes, Plugin, PluginInfo, Tunable, hookimpl
from streamlearn.core.remembering import MemoryOptions, open_memory, remember_batch
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Batch

__all__ = ["MER", "towards"]


def towards(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """start + share · (end - start) by name; what has not moved is passed on as it is.

    Args:
        start: parameters by name.
        end: where steps from there have led, the same names.
        share: how much of the way to go.

    Example:
        >>> towards({"w": torch.zeros(2)}, {"w": torch.tensor([1.0, 2.0])}, 0.5)["w"].tolist()
        [0.5, 1.0]
    """
    return {name: end[name] if end[name] is value else torch.lerp(value, end[name], share) for name, value in start.items()}


class MER(Plugin):
    r"""Meta-experience replay.

    .. math::
        φ_{j,i+1} = φ_{j,i} - α \, ∇(w_i s + P)(φ_{j,i}; \text{row}_i), \qquad
        φ_{j+1,0} = φ_{j,0} + β \, (φ_{j,k+1} - φ_{j,0}), \qquad
        θ ← θ + γ \, (φ_{S,0} - θ)

    Each incoming row makes ``batches`` batches, S of them, of itself and ``batch_size`` rows of a memory, k, drawn anew for every batch.
    Steps of plain SGD go over a batch row after row, and β of the way is kept: Reptile within a batch, whose expected direction holds,
    to second order in α, the inner products of the rows' gradients (Riemer et al. 2019, section 3). γ is Reptile across the batches. Rows
    of a step are learnt one after another, each from where the one before has led. A row enters the memory, a reservoir, when its step
    is done.

    Three published settings, with numbers of the authors' script for rotated digits and 500 memories:

    - algorithm 1: ``MER(batches=10, within=0.01)``; γ is 1 throughout their script. The default is a single batch.
    - algorithm 6, one big batch: ``MER(current="last")``; the γ of algorithms 6 and 7 is ``within``.
    - algorithm 7, a rate of its own for the current row: ``MER(batch_size=50, rate=0.03, current="anywhere", emphasis=5)``.

    The step hands the optimiser the distance to where all this leads, as `Reptile` does: θ - φ is the gradient that it sees. With plain
    ``SGD(lr=1)`` the weights go there, which is the published method; its learning rate multiplies γ, and a batch of one row does not
    tell them apart. Momentum or Adam take θ - φ for a gradient like any other, which nobody has published. ``batch_size=1`` of the engine
    is the paper's stream; with more, rows of one step do not remember each other.

    Every plugin's losses, terms and weighting act in the inner steps, on all trainable parameters. Outside they are numbers for the
    record. A combiner would find no row to combine and is refused; projections and clipping act on θ - φ. Rows that another plugin adds
    to the batch are learnt like incoming ones. Where BatchNorm needs more than one row to have statistics, steps take two.

    Args:
        batches: S, at least 1.
        batch_size: k, memory rows in each batch, at least 1; fewer while the memory holds fewer.
        rate: α, above 0.
        within: β, above 0 and at most 1. With 1, and ``across=1``, it is SGD over the rows one after another.
        across: γ, above 0 and at most 1.
        current: where the incoming row comes in its batch: ``"first"``, ``"last"`` or ``"anywhere"``.
        emphasis: w of the incoming row, at least 1, that of the others being 1; s in algorithm 7.
        memory: name of the memory. Plugins that name the same one share it, and must agree on ``capacity``, ``policy`` and ``budget``.
        capacity: rows kept, at least 1.
        policy: which, as in `Replay`; the paper has ``"reservoir"``.
        budget: ``"total"``: ``capacity`` rows in all; ``"per_group"``: so many of each class, or experience.

    Raises:
        ConfigurationError: beside a plugin that combines the gradients of rows; the stream has episodes.

    Cost: for each incoming row S (k + 1) evaluations of the objective, of one row each, and one of the batch for the record. Memory:
    ``capacity`` indices, and 4 x the parameters within a step.

    Reference: Riemer et al., Learning to learn without forgetting by maximizing transfer and minimizing interference, ICLR 2019,
    algorithms 1, 6 and 7. Deviations: memory rows are drawn without replacement within a batch; the authors' code draws them with, its
    reservoir counts one row too many, and its algorithm 7 skips the very first row. Avalanche 0.6 fills the memory only when an
    experience has ended, so that during the first nothing is replayed. Rows are offered once, in the first epoch. All inner steps have
    the dropout masks of the step, and BatchNorm's running statistics move once a step, by the pass at θ. Micro-batches are learnt apart
    and averaged.

    Example:
        >>> from streamlearn.plugins import MER
        >>> MER(batches=10, rate=0.03, within=0.03, capacity=200)
        MER(batches=10, capacity=200, rate=0.03, within=0.03)
    """

    info = PluginInfo(
        name="mer",
        family="meta",
        summary="Learns each row among remembered ones by Reptile over single rows, so that their gradients agree.",
        reference="Riemer et al. 2019, ICLR, algorithms 1, 6 and 7",
        provides=frozenset({"inner-loop!", "look-ahead", "replay"}),
        passes=lambda plugin: Passes(look_ahead=plugin.config.batches * (plugin.config.batch_size + 1)),
        memory="capacity indices, and 4 x parameters within a step",
    )

    class Config(MemoryOptions):
        """Options of `MER`."""

        batches: int = Field(1, ge=1)
        batch_size: int = Field(10, ge=1)
        rate: Annotated[float, Tunable(1e-3, 1.0, log=True)] = Field(0.1, gt=0)
        within: float = Field(0.03, gt=0, le=1)
        across: float = Field(1.0, gt=0, le=1)
        current: Literal["first", "last", "anywhere"] = "first"
        emphasis: float = Field(1.0, ge=1)

    config: Config

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._offered: tuple[int, int] | None = None  # (experience, batch) whose rows were offered last

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse a combiner, which would be given no row."""
        refuse_combiners(self.name, run)

    # ------------------------------------------------------------------ the memory

    @hookimpl
    def before_step(self, step: Step) -> None:
        """Draw all rows of the step; who asks again gets the same."""
        if "support" in step.batch.roles:
            raise ConfigurationError(
                f"plugin {self.name} learns a stream row by row, but experience {step.run.clock.experience} has episodes: take Reptile"
            )
        open_memory(step.run, self)
        for number in range(len(self._examples(step))):
            for batch in range(self.config.batches):
                self._draw(step, number, batch)

    def _draw(self, step: Step, number: int, batch: int) -> Batch | None:
        return step.draw(self.config.memory, self.config.batch_size, purpose=f"{self.name}/{number}/{batch}")

    @hookimpl
    def after_step(self, step: Step) -> None:
        """Offer the incoming rows as they come."""
        self._offered = remember_batch(step.run, self, step.batch, self._offered)

    # ------------------------------------------------------------------ the step

    @hookimpl
    def around_objective(self, objective: Callable[[Step], Objective], step: Step) -> Objective:
        """Half the squared distance to where the rows lead, beside what was measured at θ."""
        measured = objective(step)
        theta = {name: step.parameters[name].detach() for name in step.run.optimization.trainable_names()}
        ends = theta
        for number, example in enumerate(self._examples(step)):
            start = ends
            for batch in range(self.config.batches):
                before = ends
                for piece, weight in self._rows(step, example, number, batch):
                    ends = self._stepped(objective, step.at(leaves(ends), batch=piece), ends, weight)
                ends = towards(before, ends, self.config.within)
            ends = towards(start, ends, self.config.across)
        return outcome(self.name, step, measured, {name: end for name, end in ends.items() if end is not theta[name]})

    def _examples(self, step: Step) -> list[Batch]:
        """The rows of the step one by one; BatchNorm has no statistics of a single row."""
        least = 2 if step.run.has_buffers else 1
        return in_order(step.batch, least, least)

    def _rows(self, step: Step, example: Batch, number: int, batch: int) -> Iterator[tuple[Batch, float]]:
        """The rows of one batch with their weights, in the order in which they are learnt."""
        run, least = step.run, 2 if step.run.has_buffers else 1
        drawn = self._draw(step, number, batch)
        remembered = [] if drawn is None or len(drawn) < least else in_order(drawn.to(step.batch.x.device), least, least)
        random = run.generator(self, f"{number}/{batch}")
        # a memory gives rows of different sources one source after another
        order = torch.randperm(len(remembered), generator=random).tolist()
        pieces = [(remembered[place], 1.0) for place in order]
        places = {"first": 0, "last": len(pieces), "anywhere": int(torch.randint(len(pieces) + 1, (), generator=random))}
        pieces.insert(places[self.config.current], (example, self.config.emphasis))
        yield from pieces

    def _stepped(
        self, objective: Callable[[Step], Objective], view: Step, values: Mapping[str, Tensor], weight: float
    ) -> dict[str, Tensor]:
        """``values`` after a step of plain SGD at ``view``."""
        found = objective(view)
        loss = weigh(found, view)
        total = with_terms(loss if loss is None or weight == 1.0 else weight * loss, found)
        rate = view.run.value(self, "rate")
        gradients = {} if total is None else named_gradients(total, {name: view.parameters[name] for name in values})
        return {name: (v - rate * gradients[name]).detach() if name in gradients else v for name, v in values.items()}
