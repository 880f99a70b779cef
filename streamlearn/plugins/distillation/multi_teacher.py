"""Many single-task teachers, one multi-task student."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from streamlearn.core.forward import Teacher
from streamlearn.core.plugin import Passes, Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.core.supervision import Supervision
from streamlearn.core.teaching import outputs_on, refuse_unknown_tasks
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Batch

__all__ = ["MultiTeacher", "softened_divergence"]


def softened_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² mean_i KL(softmax(t_i / T) || softmax(s_i / T)), a scalar.

    Args:
        student: logits s, ``(rows, classes)``.
        teacher: logits t, of the same shape.
        temperature: T, above 0.

    Example:
        >>> softened_divergence(torch.zeros(3, 2), torch.ones(3, 2), 2.0).item()
        0.0
    """
    log_p, log_q = torch.log_softmax(teacher / temperature, 1), torch.log_softmax(student / temperature, 1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1).mean()


class MultiTeacher(Plugin):
    r"""Distils one teacher for each task into one model for all.

    .. math:: P = λ \sum_k T^2 \, \frac1n \sum_i \mathrm{KL}\big(\mathrm{softmax}(t_k(x_i)/T) \,\|\, \mathrm{softmax}(s_k(x_i)/T)\big)

    with t_k the logits of the teacher of task k and s_k those of the model. T² keeps the gradients of the same size for every T (Hinton
    et al. 2015, section 2.1). In a regression the task's own squared error to the teacher's values takes the place of T² KL.

    ``mode="term"`` adds one named term for each task to the objective. ``mode="row"`` adds one row ``"<task>/teacher"`` for each task
    beside the labelled ones, so that loss weighting and gradient combination see it, also on rows without any label. A row is weighted
    by its share of the comparisons: where unlabelled rows join a batch, each row counts alike, labelled or not, and the labelled loss
    counts for less than in ``mode="term"``. The row's loss is T² times the cross-entropy, which differs from the divergence by the
    teacher's entropy, a constant.

    Teachers are read in evaluation mode and never trained. A teacher is any module whose output has as many columns as the model's for
    its task, or a model that has a head for that task.

    Args:
        teachers: ``{task: module}``, at least one. The modules are frozen.
        strength: λ, at least 0; 0 switches the method off.
        temperature: T, above 0.
        mode: ``"term"`` or ``"row"``.
        rows: on which rows a teacher is imitated: ``"asked"``, those that are asked on its task, labelled or not; ``"all"``, every row of
            the batch, which lets rows of one task carry what the teachers of the others know.

    Raises:
        ConfigurationError: a teacher is given for a task that the stream does not have, or its outputs do not fit the model's.

    Cost: one forward pass of each teacher per step. Memory: the teachers.

    Reference: Hinton et al., Distilling the knowledge in a neural network, arXiv 1503.02531, 2015; single-task teachers to one
    multi-task student: Clark et al., BAM!, ACL 2019, section 3. Deviation: Clark et al. mix the prediction into the target, with T = 1
    (the plugin ``bam`` does); here it stands beside the label.

    Example:
        >>> from streamlearn.plugins import MultiTeacher
        >>> MultiTeacher(teachers={"left": nn.Linear(4, 10), "right": nn.Linear(4, 10)}, mode="row").passes.teachers == {
        ...     "multi_teacher/left", "multi_teacher/right"}
        True
    """

    info = PluginInfo(
        name="multi_teacher",
        family="distillation",
        summary="Distils one teacher for each task into one model, also on rows without labels.",
        reference="Hinton et al. 2015, arXiv 1503.02531; Clark et al. 2019, ACL, arXiv 1907.04829, section 3",
        passes=lambda plugin: Passes(teachers=frozenset(f"{plugin.name}/{task}" for task in plugin.config.teachers)),
        memory="the teachers",
        ranks="local",
        strength="strength",
        streams=frozenset({"multitask"}),
    )

    class Config(PluginConfig):
        """Options of `MultiTeacher`."""

        teachers: dict[str, nn.Module] = Field(min_length=1)
        strength: Annotated[float, Tunable(0.01, 100.0, log=True)] = Field(1.0, ge=0)
        temperature: Annotated[float, Tunable(1.0, 10.0)] = Field(2.0, gt=0)
        mode: Literal["term", "row"] = "term"
        rows: Literal["asked", "all"] = "asked"

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse a teacher that would never be read."""
        refuse_unknown_tasks(self, self.config.teachers, run.stream)

    @hookimpl
    def collect_teachers(self, run: Run) -> dict[str, Teacher]:
        """One teacher for each task."""
        return {} if self.config.strength == 0 else {task: Teacher(module) for task, module in self.config.teachers.items()}

    @hookimpl
    def transform_supervision(self, supervision: tuple[Supervision, ...], step: Step) -> tuple[Supervision, ...]:
        """With ``mode="row"``: the teachers' predictions as targets of rows of their own."""
        strength, temperature = step.run.value(self, "strength"), step.run.value(self, "temperature")
        if self.config.mode != "row" or strength == 0:
            return supervision
        more = []
        for task, rows, student, teacher in self._pairs(step):
            record = Supervision(f"{task}/teacher", task, student, teacher, scale=strength, rows=rows)
            if step.run.tasks[task].kind == "classification":
                soft = torch.softmax(teacher / temperature, 1)
                record = record.replace(outputs=student / temperature, target=soft, scale=strength * temperature**2)
            more.append(record)
        return (*supervision, *more)

    @hookimpl
    def collect_terms(self, step: Step) -> dict[str, Tensor]:
        """With ``mode="term"``: one term for each task that has rows in the batch."""
        strength, temperature = step.run.value(self, "strength"), step.run.value(self, "temperature")
        if self.config.mode != "term" or strength == 0:
            return {}
        terms = {}
        for task, _, student, teacher in self._pairs(step):
            asked = step.run.tasks[task]
            divergence = (
                softened_divergence(student, teacher, temperature)
                if asked.kind == "classification"
                else asked.loss(student, teacher, mean=True)
            )
            terms[task] = strength * divergence
        return terms

    def _pairs(self, step: Step) -> Iterator[tuple[str, slice | Tensor | None, Tensor, Tensor]]:
        """For each task that has rows: its name, the rows, and what the model and the teacher say of them."""
        for task in self.config.teachers:
            rows = None if self.config.rows == "all" else rows_asked(step.batch, task)
            teacher = step.teacher(f"{self.name}/{task}")
            if teacher is None or (isinstance(rows, slice) and rows.start == rows.stop) or task not in step.run.tasks:
                continue  # a task that has not arrived yet has no head, and one without rows is a missing row
            told = outputs_on(self, teacher, task, rows)
            said = step.outputs.on(task, rows) if isinstance(rows, slice) else step.outputs[task]
            said = said[rows] if isinstance(rows, Tensor) else said
            if told.shape != said.shape:
                raise ConfigurationError(
                    f"plugin {self.name}: the teacher of task {task!r} gives outputs of shape {tuple(told.shape)}, the model "
                    f"{tuple(said.shape)}: give a teacher with as many outputs as the task has in the model"
                )
            yield task, rows, said, told.to(said.dtype)


def rows_asked(batch: Batch, task: str) -> slice | Tensor | None:
    """The rows that are asked on ``task``, labelled or not: ``None`` for all, a slice where they lie side by side, else positions."""
    spans = [segment.rows for segment in batch.segments if task in segment.tasks]
    if len(spans) == len(batch.segments):
        return None
    if not spans:
        return slice(0, 0)
    if all(a.stop == b.start for a, b in pairwise(spans)):
        return slice(spans[0].start, spans[-1].stop)
    return torch.cat([torch.arange(span.start, span.stop, device=batch.x.device) for span in spans])
