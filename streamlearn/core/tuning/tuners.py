"""The base of the plugins that move numbers during a run, by a loss on held-out rows."""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field

from streamlearn.core.plugin import Plugin, PluginConfig, hookimpl
from streamlearn.core.randomness import distinct, forked, subseed
from streamlearn.core.tuning.tunables import SETTINGS, Number
from streamlearn.errors import ConfigurationError
from streamlearn.streams.operators.thinning import validation

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Batch, Data, Stream
    from streamlearn.streams.data import JoinedData

__all__ = ["Tuner", "TunerOptions"]


class TunerOptions(PluginConfig):
    """Options of every plugin that moves numbers by a loss on held-out rows."""

    held_out: str = Field("validation", min_length=1)
    fraction: float = Field(0.1, ge=0, lt=1)
    rows: int = Field(100, ge=1)


class Tuner(Plugin):
    """Base of the plugins that move numbers during a run, those of their option ``tune``; no two of them may move the same."""

    config: Any

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._found: set[str] = set()  # numbers on which the objective has depended
        if len(set(self.driven())) < len(self.driven()):
            raise ConfigurationError(f"plugin {self.name}: option 'tune' is {self.driven()!r}: name each number once")

    def driven(self) -> tuple[str, ...]:
        """Names of the numbers that it moves."""
        return tuple(self.config.tune)

    def numbers(self, run: Run) -> list[Number]:
        """Those numbers."""
        return [Number.find(name, run, self.name) for name in self.driven()]

    def claim(self, run: Run) -> None:
        """Refuse what is no number of this run, and what two tuners would move.

        Raises:
            ConfigurationError: one of these.
        """
        self.numbers(run)
        for other in run.plugins:
            both = sorted(set(self.driven()) & set(other.driven())) if isinstance(other, Tuner) and other is not self else []
            if both:
                raise ConfigurationError(f"plugins {self.name} and {other.name} both move {', '.join(both)}: leave it to one of them")

    # ------------------------------------------------------------------ held-out rows

    @hookimpl
    def transform_stream(self, stream: Stream, run: Run) -> Stream:
        """Keep rows of role ``validation`` from training, where they are asked for and there are none."""
        config = self.config
        if config.held_out != "validation" or config.fraction == 0 or "validation" in stream[0].data:
            return stream
        return validation(stream, config.fraction)

    def held_out_rows(self, step: Step) -> Batch | None:
        """Rows drawn for this step; ``None`` while a memory is empty, and in an experience too small to give any.

        Raises:
            ConfigurationError: the experience has no rows of the role that is asked for.
        """
        run, (kind, _, memory) = step.run, self.config.held_out.partition(":")
        if kind == "memory":
            return step.draw(memory, self.config.rows, purpose=self.name)
        roles = {} if run.experience is None else run.experience.data
        if kind in roles:
            return self.drawn(run.data(kind), kind, run)
        if kind == "validation" and self.config.fraction:
            return None
        raise ConfigurationError(
            f"plugin {self.name}: experience {run.clock.experience} has no rows of role {kind!r} to hold out (it has {', '.join(roles)}): "
            "name another role, or 'memory:<name>', as held_out, or keep a fraction of the training rows"
        )

    def drawn(self, data: Data | JoinedData, role: str, run: Run) -> Batch:
        """Some rows of ``data``, without repetition."""
        positions = distinct(len(data), min(self.config.rows, len(data)), run.generator(self, role)).sort().values
        with forked(run.device):
            torch.default_generator.manual_seed(subseed(run.seed, "tuner rows", self.name, role, run.clock.update))  # they may be augmented
            return data.batch(positions, role).to(run.device)

    # ------------------------------------------------------------------ moving, and telling

    def move(self, number: Number, slope: float | None, run: Run, rate: float, most: float = math.inf) -> None:
        """A step of gradient descent on one number; ``None`` where the objective does not depend on it."""
        if slope is not None and math.isfinite(slope):
            self._found.add(number.name)
            number.write(run, number.moved(number.read(run), slope, rate, most))

    def record(self, run: Run) -> None:
        """Write the present values into the record."""
        clock = run.clock
        phase = "" if run.phase is None else run.phase.name
        values = {number.name: number.read(run) for number in self.numbers(run)}
        place = {"experience": clock.experience, "phase": phase, "epoch": clock.epoch}
        run.record.append({"event": "tuning", **place, "by": self.name, "values": values})

    @hookimpl
    def after_run(self, run: Run) -> None:
        """Warn of numbers that could not move."""
        still = [name for name in self.driven() if name not in self._found and name not in SETTINGS]
        if still and run.error is None:
            warnings.warn(
                f"plugin {self.name}: the objective never depended on {', '.join(still)}, which stayed where it was: take numbers that a "
                "loss or a term reads by run.value, on a stream where they act",
                stacklevel=3,
            )

    def state_dict(self) -> dict[str, Any]:
        """Which numbers have moved; where they are is in the state of the run and its optimiser."""
        return {"found": sorted(self._found)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._found = set(state["found"])
