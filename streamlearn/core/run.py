"""A run in progress: what plugins see as ``run``. State, and the services that several plugins need and the engine owns once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from streamlearn.core.clock import Clock
from streamlearn.core.composition import Composition, not_vmappable
from streamlearn.core.dispatch import HookTable
from streamlearn.core.forward import Forward, Teacher, average, make_teacher, resolve_taps
from streamlearn.core.importance import Importance, evaluating, importance
from streamlearn.core.inputs import InputForm
from streamlearn.core.memories import Memories
from streamlearn.core.memory import ReplayMemory
from streamlearn.core.meter import Meter
from streamlearn.core.optimization import Optimization
from streamlearn.core.phases import Phase
from streamlearn.core.randomness import forked, generator, subseed
from streamlearn.errors import ConfigurationError
from streamlearn.models import Model
from streamlearn.models.initialization import reinitialize
from streamlearn.results import Record
from streamlearn.streams import Batch, Data, Experience, Stream, Task
from streamlearn.streams.data import JoinedData

if TYPE_CHECKING:
    from streamlearn.core.options import Options
    from streamlearn.core.plugin import Plugin

__all__ = ["Run"]


class Run:
    """A run in progress.

    Attributes:
        stream: the experiences, as training may see them.
        model: the model being trained.
        optimization: parameters by name and their optimisers.
        clock: where the run is.
        experience: the experience being trained, ``None`` between two.
        phase: the phase being trained, likewise.
        tasks: every task met so far, by name.
        classes_seen: by task, the classes of all *finished* experiences, ascending.
        modules: the plugins' trainable helpers by ``"<plugin>/<name>"``.
        teachers: the teachers that exist by now, likewise.
        memories: the replay memories, by name.
        record: what was measured.
        rows_at_features: whether the active combiner wants its rows at the features (``info.rows``).
        values: by ``"<plugin>.<option>"``, the numbers that a tuner has moved away from their configuration.
        one_by_one: the operation for whose sake episodes cannot be gone through at once, once a step has met it.
        trains: whether any parameter may move at present; without, a step has no forward and no update of its own.
        error: the exception that ended the run, for ``after_run``.
    """

    def __init__(self, options: Options, composition: Composition, stream: Stream, record: Record, times: Record) -> None:
        self.options = options
        self.composition = composition
        self.stream = stream
        self.record = record
        self.times = times
        self.seed = options.seed
        self.device = torch.device(options.device)
        self.clock = Clock()
        self.hooks = HookTable(composition.table, lambda: str(self.clock))
        self.forward_seed = subseed(self.seed, "forward")
        self.memories = Memories(self.seed)
        self.meter = Meter()
        self.form = InputForm()
        self.experience: Experience | None = None
        self.phase: Phase | None = None
        self.tasks: dict[str, Task] = {}
        self.classes_seen: dict[str, tuple[int, ...]] = {}
        self.modules: dict[str, nn.Module] = {}
        self.teachers: dict[str, Model] = {}
        self.taps: dict[str, str] | None = None
        self.error: BaseException | None = None
        self.trains = True
        self.values: dict[str, float] = {}
        self.one_by_one: str | None = None
        self.not_vmappable = not_vmappable(composition.plugins)
        combiners = set(composition.firing_order("provide_gradient_combination"))
        self.rows_at_features = any(plugin.info.rows == "features" for plugin in composition.plugins if plugin.name in combiners)
        self.averaged: dict[str, float] = {}
        self.encode: Any = None
        self.model: Model
        self.optimization: Optimization
        self.initial: Model
        self.keeps_initial = False  # whether a new process could not draw the initial weights again
        self.pending_optimization: dict[str, Any] | None = None
        self.frozen_by_phase: frozenset[int] = frozenset()
        self._restricted: dict[frozenset[str], HookTable] = {}
        self._wanted_teachers: dict[str, Teacher] = {}

    @property
    def plugins(self) -> tuple[Plugin, ...]:
        """The active plugins, in resolved order."""
        return self.composition.plugins

    def implementers(self, hook: str) -> tuple[str, ...]:
        """Names of the plugins that implement ``hook``."""
        return self.composition.firing_order(hook)

    def restricted_hooks(self, names: frozenset[str]) -> HookTable:
        """The hook table in which only the plugins called ``names`` act."""
        if names not in self._restricted:
            table = {hook: [impl for impl in found if impl.plugin in names] for hook, found in self.composition.table.items()}
            self._restricted[names] = HookTable(table, lambda: str(self.clock))
        return self._restricted[names]

    # ------------------------------------------------------------------ the model

    def attach(self, model: Model, optimization: Optimization, initial: Model) -> None:
        """Use ``model``, moved by ``optimization``; `reset` goes back to ``initial``."""
        self.model, self.optimization, self.initial = model, optimization, initial
        self.notice_growth()

    def notice_growth(self) -> None:
        """The model's parameters have been added or exchanged."""
        self.has_buffers = next(self.model.buffers(), None) is not None
        self.model_parameter_names = frozenset(name for name, _ in self.model.named_parameters())

    @property
    def is_special(self) -> bool:
        """Whether the options or a teacher ask for more than the shortest form of a step."""
        return self.options.microbatches > 1 or self.encode is not None or bool(self.averaged)

    def parameters(self) -> Mapping[str, Tensor]:
        """Every parameter by name, live."""
        return self.optimization.parameters()

    def snapshot(self, names: frozenset[str] | None = None) -> dict[str, Tensor]:
        """Detached copies of the parameters by name."""
        return {name: p.detach().clone() for name, p in self.parameters().items() if names is None or name in names}

    # ------------------------------------------------------------------ configuration and randomness

    def value(self, plugin: Plugin, option: str) -> float:
        """The present value of a number that may be tuned; while somebody differentiates with respect to it, a scalar with a graph."""
        found = self.values.get(f"{plugin.name}.{option}") if self.values else None
        return getattr(plugin.config, option) if found is None else found

    def generator(self, plugin: Plugin, purpose: str = "") -> torch.Generator:
        """A generator of the plugin's own for the update in progress; nothing else draws from it and it needs no saving."""
        return generator(self.seed, "plugin", plugin.name, purpose, self.clock.update)

    # ------------------------------------------------------------------ data

    def data(self, role: str = "train") -> Data | JoinedData:
        """The rows of ``role`` of the present experience."""
        if self.experience is None or role not in self.experience.data:
            roles = ", ".join(self.experience.data) if self.experience else "none: no experience is being trained"
            raise ConfigurationError(f"experience {self.clock.experience} has no rows of role {role!r} (it has: {roles})")
        return self.experience.data[role]

    def batches(self, data: Data | JoinedData, batch_size: int = 512, role: str = "train") -> Iterator[Batch]:
        """All rows of ``data`` in their own order, on the run's device: a full pass without training."""
        for positions in torch.arange(len(data)).split(batch_size):  # type: ignore[no-untyped-call]
            yield data.batch(positions, role).to(self.device)

    def shape_of(self, tap: str = "features") -> tuple[int, ...]:
        """Shape of one row of an activation: of the module at path ``tap``, or of ``"features"``; from a pass in evaluation mode."""
        if self.experience is None:
            raise ConfigurationError("shapes are known from before_experience on: ask for modules in collect_modules")
        batch = self.experience.data[self.experience.main_role].batch(torch.tensor([0])).to(self.device)
        paths = None if tap == "features" else resolve_taps(self.model, {tap: tap})
        with torch.no_grad(), evaluating(self.model), forked(self.device):
            return tuple(Forward(self.model, batch.x, taps=paths).tap(tap).shape[1:])

    def measure(self, role: str = "validation") -> dict[str, float]:
        """The metric of each task on the rows of ``role`` of the present experience, in evaluation mode; leaves no trace.

        Rows that plugins may be steered by: never test rows, which no experience holds.
        """
        data = self.data(role)
        good: dict[str, float] = {}
        rows: dict[str, int] = {}
        with torch.no_grad(), evaluating(self.model), forked(self.device):
            for batch in self.batches(data, self.options.evaluation_batch_size, role):
                outputs = Forward(self.model, batch.x)
                for task in batch.targets:
                    keep = batch.labelled_rows(task)
                    if bool(keep.any()):
                        found = self.tasks[task].total_metric(outputs[task][keep], batch.targets[task][keep])
                        good[task] = good.get(task, 0.0) + float(found)
                        rows[task] = rows.get(task, 0) + int(keep.sum())
        return {task: total / rows[task] for task, total in good.items()}

    def piece(self, experience: int, role: str, number: int) -> Data:
        """Piece ``number`` of the rows of ``role`` of an experience."""
        return self.stream[experience].data[role].parts()[number]

    # ------------------------------------------------------------------ services

    def importance(self, kind: Importance = "exact", data: Data | JoinedData | None = None, batch_size: int = 512) -> dict[str, Tensor]:
        """How much the trainable parameters of the model matter on some rows, by name; see `streamlearn.core.importance`.

        Args:
            kind: diagonal Fisher information, ``"exact"`` (expectation over the model's prediction) or ``"empirical"`` (the labels of
                the data), or ``"outputs"``: the absolute gradient of the squared norm of the outputs.
            data: default, the training rows of the present experience.
            batch_size: rows per pass; the result does not depend on it.
        """
        names = frozenset(self.optimization.trainable_names()) & self.model_parameter_names
        regression = frozenset(task.name for task in self.tasks.values() if task.kind == "regression")
        rows = self.batches(self.data() if data is None else data, batch_size)
        with forked(self.device):
            torch.default_generator.manual_seed(subseed(self.seed, "importance rows", self.clock.experience))  # of data that augment
            return importance(self.model, rows, kind, names, regression)

    def offer(self, memory: ReplayMemory, batch: Batch, role: str = "train", stored: Mapping[str, Tensor] | None = None) -> None:
        """Offer the rows of ``role`` in ``batch`` to ``memory``; call it once for each incoming row.

        ``stored`` holds columns ``(rows of the batch, size)`` that are kept beside them.
        """
        for segment in batch.segments:
            if segment.role == role:
                for number, piece in enumerate(self.data(role).parts()):
                    if (piece.source.name, piece.domain) == (segment.source, segment.domain) and tuple(
                        t.name for t in piece.tasks
                    ) == segment.tasks:
                        beside = {name: column[segment.rows] for name, column in (stored or {}).items()}
                        memory.insert(piece, (self.clock.experience, role, number), batch.index[segment.rows], stored=beside)
                        break

    def want_teachers(self, wanted: Mapping[str, Teacher]) -> None:
        """Remember which teachers are asked for; those that are given by the user exist from now on."""
        self._wanted_teachers = dict(wanted)
        self.averaged = {name: teacher.decay for name, teacher in wanted.items() if teacher.source == "ema"}
        made: dict[Teacher, Model] = {}
        for name, teacher in wanted.items():
            if teacher.source != "copy" and name not in self.teachers:
                if teacher not in made:
                    made[teacher] = make_teacher(teacher, self.model).to(self.device)
                self.teachers[name] = made[teacher]
        for name in self.averaged:
            self._grow_average(self.teachers[name])

    def _grow_average(self, teacher: Model) -> None:
        """An averaged teacher follows the model's growth; what is new starts at the model's own values."""
        if teacher.structure() == self.model.structure():
            return
        old = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
        teacher.restore_structure(self.model.structure())
        teacher.load_state_dict(self.model.state_dict())
        with torch.no_grad():
            for name, tensor in teacher.state_dict().items():
                if name in old:
                    tensor[tuple(slice(0, size) for size in old[name].shape)] = old[name]
        teacher.requires_grad_(False).eval()

    def average_teachers(self) -> None:
        """An update has been made: averages of the model's weights follow it."""
        done: set[int] = set()
        for name, decay in self.averaged.items():
            teacher = self.teachers[name]
            if id(teacher) not in done:
                done.add(id(teacher))
                average(teacher, self.model, decay)

    def refresh_teachers(self) -> None:
        """A new experience starts: copy the model, as the last experience left it, for those who learn from it."""
        made: dict[Teacher, Model] = {}
        for name, teacher in self._wanted_teachers.items():
            if teacher.source == "copy" and (teacher.refresh == "experience" or name not in self.teachers):
                if teacher not in made:
                    made[teacher] = make_teacher(teacher, self.model)
                self.teachers[name] = made[teacher]

    def reset(self) -> None:
        """Back to the initial weights, and optimisers without memory (GDumb, training from scratch).

        What a head has grown by since is drawn anew.
        """
        initial = {**dict(self.initial.named_parameters()), **dict(self.initial.named_buffers())}
        with forked(self.device), torch.no_grad():
            reinitialize(self.model.heads, subseed(self.seed, "reset", self.clock.experience))
            for name, tensor in [*self.model.named_parameters(), *self.model.named_buffers()]:
                if name in initial:
                    start = initial[name].to(tensor)
                    tensor[tuple(slice(0, size) for size in start.shape)] = start
        self.optimization.forget()

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resume needs."""
        distinct: dict[int, str] = {}
        for name, teacher in self.teachers.items():
            distinct.setdefault(id(teacher), name)
        teachers = {
            name: {"same_as": distinct[id(t)]} if distinct[id(t)] != name else {"structure": t.structure(), "tensors": dict(t.state_dict())}
            for name, t in self.teachers.items()
        }
        return {
            "clock": self.clock.to_json(),
            "model": {"structure": self.model.structure(), "tensors": dict(self.model.state_dict())},
            "frozen": [name for name, p in self.parameters().items() if not p.requires_grad and id(p) not in self.frozen_by_phase],
            "modules": {name: dict(module.state_dict()) for name, module in self.modules.items()},
            "optimization": self.optimization.state_dict(),
            "teachers": teachers,
            "memories": self.memories.state_dict(),
            "plugins": {plugin.name: plugin.state_dict() for plugin in self.plugins},
            "meter": self.meter.state_dict(),
            "values": dict(self.values),
            "classes_seen": {task: list(classes) for task, classes in self.classes_seen.items()},
            "initial": dict(self.initial.state_dict()) if self.keeps_initial else {},
            "record": self.record.position,
            "times": self.times.position,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave; the model must have its structure again and ``experience`` be entered."""
        self.model.load_state_dict(state["model"]["tensors"])
        if state["initial"]:
            self.initial.load_state_dict(state["initial"])
        for name, tensors in state["modules"].items():
            self.modules[name].load_state_dict(tensors)
        frozen = set(state["frozen"])
        for name, parameter in self.optimization.parameters().items():
            parameter.requires_grad_(name not in frozen)
        if "phase" in state["optimization"]:
            self.pending_optimization = state["optimization"]  # that optimiser exists once its phase is entered
        else:
            self.optimization.load_state_dict(state["optimization"])
        self._load_teachers(state["teachers"])
        self.memories.load_state_dict(state["memories"], self.piece)
        for plugin in self.plugins:
            plugin.load_state_dict(state["plugins"][plugin.name])
        self.meter.load_state_dict(state["meter"])
        self.values = dict(state.get("values", {}))
        self.classes_seen = {task: tuple(classes) for task, classes in state["classes_seen"].items()}

    def _load_teachers(self, saved: Mapping[str, Any]) -> None:
        for name, entry in saved.items():
            if "same_as" in entry:
                self.teachers[name] = self.teachers[entry["same_as"]]
                continue
            teacher = self.teachers.get(name) or make_teacher(Teacher(), self.model)
            if teacher.structure() != entry["structure"]:
                teacher = make_teacher(Teacher(), self.initial)
                teacher.restore_structure(entry["structure"])
            teacher.to(self.device).load_state_dict(entry["tensors"])
            self.teachers[name] = teacher
