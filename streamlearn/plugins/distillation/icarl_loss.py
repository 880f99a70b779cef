"""The loss of iCaRL: binary cross-entropy on labels for new classes, on the old model's outputs for old ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from streamlearn.core.forward import Teacher
from streamlearn.core.plugin import Passes, Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.core.supervision import unreduced
from streamlearn.core.teaching import as_probabilities, outputs_on

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.core.supervision import Supervision

__all__ = ["ICaRLLoss", "icarl_loss"]


def icarl_loss(
    outputs: Tensor,
    labels: Tensor,
    old: Sequence[int] = (),
    teacher: Tensor | None = None,
    active: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """-Σ_c [q_ic log g_ic + (1 - q_ic) log(1 - g_ic)] with g = sigmoid(outputs), for each row i: ``(rows,)``.

    q_ic is sigmoid(teacher_ic / temperature) for the old classes c and the label for the others.

    Args:
        outputs: logits ``(rows, classes)``.
        labels: one-hot, or probabilities, of the same shape.
        old: the old classes.
        teacher: logits of the old model, with a column for each old class at least; needed when there are old classes.
        active: which outputs take part in the sum, bool, ``(classes,)`` or ``(rows, classes)``; default all.
        temperature: of the old model's outputs, above 0.

    Example:
        >>> icarl_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])).item()  # 2 log 2
        1.3862943649291992
    """
    target = labels
    if teacher is not None and len(old):
        columns = torch.tensor(old, device=outputs.device)
        target = labels.index_copy(1, columns, torch.sigmoid(teacher.index_select(1, columns) / temperature).to(labels.dtype))
    each = binary_cross_entropy_with_logits(outputs, target, reduction="none")
    return (each if active is None else each.masked_fill(~active, 0.0)).sum(1)


class ICaRLLoss(Plugin):
    r"""Classification and distillation of iCaRL in one loss.

    .. math:: \ell_i = -\sum_{y \in new} \big[δ_{y y_i} \log g_y(x_i) + δ_{y \ne y_i} \log(1 - g_y(x_i))\big]
              - \sum_{y \in old} \big[q_i^y \log g_y(x_i) + (1 - q_i^y) \log(1 - g_y(x_i))\big]

    where g_y is the sigmoid of output y and q_i^y = sigmoid(o_i^y / T) with the outputs o of the model as the last experience left it. Old
    are the classes of finished experiences that have no rows in the present one; all others are new. Every row, also one of a replay
    memory, is compared in this way, and the sum over the classes is taken as it stands in the paper (several codes divide it by the
    number of classes: a learning rate that suits them is to be divided by as much).

    This is the loss alone. iCaRL also replays exemplars (``Replay(policy="herding")``) and classifies by the nearest mean of them
    (``NearestClassMean``).

    Args:
        temperature: T, above 0. The paper has 1. The published numbers of van de Ven et al. 2022 have 2, which their code applies to the
            old model's outputs and not to the new one's.

    Cost: one forward pass of the teacher per step, from the second experience on. Memory: 1 x the model.

    Reference: Rebuffi et al., iCaRL: Incremental classifier and representation learning, CVPR 2017, eq. 1 and algorithm 3. Deviations:
    a class that comes up again is learned from its labels, because a stream may repeat classes, which the paper's do not; with a head that
    has room for classes yet to come these have target 0, as in the authors' code; a regression keeps its own loss. Avalanche 0.6 takes
    the mean over the outputs in place of the sum.

    Example:
        >>> from streamlearn.plugins import ICaRLLoss
        >>> ICaRLLoss()
        ICaRLLoss()
    """

    info = PluginInfo(
        name="icarl_loss",
        family="distillation",
        summary="Binary cross-entropy on every output: labels for new classes, the old model's outputs for old ones.",
        reference="Rebuffi et al. 2017, CVPR, eq. 1 and algorithm 3",
        passes=Passes(teachers=frozenset({"previous"})),
        memory="1 x the model",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `ICaRLLoss`."""

        temperature: Annotated[float, Tunable(1.0, 10.0)] = Field(1.0, gt=0)

    @hookimpl
    def collect_teachers(self, run: Run) -> dict[str, Teacher]:
        """The model as the last experience left it."""
        return {"previous": Teacher("copy", refresh="experience")}

    @hookimpl
    def provide_task_losses(self, supervision: tuple[Supervision, ...], step: Step) -> list[Tensor]:
        """One loss for each row of each record."""
        return [self._loss(record, step) for record in supervision]

    def _loss(self, record: Supervision, step: Step) -> Tensor:
        run = step.run
        if run.tasks[record.task].kind != "classification":
            return unreduced(record, run.tasks)
        labels = as_probabilities(record.target, record.outputs, record.task)
        old = old_classes(run, record.task)
        teacher = step.teacher(f"{self.name}/previous") if old else None
        told = None if teacher is None else outputs_on(self, teacher, record.task, record.rows)
        return icarl_loss(record.outputs, labels, old, told, record.active, step.run.value(self, "temperature"))


def old_classes(run: Run, task: str) -> list[int]:
    """The classes of finished experiences that have no rows in the present one, ascending."""
    present = set() if run.experience is None else set(run.experience.classes.get(task, ()))
    return [number for number in run.classes_seen.get(task, ()) if number not in present]
