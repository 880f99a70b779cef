"""Learning without forgetting (LwF): keep the old outputs on the new inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.forward import Teacher
from streamlearn.core.plugin import Passes, Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.core.teaching import distillation_loss

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["LwF"]


class LwF(Plugin):
    r"""Learning without forgetting.

    .. math:: P = λ \sum_{t \in old} -\frac1n \sum_i \sum_{c \in C_t} p_{ic} \log q_{ic}

    where p and q are the softened outputs of the model as it was at the end of the last experience, and as it is now, for an old
    task t on the *current* rows, over the classes C_t of finished experiences (Li & Hoiem 2016, eqs. 2 and 3).

    Args:
        strength: λ, at least 0; 0 switches the term off. The paper uses 1.
        temperature: T, above 0. The paper uses 2.
        square_temperature: multiply by T², as Hinton et al. 2015 propose, so that the gradient does not shrink with T. Not in the paper.

    Cost: one forward pass of the teacher per step. Memory: 1 x the model.

    Reference: Li & Hoiem, Learning without forgetting, ECCV 2016. Deviation: with one head for all classes, C_t are the classes
    seen so far in that head; memory rows, when a replay plugin adds some, are not distilled on.

    Example:
        >>> from streamlearn.plugins import LwF
        >>> LwF(strength=1.0, temperature=2.0)
        LwF(strength=1.0, temperature=2.0)
    """

    info = PluginInfo(
        name="lwf",
        family="distillation",
        summary="Distils the model of the last experience into the present one, on the present inputs.",
        reference="Li & Hoiem 2016, ECCV, eqs. 2-3",
        passes=Passes(teachers=frozenset({"previous"})),
        memory="1 x the model",
        strength="strength",
    )

    class Config(PluginConfig):
        """Options of `LwF`."""

        strength: Annotated[float, Tunable(0.01, 100.0, log=True)] = Field(1.0, ge=0)
        temperature: Annotated[float, Tunable(1.0, 10.0)] = Field(2.0, gt=0)
        square_temperature: bool = False

    @hookimpl
    def collect_teachers(self, run: Run) -> dict[str, Teacher]:
        """The model as the last experience left it."""
        return {} if self.config.strength == 0 else {"previous": Teacher("copy", refresh="experience")}

    @hookimpl
    def collect_terms(self, step: Step) -> dict[str, Tensor]:
        """One distillation term for each old task."""
        run = step.run
        strength, temperature = run.value(self, "strength"), self.config.temperature
        teacher = step.teacher(f"{self.name}/previous")
        rows = step.batch.rows("train")
        if teacher is None or strength == 0 or rows.start == rows.stop:
            return {}
        factor = strength * (temperature**2 if self.config.square_temperature else 1.0)
        terms = {}
        for task, classes in run.classes_seen.items():
            if run.tasks[task].kind != "classification" or len(classes) < 2:
                continue  # a single class has probability 1 whatever the logits: there is nothing to keep
            old, new = teacher.on(task, rows), step.outputs.on(task, rows)
            if len(classes) < new.shape[1]:
                chosen = torch.tensor(classes, device=new.device)
                old, new = old.index_select(1, chosen), new.index_select(1, chosen)
            terms[task] = factor * distillation_loss(new, old, temperature)
        return terms
