"""The walk over a stream: experiences, phases, epochs, batches. Every place in it is a place from which a run can be resumed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamlearn.core.cost import cost_of
from streamlearn.core.evaluation import Evaluator
from streamlearn.core.forward import resolve_taps
from streamlearn.core.inputs import readable
from streamlearn.core.meter import Meter
from streamlearn.core.phases import ALL, Phase, select_names
from streamlearn.core.prequential import Prequential
from streamlearn.core.randomness import forked, seed_forward, subseed
from streamlearn.core.sampling import Rounds, TaskCursors, batches_per_epoch, shuffled
from streamlearn.core.step import Step, train_step
from streamlearn.errors import ConfigurationError
from streamlearn.streams import Batch, Experience
from streamlearn.streams.batch import concatenate

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["Walk", "enter_experience"]

_AS_IT_IS: contextlib.AbstractContextManager[None] = contextlib.nullcontext()


class Walk:
    """Trains a run over its stream.

    Args:
        run: the run, fresh or restored to some place.
        evaluator: measures it.
        between_steps: called after every update and at every boundary; saves, reports progress, and stops the run by raising.
        restored: what `state_dict` gave at the place of a resume.
    """

    def __init__(
        self, run: Run, evaluator: Evaluator, between_steps: Callable[[str], None], restored: Mapping[str, Any] | None = None
    ) -> None:
        self.run = run
        self.evaluator = evaluator
        self.between_steps = between_steps
        self.cursors: TaskCursors | None = None
        self._restored = dict(restored or {})
        self._prequential: Prequential | None = None
        self._learnt = {*run.stream.learnt_after, len(run.stream)}

    def state_dict(self) -> dict[str, Any]:
        """What the epoch and the experience in progress have, beyond the clock: task cursors, and the score of predictions."""
        return {
            "cursors": None if self.cursors is None else self.cursors.state_dict(),
            "prequential": None if self._prequential is None else self._prequential.state_dict(),
        }

    def go(self) -> None:
        """Train until the stream ends."""
        run, clock = self.run, self.run.clock
        with forked(run.device):
            if not clock.started:
                if run.options.evaluate != "never":
                    self._evaluate()
                clock.started = True
                self.between_steps("start")
            while clock.experience < len(run.stream):
                self._experience(run.stream[clock.experience])
                self.between_steps("experience")

    def _evaluate(self, within: int | None = None) -> None:
        started = time.perf_counter()
        self.evaluator.measure(self.run, self.run.clock.experience, within)
        self._timed("evaluation", started)

    def _timed(self, what: str, started: float) -> None:
        self.run.times.append({"event": "time", "what": what, "index": self.run.clock.experience, "seconds": time.perf_counter() - started})

    # ------------------------------------------------------------------ experience

    def _experience(self, experience: Experience) -> None:
        run, clock, hooks = self.run, self.run.clock, self.run.hooks
        started = time.perf_counter()
        if not clock.inside:
            if clock.experience:
                run.refresh_teachers()
            enter_experience(run, experience)
            if hooks.before_experience is not None:
                hooks.before_experience(experience, run)
            clock.inside, clock.entered, clock.phase, clock.epoch, clock.batch = True, clock.update, 0, 0, 0
        truth = self.evaluator.truth(clock.experience) if "target" in experience.data and run.options.evaluate != "never" else None
        if truth is not None:
            self._prequential = Prequential(run, truth, experience)
            saved = self._restored.pop("prequential", None)
            if saved is not None:
                self._prequential.load_state_dict(saved)
        phases = self._phases(experience)
        for number in range(clock.phase, len(phases)):
            clock.phase = number
            self._phase(phases[number])
            clock.epoch = 0
        if self._prequential is not None and experience.main_role != "target":
            self._prequential.score_unmet(experience.data["target"])
        if hooks.after_experience is not None:
            hooks.after_experience(experience, run)
        for task, classes in experience.classes.items():
            run.classes_seen[task] = tuple(sorted({*run.classes_seen.get(task, ()), *classes}))
        run.record.append(
            {
                "event": "experience",
                "index": clock.experience,
                "name": experience.name,
                "rows": sum(len(part.indices) for data in experience.data.values() for part in data.parts()),
                "updates": clock.update - clock.entered,
                "tasks": [task.name for task in experience.tasks],
                "classes": {task: list(classes) for task, classes in experience.classes.items()},
            }
        )
        for line in self._prequential.lines() if self._prequential is not None else ():
            run.record.append(line)
        if clock.experience + 1 in self._learnt:
            run.record.append(cost_of(run, experience))
        self._prequential = None
        self._timed("experience", started)
        clock.experience += 1
        clock.inside, clock.phase, clock.epoch, clock.batch = False, 0, 0, 0
        run.experience = run.phase = None
        last = clock.experience == len(run.stream)
        if run.options.evaluate == "experience" or (run.options.evaluate == "end" and last):
            self._evaluate()

    def _phases(self, experience: Experience) -> tuple[Phase, ...]:
        run = self.run
        role = experience.main_role
        others = {name: data for name, data in experience.data.items() if name not in (role, "validation")}
        phases: tuple[Phase, ...] = (
            Phase("main", experience.data[role], run.options.epochs, role=role, companions=others, iterations=run.options.iterations),
        )
        if run.hooks.transform_phases is not None:
            phases = tuple(run.hooks.transform_phases(phases, experience, run))
        return phases

    # ------------------------------------------------------------------ phase and epoch

    def _phase(self, phase: Phase) -> None:
        run, clock, hooks = self.run, self.run.clock, self.run.hooks
        run.phase = phase
        clock.batches = batches_per_epoch(len(phase.data), phase.batch_size or run.options.batch_size, run.options.drop_last)
        clock.epochs = phase.epochs if phase.iterations is None else -(-phase.iterations // clock.batches) if clock.batches else 1
        clock.iterations = clock.epochs * clock.batches if phase.iterations is None else phase.iterations
        table = run.hooks
        if phase.only is not None:
            unknown = sorted(phase.only - {plugin.name for plugin in run.plugins})
            if unknown:
                raise ConfigurationError(f"phase {phase.name!r} is only for {', '.join(unknown)}, which the strategy does not list")
            run.hooks = run.restricted_hooks(phase.only)
        frozen = _freeze(run, phase.trainable)
        run.frozen_by_phase = frozenset(id(p) for p in frozen)
        names = frozenset(run.optimization.trainable_names())
        run.optimization.begin_phase(phase.optimizer, names)
        self._restore_phase_optimizer()
        try:
            self.cursors = self._make_cursors(phase)
            for epoch in range(clock.epoch, clock.epochs):
                clock.epoch = epoch
                if clock.batch == 0 and hooks.before_epoch is not None:
                    hooks.before_epoch(run)
                self._epoch(phase)
                if hooks.after_epoch is not None:
                    hooks.after_epoch(run)
                self._record_epoch(phase)
                clock.batch = 0
        finally:
            run.hooks = table
            self.cursors = None  # they belong to this phase; what is saved at the next boundary must not bring them back
            run.optimization.end_phase()
            run.frozen_by_phase = frozenset()
            for parameter in frozen:
                parameter.requires_grad_(True)

    def _restore_phase_optimizer(self) -> None:
        if self.run.pending_optimization is not None:
            self.run.optimization.load_state_dict(self.run.pending_optimization)
            self.run.pending_optimization = None

    def _make_cursors(self, phase: Phase) -> TaskCursors | None:
        run = self.run
        if run.hooks.provide_task_probabilities is None:
            return None
        size = phase.batch_size or run.options.batch_size
        cursors = TaskCursors(phase.data, size, run.seed, run.clock.experience, run.clock.phase)
        saved = self._restored.pop("cursors", None)
        if saved is not None:
            cursors.load_state_dict(saved)
        return cursors

    def _record_epoch(self, phase: Phase) -> None:
        run, clock = self.run, self.run.clock
        line = {"event": "epoch", "experience": clock.experience, "phase": phase.name, "epoch": clock.epoch, "updates": run.meter.updates}
        run.record.append({**line, **run.meter.means()})
        conflicts = run.meter.conflicts.means()
        if conflicts:
            at = "features" if run.rows_at_features else "parameters"
            run.record.append({**line, "event": "gradients", "updates": run.meter.conflicts.updates, "at": at, **conflicts})
        run.meter = Meter()

    def _epoch(self, phase: Phase) -> None:
        run, clock = self.run, self.run.clock
        run.model.train()
        run.trains = not run.optimization.is_empty
        every, seen = run.options.evaluate_every, False
        for batch in self._seeded(self._batches(phase), phase):
            before = clock.update
            if not seen:
                run.form.check(batch, f"experience {clock.experience}{f' ({run.experience.name})' if run.experience else ''}")
            seen = True
            for patterns in phase.updates:
                score = self._prequential.score if self._prequential is not None and clock.update == before else None
                with _AS_IT_IS if clock.update else readable(batch, run.model):
                    if patterns is ALL:
                        train_step(run, batch, score)
                    else:
                        self._partial_step(patterns, batch, score)
                clock.update += 1
            clock.batch += 1
            if every is not None and clock.update // every > before // every:
                self._evaluate(within=clock.experience)
            del batch  # its memory is free when the next one is gathered: one batch at a time, and the cache stays warm
            self.between_steps("step")

    def _partial_step(self, patterns: tuple[str, ...], batch: Batch, score: Callable[[Step], None] | None) -> None:
        run = self.run
        frozen = _freeze(run, patterns)
        run.trains = not run.optimization.is_empty
        try:
            train_step(run, batch, score)
        finally:
            for parameter in frozen:
                parameter.requires_grad_(True)
        run.trains = not run.optimization.is_empty

    def _batches(self, phase: Phase) -> Iterator[Batch]:
        run, clock = self.run, self.run.clock
        options, data, role = run.options, phase.data, phase.role
        size = phase.batch_size or options.batch_size
        ends = min(clock.batches, clock.iterations - clock.epoch * clock.batches)
        if self.cursors is None:
            place = (clock.experience, clock.phase, clock.epoch)
            order = shuffled(len(data), size, options.drop_last, clock.batch, run.seed, *place)[: (ends - clock.batch) * size]
            batches = data.in_order(order, size, role) if len(order) else iter(())
            if phase.companions:
                batches = self._accompanied(batches, phase, size)
            yield from batches if run.device.type == "cpu" else (batch.to(run.device) for batch in batches)
        else:
            batches = (data.batch(self._scheduled(), role) for _ in range(clock.batch, ends))
            yield from (batch.to(run.device) for batch in self._accompanied(batches, phase, size))

    def _seeded(self, batches: Iterator[Batch], phase: Phase) -> Iterator[Batch]:
        """Rows may be augmented at random, here or in their data set: what is drawn is a function of the update they are for."""
        run = self.run
        draws = any(part.draws for data in (phase.data, *phase.companions.values()) for part in data.parts())
        if not (draws or run.memories.draws):
            yield from batches
            return
        base = subseed(run.seed, "rows")
        while True:
            seed_forward(base, run.clock.update)
            batch = next(batches, None)
            if batch is None:
                return
            yield batch
            del batch

    def _scheduled(self) -> Tensor:
        """The positions that a task scheduler's probabilities choose for the next batch."""
        run = self.run
        assert self.cursors is not None
        return self.cursors.next(run.hooks.provide_task_probabilities(Step(run, None)), run.clock.update)

    def _accompanied(self, batches: Iterator[Batch], phase: Phase, size: int) -> Iterator[Batch]:
        """Each batch with the rows that join it."""
        run, clock = self.run, self.run.clock
        place = (clock.experience, clock.phase)
        rounds = {role: Rounds(len(data), size, run.seed, *place, role) for role, data in phase.companions.items() if len(data)}
        for batch in batches:
            number = clock.epoch * clock.batches + clock.batch
            joined = [phase.companions[role].batch(found.positions(number), role) for role, found in rounds.items()]
            yield concatenate([batch, *joined])


def enter_experience(run: Run, experience: Experience) -> None:
    """Heads grow, helper modules and teachers are asked for, taps are resolved: all that must be done again by a resume."""
    hooks, clock = run.hooks, run.clock
    run.experience = experience
    for task in experience.tasks:
        run.tasks[task.name] = task
    with forked(run.device):
        torch.default_generator.manual_seed(subseed(run.seed, "growth", clock.experience))
        if run.model.grow(experience.tasks):
            run.model.to(run.device)
            run.optimization.refresh()
            run.notice_growth()
        if hooks.collect_modules is not None:
            for name, trainable in hooks.collect_modules(run).items():
                if name not in run.modules:
                    trainable.module.to(run.device)
                    run.optimization.add(name, trainable)
                    run.modules[name] = trainable.module
    if hooks.collect_teachers is not None:
        run.want_teachers(hooks.collect_teachers(run))
    if hooks.collect_taps is not None:
        run.taps = resolve_taps(run.model, hooks.collect_taps(run))


def _freeze(run: Run, patterns: tuple[str, ...] | None) -> list[torch.nn.Parameter]:
    """Freeze every parameter that ``patterns`` do not select; returns those that were frozen by this."""
    if patterns is None or patterns == ALL:
        return []
    chosen = select_names(run.parameters(), patterns)
    frozen = [p for name, p in run.optimization.trainable().items() if name not in chosen]
    for parameter in frozen:
        parameter.requires_grad_(False)
    return frozen
