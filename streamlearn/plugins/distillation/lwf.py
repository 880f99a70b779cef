"""Learning without forgetting (LwF): keep the old outputs on the new inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.forward import Teacher
from streamlearn.core.plugin import Passes, Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.core.teaching import distillation_loss

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Experience

__all__ = ["LwF"]


class LwF(Plugin):
    r"""Learning without forgetting.

    .. math:: P = λ \sum_{t \in old} -\frac1n \sum_i \sum_{c \in C_t} p_{ic} \log q_{ic}

    where p and q are the softened outputs of the model as it was at the end of the last experience, and as it is now, for an old
    task t on the *current* rows, over the classes C_t of finished experiences (Li & Hoiem 2016, eqs. 2 and 3).

    With ``classes="old"`` p and q are both normalised over C_t: the term says nothing of a class that is new in the same head. With
    ``classes="all"`` q is normalised over those of the present experience, too, and p is 0 there, so that the term also holds the new
    outputs down on the present rows. The two are the same where no old head has new classes: with one head for each task, and with
    domains.

    The term of a head counts once, however many experiences it has been trained in. ``by_experience=True`` multiplies it by their
    number. The published numbers of van de Ven et al. 2022 are those of ``LwF(classes="all")`` for class-incremental streams, of
    ``LwF(by_experience=True)`` for domain-incremental ones, where experience k has the factor k - 1, and of either for one head a task:
    there the mean over the old heads times k - 1, as that code has it, is the sum over the old heads.

    Args:
        strength: λ, at least 0; 0 switches the term off. The paper uses 1.
        temperature: T, above 0. The paper uses 2.
        square_temperature: multiply by T², as Hinton et al. 2015 propose, so that the gradient does not shrink with T. Not in the paper.
        classes: ``"old"`` normalises the model's outputs over the classes of finished experiences, ``"all"`` over those and the ones of
            the present experience.
        by_experience: multiply the term of each task by the number of finished experiences that had rows of it.

    Cost: one forward pass of the teacher per step. Memory: 1 x the model.

    Reference: Li & Hoiem, Learning without forgetting, ECCV 2016; van de Ven et al., Three types of incremental learning, Nature Machine
    Intelligence 4, 2022, for ``classes="all"`` and ``by_experience``. Deviation: with one head for all classes, C_t are the classes
    seen so far in that head; memory rows, when a replay plugin adds some, are not distilled on.

    Example:
        >>> from streamlearn.plugins import LwF
        >>> LwF(strength=1.0, temperature=2.0)
        LwF(strength=1.0, temperature=2.0)
        >>> LwF(classes="all")
        LwF(classes='all')
    """

    info = PluginInfo(
        name="lwf",
        family="distillation",
        summary="Distils the model of the last experience into the present one, on the present inputs.",
        reference="Li & Hoiem 2016, ECCV, eqs. 2-3",
        passes=Passes(teachers=frozenset({"previous"})),
        memory="1 x the model",
        strength="strength",
        vmappable=True,
    )

    class Config(PluginConfig):
        """Options of `LwF`."""

        strength: Annotated[float, Tunable(0.01, 100.0, log=True)] = Field(1.0, ge=0)
        temperature: Annotated[float, Tunable(1.0, 10.0)] = Field(2.0, gt=0)
        square_temperature: bool = False
        classes: Literal["old", "all"] = "old"
        by_experience: bool = False

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._finished: dict[str, int] = {}  # by task, the experiences that had rows of it

    @hookimpl
    def collect_teachers(self, run: Run) -> dict[str, Teacher]:
        """The model as the last experience left it."""
        return {} if self.config.strength == 0 else {"previous": Teacher("copy", refresh="experience")}

    @hookimpl
    def collect_terms(self, step: Step) -> dict[str, Tensor]:
        """One distillation term for each old task."""
        run = step.run
        strength, temperature = run.value(self, "strength"), run.value(self, "temperature")
        teacher = step.teacher(f"{self.name}/previous")
        rows = step.batch.rows("train")
        if teacher is None or strength == 0 or rows.start == rows.stop:
            return {}
        factor = strength * (temperature**2 if self.config.square_temperature else 1.0)
        terms = {}
        for task, known in run.classes_seen.items():
            compared = self._compared(task, known, run)
            if run.tasks[task].kind != "classification" or len(compared) < 2:
                continue  # a single class has probability 1 whatever the logits: there is nothing to keep
            old, new = teacher.on(task, rows), step.outputs.on(task, rows)
            old, new = _columns(old, known), _columns(new, compared)
            of_old = None if compared == known else torch.tensor([compared.index(c) for c in known], device=new.device)
            often = self._finished.get(task, 1) if self.config.by_experience else 1
            terms[task] = factor * often * distillation_loss(new, old, temperature, of_old)
        return terms

    def _compared(self, task: str, known: tuple[int, ...], run: Run) -> tuple[int, ...]:
        """The classes over which the model's outputs are normalised, ascending."""
        if self.config.classes == "old" or run.experience is None:
            return known
        return tuple(sorted({*known, *run.experience.classes.get(task, ())}))

    @hookimpl
    def after_experience(self, experience: Experience, run: Run) -> None:
        """Count the experiences of each task."""
        for task in experience.classes:
            self._finished[task] = self._finished.get(task, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        """The number of finished experiences of each task."""
        return {"finished": dict(self._finished)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._finished = {task: int(number) for task, number in state.get("finished", {}).items()}


def _columns(outputs: Tensor, classes: tuple[int, ...]) -> Tensor:
    """The columns of ``classes``, which are all that there are in most cases."""
    return outputs if len(classes) == outputs.shape[1] else outputs.index_select(1, torch.tensor(classes, device=outputs.device))
