"""Bias correction (BiC): two numbers per experience undo the preference for new classes."""

from __future__ import annotations

import copy
import glob
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from streamlearn.core.forward import Teacher
from streamlearn.core.phases import Phase, select_names
from streamlearn.core.plugin import Passes, Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.teaching import distillation_loss
from streamlearn.errors import ConfigurationError
from streamlearn.streams.data import Data, JoinedData, join

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.core.supervision import Supervision
    from streamlearn.models import Heads, Model, SharedOutput
    from streamlearn.streams import Batch, Experience, Stream, Task

__all__ = ["BiC", "CorrectedHeads", "balanced_choice"]

_PHASE = "bias"
_EVERYTHING = 2**62  # rows asked of the memory: all it has


def balanced_choice(classes: Tensor, each: int, generator: torch.Generator) -> Tensor:
    """Positions of ``each`` rows of every class (fewer where a class has fewer), drawn without replacement, ascending.

    Args:
        classes: class numbers ``(rows,)``.
        each: rows per class, at least 0.
        generator: what is drawn from.

    Example:
        >>> chosen = balanced_choice(torch.tensor([0, 0, 0, 1, 1, 2]), 2, torch.Generator().manual_seed(0))
        >>> torch.tensor([0, 0, 0, 1, 1, 2])[chosen].tolist()
        [0, 0, 1, 1, 2]
    """
    order = torch.randperm(len(classes), generator=generator)
    chosen = [order[classes[order] == number][:each] for number in torch.unique(classes).tolist()]
    return torch.cat([*chosen, torch.zeros(0, dtype=torch.int64)]).sort().values


class _Affine(nn.Module):
    """α and β of the classes of one experience."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))

    def reset_parameters(self) -> None:
        """Back to no correction."""
        with torch.no_grad():
            self.alpha.fill_(1.0)
            self.beta.fill_(0.0)


class CorrectedHeads(nn.Module):
    """Heads whose logits o become α_k o + β_k for the classes that experience k brought.

    Args:
        inner: the heads that are corrected.
        brought: for each experience but the first that brings classes: its number and the classes.
    """

    def __init__(self, inner: Heads | SharedOutput, brought: Mapping[int, Sequence[int]]) -> None:
        super().__init__()
        self.inner = inner
        self.bias = nn.ModuleDict({str(number): _Affine() for number in brought})
        self._group = torch.zeros(1 + max((c for classes in brought.values() for c in classes), default=-1), dtype=torch.int64)
        for place, classes in enumerate(brought.values(), 1):
            self._group[list(classes)] = place

    def grow(self, task: Task) -> bool:
        """Make room for ``task``; whether anything changed."""
        return self.inner.grow(task)

    def has(self, task: str) -> bool:
        """Whether there is a head for ``task``."""
        return self.inner.has(task)

    def sizes(self) -> dict[str, int]:
        """Outputs by task."""
        return self.inner.sizes()

    def forward(self, features: Tensor, task: str) -> Tensor:
        """The corrected outputs for ``task``, ``(rows, size)``."""
        logits: Tensor = self.inner(features, task)
        width = logits.shape[1]
        group = nn.functional.pad(self._group[:width], (0, max(width - len(self._group), 0))).to(logits.device)
        layers: list[Any] = list(self.bias.values())
        alpha = torch.stack([logits.new_ones(()), *(layer.alpha for layer in layers)])[group]
        beta = torch.stack([logits.new_zeros(()), *(layer.beta for layer in layers)])[group]
        return alpha * logits + beta


class BiC(Plugin):
    r"""Bias correction for class-incremental learning in one head, on top of replay and distillation.

    .. math:: L = (1 - λ) L_c + λ L_d, \quad λ = \frac{n}{n + m}, \qquad
              L_d = -\frac1N \sum_i \sum_{c \le n} \hat π_{ic} \log π_{ic}

    with n old and m new classes, L_c the task's own loss, and π̂, π the outputs of the last experience's model and of this one over the
    old classes, softened by T. Then a second phase, ``"bias"``, holds everything but α and β and fits them on held-out rows, as many of
    each class:

    .. math:: q_c = o_c \;\text{for old classes}, \qquad q_c = α_k o_c + β_k \;\text{for the classes of experience } k

    The correction is a layer of the model (``heads.bias.<k>.alpha`` and ``.beta``), so training, teachers and evaluation agree on it. A
    share of the replay memory, and as many rows of each new class, are held out; rows of the memory that are held out have weight 0 in
    the main phase.

    Args:
        fraction: of the rows that the memory has for a class on average, which are held out for each class (one at least), in (0, 1).
        epochs: of the second phase, at least 1.
        learning_rate: of Adam in the second phase, above 0.
        temperature: T, above 0. The paper uses 2.
        memory: name of the replay memory of the plugin that provides it.

    Raises:
        ConfigurationError: the stream has more than one task, or one that is no classification.

    Cost: one forward pass of the teacher per step, and a second phase of ``epochs`` passes over a few rows. Memory: 1 x the model.

    Reference: Wu et al., Large scale incremental learning, CVPR 2019, eqs. 1-5. Deviations: corrections of earlier experiences stay in
    place, as in most codes; which memory rows are held out is drawn anew in each experience; the second phase runs the model in evaluation
    mode; with a head that has room for classes yet to come, these take part in L_c.

    Example:
        >>> from streamlearn.plugins import BiC
        >>> BiC(fraction=0.2, epochs=50)
        BiC(epochs=50, fraction=0.2)
    """

    info = PluginInfo(
        name="bic",
        family="distillation",
        summary="Distils, then undoes the head's preference for new classes by two numbers fitted on balanced held-out rows.",
        reference="Wu et al. 2019, CVPR, eqs. 1-5",
        requires=frozenset({"replay"}),
        after=frozenset({"replay", "sharing", "multi_head"}),
        passes=Passes(teachers=frozenset({"previous"})),
        memory="1 x the model",
        ranks="unsupported",
        streams=frozenset({"class_incremental"}),
    )

    class Config(PluginConfig):
        """Options of `BiC`."""

        fraction: float = Field(0.1, gt=0, lt=1)
        epochs: int = Field(100, ge=1)
        learning_rate: float = Field(0.01, gt=0)
        temperature: float = Field(2.0, gt=0)
        memory: str = Field("main", min_length=1)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._held: dict[str, Tensor] = {}  # rows held out of the present experience, by source
        self._new = 0  # classes that it brings

    @hookimpl
    def transform_model(self, model: Model, run: Run) -> Model:
        """Put the correction behind the heads."""
        corrected = copy.copy(model)
        corrected._modules = dict(model._modules)  # the user's own object keeps its heads
        corrected.heads = CorrectedHeads(model.heads, _brought(run.stream))  # type: ignore[assignment]
        return corrected

    @hookimpl
    def collect_teachers(self, run: Run) -> dict[str, Teacher]:
        """The model as the last experience left it, corrected."""
        return {"previous": Teacher("copy", refresh="experience")}

    @hookimpl
    def before_experience(self, experience: Experience, run: Run) -> None:
        """Choose the rows that are held out."""
        self._held, self._new = {}, 0
        ((task, classes),) = experience.classes.items() or (("", ()),)
        fresh = set(classes) - set(run.classes_seen.get(task, ()))
        if not experience.index or not fresh:
            return
        self._new = len(fresh)
        memory = run.memories.draw(self.config.memory, _EVERYTHING, run.clock.update, self.name)
        if memory is None:
            return
        random = run.generator(self, "held out")
        known = memory.targets[task]
        each = max(1, int(self.config.fraction * len(known) / len(torch.unique(known))))
        self._hold(memory, balanced_choice(known, each, random))
        rows = run.data().batch(torch.arange(len(run.data())))
        labels = rows.targets[task]
        new = torch.isin(labels, torch.tensor(sorted(fresh))).nonzero().squeeze(1)
        smallest = int(labels[new].bincount()[sorted(fresh)].min())
        self._hold(rows, new[balanced_choice(labels[new], min(each, max(smallest - 1, 0)), random)])

    def _hold(self, batch: Batch, positions: Tensor) -> None:
        for segment in batch.segments:
            here = positions[(positions >= segment.start) & (positions < segment.stop)]
            before = self._held.get(segment.source, torch.zeros(0, dtype=torch.int64))
            self._held[segment.source] = torch.unique(torch.cat([before, batch.index[here]]))

    @hookimpl
    def transform_phases(self, phases: tuple[Phase, ...], experience: Experience, run: Run) -> tuple[Phase, ...]:
        """Hold rows out of the main phase, and append the one that fits the correction."""
        kept = []
        for phase in phases:
            free = select_names(run.parameters(), phase.trainable) - select_names(run.parameters(), ("heads.bias.*",))
            data = self._split(phase.data, held=False) if phase.name == "main" else phase.data
            kept.append(phase.replace(data=data, trainable=tuple(glob.escape(name) for name in sorted(free))))
        if not self._held:
            return tuple(kept)
        seen = join([data["train"] for data in (run.stream[n].data for n in range(experience.index + 1)) if "train" in data])
        own = (f"heads.bias.{experience.index}.*",)
        optimizer = partial(torch.optim.Adam, lr=self.config.learning_rate)
        held = self._split(seen, held=True)
        return (*kept, Phase(_PHASE, held, self.config.epochs, trainable=own, optimizer=optimizer, only=frozenset({self.name})))

    def _split(self, data: Data | JoinedData, *, held: bool) -> Data | JoinedData:
        """The rows of ``data`` that are held out, or the others."""
        if not self._held:
            return data
        nothing = torch.zeros(0, dtype=torch.int64)
        masks = [torch.isin(part.indices, self._held.get(part.source.name, nothing)) == held for part in data.parts()]
        return join([part.subset(mask.nonzero().squeeze(1)) for part, mask in zip(data.parts(), masks, strict=True)])

    @hookimpl
    def before_step(self, step: Step) -> None:
        """Only α and β are fitted in the second phase: normalisation and dropout rest as in the evaluation."""
        if _fits(step):
            step.run.model.eval()

    @hookimpl
    def transform_supervision(self, supervision: tuple[Supervision, ...], step: Step) -> tuple[Supervision, ...]:
        """(1 - λ) L_c without the rows that are held out."""
        if not self._new or _fits(step):
            return supervision
        keep, changed = self._kept(step.batch), []
        for record in supervision:
            weight = record.weight
            if keep is not None:
                own = (keep if record.rows is None else keep[record.rows]).to(record.outputs.dtype)
                weight = own if weight is None else weight * own
            changed.append(record.replace(weight=weight, scale=record.scale * (1 - self._balance(record.task, step.run))))
        return tuple(changed)

    @hookimpl
    def collect_terms(self, step: Step) -> dict[str, Tensor]:
        """λ L_d."""
        teacher = step.teacher(f"{self.name}/previous")
        if teacher is None or not self._new or _fits(step):
            return {}
        keep, terms = self._kept(step.batch), {}
        for task, classes in step.run.classes_seen.items():
            old, new = teacher[task], step.outputs[task]
            if keep is not None:
                old, new = old[keep], new[keep]
            if len(new):
                chosen = torch.tensor(classes, device=new.device)
                loss = distillation_loss(new.index_select(1, chosen), old.index_select(1, chosen), self.config.temperature)
                terms[task] = self._balance(task, step.run) * loss
        return terms

    def _balance(self, task: str, run: Run) -> float:
        """λ, the share of the old classes."""
        old = len(run.classes_seen.get(task, ()))
        return old / (old + self._new)

    def _kept(self, batch: Batch) -> Tensor | None:
        """Which rows of the batch are not held out, bool ``(rows,)``; ``None`` when none is."""
        keep = torch.ones(len(batch), dtype=torch.bool)
        for segment in batch.segments:
            if segment.source in self._held:
                keep[segment.rows] = ~torch.isin(batch.index[segment.rows], self._held[segment.source])
        return None if bool(keep.all()) else keep.to(batch.x.device)

    def state_dict(self) -> dict[str, Any]:
        """The rows held out of the present experience, and how many classes it brings."""
        return {"held": dict(self._held), "new": self._new}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._held = {source: index.cpu() for source, index in state["held"].items()}  # compared with identities, which stay there
        self._new = int(state["new"])


def _fits(step: Step) -> bool:
    """Whether the second phase is on."""
    return step.run.phase is not None and step.run.phase.name == _PHASE


def _brought(stream: Stream) -> dict[int, tuple[int, ...]]:
    """For each experience but the first that brings classes: its number and the classes.

    Raises:
        ConfigurationError: there is more than one task, or one that is no classification.
    """
    tasks = {task.name: task for experience in stream for task in experience.tasks}
    if len(tasks) != 1 or any(task.kind != "classification" for task in tasks.values()):
        told = ", ".join(f"{task.name} ({task.kind})" for task in tasks.values())
        raise ConfigurationError(
            f"plugin bic corrects one head for all classes, but stream {stream.name!r} has the tasks {told}: use a class-incremental stream"
        )
    seen: set[int] = set()
    brought = {}
    for experience in stream:
        fresh = {c for classes in experience.classes.values() for c in classes} - seen
        seen |= fresh
        if experience.index and fresh:
            brought[experience.index] = tuple(sorted(fresh))
    return brought
