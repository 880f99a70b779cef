"""Weight aligning (WA): the head's weights of new classes are brought to the length of those of old ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from streamlearn.core.forward import Teacher
from streamlearn.core.plugin import Passes, Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.core.teaching import distillation_loss
from streamlearn.errors import ConfigurationError
from streamlearn.models import Heads

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.core.supervision import Supervision
    from streamlearn.models import Model

__all__ = ["WA", "aligning_factor"]


def aligning_factor(weight: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """γ, the mean norm of the rows ``old`` of ``weight`` over that of the rows ``new``; 1 where the latter is 0.

    Args:
        weight: a head's matrix ``(classes, features)``.
        old: classes, at least one.
        new: classes, at least one.

    Example:
        >>> aligning_factor(torch.tensor([[3.0, 4.0], [0.0, 10.0]]), [0], [1]).item()
        0.5
    """
    norms = weight.norm(dim=1)
    before, now = norms[list(old)].mean(), norms[list(new)].mean()
    return torch.where(now == 0, torch.ones_like(now), before / now)


class WA(Plugin):
    r"""Distillation, and weight aligning at the end of each experience, for class-incremental learning in one head.

    .. math:: L = (1 - λ) L_c + λ L_d, \quad λ = s \, \frac{n}{n + m}, \qquad
              L_d = -\frac1N \sum_i \sum_{c \le n} \hat π_{ic} \log π_{ic}

    with n old and m new classes, L_c the task's own loss, π̂ and π the outputs of the last experience's model and of this one over the old
    classes, softened by T, and s the strength. All rows of a batch are distilled on, those of a replay memory too. When the main phase
    of an experience ends, the weights w of the new classes in the head are scaled,

    .. math:: w_c \leftarrow γ w_c \;\text{for new classes } c, \qquad
              γ = \frac{\frac1n \sum_{c \in old} \lVert w_c \rVert}{\frac1m \sum_{c \in new} \lVert w_c \rVert},

    so that their logits are γ times as large: the order within the old classes and within the new ones stays. It is a write of
    parameters: the model that teaches the next experience is the aligned one, and so is what other plugins remember of the weights.

    Each head is treated by itself, in experiences that bring it new classes beside old ones; elsewhere the method does nothing, so with
    one head for each task and with domains it has no effect. Old are the classes of finished experiences, new the ones of the present
    experience that are not old; outputs for classes yet to come are left alone.

    Args:
        strength: s, in [0, 1]; 0 aligns only, without a teacher. The paper has 1.
        temperature: T, above 0. The paper uses 2.
        clip: restrict the head's weights to be at least 0, after every update, as the paper does: the length of a row then speaks for
            the size of the logit, if features are not negative either (behind a ReLU). Without it γ may well favour the new classes.
            Several published codes leave it out.
        scale_bias: whether the new classes' biases are scaled, too, as their logits are in the paper; several published codes leave them.

    Raises:
        ConfigurationError: the model is a plain module without a linear layer that gives its outputs.

    Cost: one forward pass of the teacher per step, none with ``strength=0``. Memory: 1 x the model.

    Reference: Zhao et al., Maintaining discrimination and fairness in class incremental learning, CVPR 2020, the sections on distillation
    and on weight aligning. Deviations: with a head that has room for classes yet to come, these take part in L_c; the paper always
    replays exemplars, here it is up to ``Replay``.

    Example:
        >>> from streamlearn.plugins import WA
        >>> WA(strength=0.0, clip=False)
        WA(clip=False, strength=0.0)
    """

    info = PluginInfo(
        name="wa",
        family="distillation",
        summary="Distils, then scales the head's weights of new classes to the mean length of those of old ones.",
        reference="Zhao et al. 2020, CVPR, sections on distillation and on weight aligning",
        conflicts=frozenset({"bic"}),  # another correction of the same head, and the same mixing of the losses
        before=frozenset({"ema"}),  # after_epoch is in reverse: its average is written first, then aligned
        after=frozenset({"replay", "sharing", "multi_head"}),
        passes=lambda plugin: Passes(teachers=frozenset({"previous"} if plugin.config.strength else ())),
        memory="1 x the model",
        ranks="local",
        streams=frozenset({"class_incremental"}),
    )

    class Config(PluginConfig):
        """Options of `WA`."""

        strength: Annotated[float, Tunable(0.0, 1.0)] = Field(1.0, ge=0, le=1)
        temperature: Annotated[float, Tunable(1.0, 10.0)] = Field(2.0, gt=0)
        clip: bool = True
        scale_bias: bool = True

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse a plain module of which no layer can be aligned."""
        if run.model.is_plain:
            _output_layer(self, run.model, "")

    @hookimpl
    def collect_teachers(self, run: Run) -> dict[str, Teacher]:
        """The model as the last experience left it, aligned."""
        return {} if self.config.strength == 0 else {"previous": Teacher("copy", refresh="experience")}

    @hookimpl
    def transform_supervision(self, supervision: tuple[Supervision, ...], step: Step) -> tuple[Supervision, ...]:
        """(1 - λ) L_c."""
        balance = {task: self._balance(step.run, old, new) for task, old, new in _mixed_heads(step.run)}
        return tuple(
            record.replace(scale=record.scale * (1 - balance[record.task])) if record.task in balance else record for record in supervision
        )

    @hookimpl
    def collect_terms(self, step: Step) -> dict[str, Tensor]:
        """λ L_d."""
        teacher = step.teacher(f"{self.name}/previous")
        if teacher is None:
            return {}
        terms = {}
        for task, old, new in _mixed_heads(step.run):
            columns = torch.tensor(old, device=step.batch.x.device)
            student, told = step.outputs[task].index_select(1, columns), teacher[task].index_select(1, columns)
            terms[task] = self._balance(step.run, old, new) * distillation_loss(student, told, step.run.value(self, "temperature"))
        return terms

    def _balance(self, run: Run, old: Sequence[int], new: Sequence[int]) -> float:
        """λ, the share of the old classes."""
        return run.value(self, "strength") * len(old) / (len(old) + len(new))

    @hookimpl
    def around_update(self, update: Callable[[Mapping[str, Tensor]], None], gradients: Mapping[str, Tensor], step: Step) -> None:
        """Update, then restrict the heads' weights."""
        update(gradients)
        if self.config.clip:
            self._restrict(step.run)

    @hookimpl
    def after_epoch(self, run: Run) -> None:
        """Align when the main phase ends."""
        if run.phase is None or run.phase.name != "main" or not run.clock.is_last_epoch:
            return
        if self.config.clip:
            self._restrict(run)  # an average that was written into the model just now may hold a weight below 0
        for task, old, new in _mixed_heads(run):
            layer = _output_layer(self, run.model, task)
            if layer.weight.requires_grad:
                with torch.no_grad():
                    factor = aligning_factor(layer.weight, old, new)
                    layer.weight[new] *= factor
                    if self.config.scale_bias and layer.bias is not None:
                        layer.bias[new] *= factor

    def _restrict(self, run: Run) -> None:
        with torch.no_grad():
            for task in run.tasks.values():
                if task.kind == "classification" and run.model.heads.has(task.name):
                    weight = _output_layer(self, run.model, task.name).weight
                    if weight.requires_grad:
                        weight.clamp_(min=0)


def _mixed_heads(run: Run) -> Iterator[tuple[str, list[int], list[int]]]:
    """Each task to which the present experience brings new classes beside old ones, with the old and the new ones."""
    present = {} if run.experience is None else run.experience.classes
    for task, old in run.classes_seen.items():
        new = sorted(set(present.get(task, ())) - set(old))
        if old and new and run.tasks[task].kind == "classification":
            yield task, list(old), new


def _output_layer(plugin: Plugin, model: Model, task: str) -> nn.Linear:
    """The linear layer that gives the outputs for ``task``: its head, or the last one of a plain module.

    Raises:
        ConfigurationError: there is none, or its weights are not its own.
    """
    if model.is_plain:
        layers = [module for module in model.encoder.modules() if isinstance(module, nn.Linear)][-1:]
    else:
        heads = next((module for module in model.heads.modules() if isinstance(module, Heads)), None)
        linear = [] if heads is None else [head for head in heads.by_task.values() if isinstance(head, nn.Linear)]
        layers = [] if heads is None else [head for name, head in zip(heads.sizes(), linear, strict=True) if name == task]
    if not layers or "weight" not in dict(layers[0].named_parameters(recurse=False)):
        what = "model, a plain module," if model.is_plain else f"head of task {task!r}"
        raise ConfigurationError(
            f"plugin {plugin.name} scales the weights of the last linear layer, but the {what} has no nn.Linear with a weight of its own: "
            "give a model that ends in one, for example models.mlp(stream)"
        )
    return layers[0]
