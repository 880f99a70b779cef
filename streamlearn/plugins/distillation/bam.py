"""Teacher annealing (BAM): from the teacher's prediction to the label, in the course of training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from streamlearn.core.forward import Teacher
from streamlearn.core.plugin import Passes, Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.teaching import as_probabilities, outputs_on, refuse_unknown_tasks
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.core.supervision import Supervision
    from streamlearn.streams import Experience

__all__ = ["BAM", "annealed_target"]


def annealed_target(target: Tensor, prediction: Tensor, progress: float | Tensor) -> Tensor:
    """λ y + (1 - λ) p, shaped like ``target``.

    Args:
        target: y, probabilities ``(rows, classes)`` or regressed values ``(rows, size)``.
        prediction: p of the teacher, of the same shape.
        progress: λ in [0, 1], a number or a column ``(rows, 1)``.

    Example:
        >>> annealed_target(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.5, 0.5]]), 0.5)
        tensor([[0.7500, 0.2500]])
    """
    return progress * target + (1 - progress) * prediction


class BAM(Plugin):
    r"""Teacher annealing: distillation in which the student outgrows its teachers.

    .. math:: \tilde y = λ y + (1 - λ) \, \mathrm{softmax}(t_k(x)), \quad λ = 0 → 1

    The target of task k goes linearly from the prediction of its teacher t_k to the label y, in the course of each phase of training
    (λ is ``run.clock.progress``, which moves with every batch). In a regression it goes from the value that the teacher predicts. As it
    is the *target* that changes, weightings and combiners see one row for each task, and it holds under a look-ahead.

    Teachers are read in evaluation mode and never trained; a task without a teacher keeps its labels. A teacher is any module whose
    output has as many columns as the model's for its task, or a model that has a head for that task.

    Without ``teachers`` the model as the last experience left it is the teacher of every task that it was trained on. It is only asked
    about the classes of finished experiences: its prediction is over those, and a row of another class keeps its label.

    Args:
        teachers: ``{task: module}``; empty for the model of the last experience. The modules are frozen.

    Raises:
        ConfigurationError: a teacher is given for a task that the stream does not have, or its outputs do not fit the model's.

    Cost: one forward pass of each teacher per step. Memory: the teachers, or 1 x the model.

    Reference: Clark et al., BAM! Born-again multi-task networks for natural language understanding, ACL 2019, section 3.
    Deviations: the paper knows no stream: here λ starts at 0 in each experience, and the model of the last experience as teacher is
    ours. A class that a mask excludes (``active``) gets no part of the teacher's prediction.

    Example:
        >>> from streamlearn.plugins import BAM
        >>> BAM()
        BAM()
        >>> sorted(BAM(teachers={"digits": torch.nn.Linear(4, 10)}).config.teachers)
        ['digits']
    """

    info = PluginInfo(
        name="bam",
        family="distillation",
        summary="Anneals the target of each task from its teacher's prediction to the label.",
        reference="Clark et al. 2019, ACL, arXiv 1907.04829, section 3 (teacher annealing)",
        before=frozenset({"multi_teacher"}),  # whose rows have a teacher's prediction for target already
        after=frozenset({"er_ace"}),  # whose mask says which classes may have a part of the target
        passes=lambda plugin: Passes(
            teachers=frozenset(f"{plugin.name}/{task}" for task in plugin.config.teachers) or frozenset({"previous"})
        ),
        memory="the teachers, or 1 x the model",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `BAM`."""

        teachers: dict[str, nn.Module] = Field(default_factory=dict)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._trained: list[str] = []  # the tasks of finished experiences

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse a teacher that would never be read."""
        refuse_unknown_tasks(self, self.config.teachers, run.stream)

    @hookimpl
    def collect_teachers(self, run: Run) -> dict[str, Teacher]:
        """One teacher for each task, or the model as the last experience left it."""
        if self.config.teachers:
            return {task: Teacher(module) for task, module in self.config.teachers.items()}
        return {"previous": Teacher("copy", refresh="experience")}

    @hookimpl
    def transform_supervision(self, supervision: tuple[Supervision, ...], step: Step) -> tuple[Supervision, ...]:
        """Mix the teachers' predictions into the targets."""
        return tuple(self._annealed(record, step) for record in supervision)

    def _annealed(self, record: Supervision, step: Step) -> Supervision:
        own = record.task in self.config.teachers
        if not own and (self.config.teachers or record.task not in self._trained):
            return record
        teacher = step.teacher(f"{self.name}/{record.task if own else 'previous'}")
        if teacher is None:
            return record
        told = outputs_on(self, teacher, record.task, record.rows).to(record.outputs.dtype)
        if own or step.run.tasks[record.task].kind == "regression":
            _refuse_misfit(self, record, told)
        progress: float | Tensor = step.run.clock.progress
        if step.run.tasks[record.task].kind == "regression":
            return record.replace(target=annealed_target(record.target, told, progress))
        labels = as_probabilities(record.target, record.outputs, record.task)
        known = None if own else _mask(step.run.classes_seen.get(record.task, ()), record.outputs)
        if known is not None:
            told = nn.functional.pad(told, (0, known.shape[0] - told.shape[1]))  # a head that has grown since
            progress = 1 - (1 - progress) * labels[:, known].sum(1, keepdim=True)
        return record.replace(target=annealed_target(labels, _softmax_over(told, _both(known, record.active)), progress))

    @hookimpl
    def after_experience(self, experience: Experience, run: Run) -> None:
        """From now on the model of the last experience knows these tasks."""
        self._trained += [task.name for task in experience.tasks if task.name not in self._trained]

    def state_dict(self) -> dict[str, Any]:
        """The tasks of finished experiences."""
        return {"trained": list(self._trained)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._trained = list(state["trained"])


def _refuse_misfit(plugin: Plugin, record: Supervision, told: Tensor) -> None:
    if told.shape != record.outputs.shape:
        raise ConfigurationError(
            f"plugin {plugin.name}: the teacher of task {record.task!r} gives outputs of shape {tuple(told.shape)}, the model "
            f"{tuple(record.outputs.shape)}: give a teacher with as many outputs as the task has in the model"
        )


def _mask(classes: Iterable[int], outputs: Tensor) -> Tensor:
    """Which columns of ``outputs`` are ``classes``, bool ``(columns,)``."""
    mask = torch.zeros(outputs.shape[1], dtype=torch.bool, device=outputs.device)
    mask[list(classes)] = True
    return mask


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a & b


def _softmax_over(logits: Tensor, classes: Tensor | None) -> Tensor:
    """Softmax over the classes that the mask selects; the others have probability 0."""
    return torch.softmax(logits if classes is None else logits.masked_fill(~classes, torch.finfo(logits.dtype).min / 2), 1)
