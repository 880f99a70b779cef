"""Parameter-efficient fine-tuning with PEFT: adapters on a frozen encoder."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field
from streamlearn import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.errors import ConfigurationError, MissingExtraError, UnknownNameError
from streamlearn.models import Model
from torch import nn

from streamlearn_peft.model import Adapted, PerTask
from streamlearn_peft.recipe import METHODS, Recipe, layers_of

if TYPE_CHECKING:
    from streamlearn.core.optimization import Trainable
    from streamlearn.core.run import Run

__all__ = ["PEFT", "MissingPEFTError"]

_PACKAGE = "peft"


class MissingPEFTError(MissingExtraError):
    """PEFT is not installed."""

    def __init__(self, user: str) -> None:
        super().__init__(user, _PACKAGE, _PACKAGE)
        self.args = (f"plugin {user} needs the package {_PACKAGE!r}, which is not installed: run  pip install 'peft>=0.21,<0.22'",)


class PEFT(Plugin):
    r"""Adapters of PEFT on a frozen encoder; they and the heads learn.

    .. math:: W x + b \;\to\; W x + b + \frac{\alpha}{r} \sum_{j \in J} B_j A_j x, \qquad B_j = 0 \text{ at the start}

    for LoRA, with W and b frozen, A of r rows and B of r columns; other methods change the layer in their own way, and each starts
    without effect (``hra`` up to rounding). Which adapters J act:

    - ``"run"``: one, which all experiences train.
    - ``"experience"``: one for each experience. Experience k trains the k-th; those before stay in force and are frozen, so that what
      was learnt is built upon and not written over. No task is asked for, not even in evaluations: J is {1, ..., k}. Those of one
      method that multiplies (``ia3``, ``oft``, ``hra``, ``road``) act one after another. All are there from the start, without effect.
    - ``"task"``: one for each task, which alone acts on its outputs and learns from its losses. Nothing that learns is shared then, so a
      combiner of task gradients has nothing to combine, and no task changes another. A task that comes later gets its own.

    The encoder keeps its weights and the statistics of its batch normalisation; penalties such as EWC act on adapters and heads alone.
    With ``"task"`` the features of the model are its inputs, because the encoder runs once for each task; layers cannot be tapped.
    The module that was given keeps its layers, but its encoder's parameters stay frozen after the run.

    Args:
        method: ``"delora"``, ``"gralora"``, ``"hira"``, ``"hra"``, ``"ia3"``, ``"loha"``, ``"lokr"``,
            ``"lora"``, ``"miss"``, ``"oft"`` or ``"road"``.
        adapters: ``"run"``, ``"experience"`` or ``"task"``.
        rank: r, at least 1; ``None`` takes PEFT's own, 8 for LoRA. Methods without a rank refuse it.
        alpha: α, above 0; ``None`` takes PEFT's own, 8 for LoRA. Methods without it refuse it.
        target_modules: the layers: ends of their paths within the encoder, or one regular expression for whole paths; ``None`` takes
            every linear layer, or where there is none every convolution.
        options: others of the method, with their names and ranges in PEFT, such as ``{"lora_dropout": 0.1}``.

    Raises:
        MissingPEFTError: peft is not installed.
        UnknownNameError: there is no such method, option or layer.
        ConfigurationError: the model has no heads by task or another plugin has changed how it makes its outputs, PEFT refuses an option
            or a layer, or a combiner at the features meets ``adapters="task"``.

    Cost: that of the adapters, which is small; with ``"task"`` one pass of the encoder for each task, on its rows. Memory: for LoRA
    r x (inputs + outputs) for each layer and adapter.

    Reference: Hu et al., LoRA: low-rank adaptation of large language models, ICLR 2022, section 4; Mangrulkar et al., PEFT, 2022, whose
    documentation names the papers of the other methods. Deviations: the heads learn, too.

    Example:
        >>> PEFT(method="lora", rank=4, adapters="experience")  # doctest: +SKIP
        PEFT(adapters='experience', method='lora', rank=4)
    """

    info = PluginInfo(
        name="peft",
        family="sharing",
        summary="Freezes the encoder and trains adapters of PEFT in it, one for the run, each experience or each task.",
        reference="Hu et al. 2022, ICLR, section 4 (LoRA); Mangrulkar et al. 2022 (PEFT 0.21)",
        provides=frozenset({"sharing!"}),
        after=frozenset({"multi_head"}),
        before=frozenset({"bic"}),
        memory="1 adapter for the run, each experience or each task",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `PEFT`."""

        method: str = "lora"
        adapters: Literal["run", "experience", "task"] = "run"
        rank: int | None = Field(None, ge=1)
        alpha: float | None = Field(None, gt=0)
        target_modules: str | list[str] | None = Field(None, min_length=1)
        options: dict[str, Any] = Field(default_factory=dict)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        if self.config.method not in METHODS:
            raise UnknownNameError("method of PEFT", self.config.method, METHODS)
        if find_spec(_PACKAGE) is None:
            raise MissingPEFTError(self.name)

    @hookimpl
    def transform_model(self, model: Model, run: Run) -> Model:
        """Freeze the encoder and put adapters on its layers."""
        kind = self.config.adapters
        if type(model) is not Model or model.is_plain:
            what = "a plain module, whose output all tasks share" if model.is_plain else type(model).__name__
            raise ConfigurationError(
                f"plugin {self.name} needs a Model with a head for each task, but the model is {what}: take one of streamlearn.models, "
                "or list MultiHead() before it"
            )
        if kind == "task" and run.rows_at_features:
            raise ConfigurationError(
                f"plugin {self.name}: adapters='task' runs the encoder for each task, so there are no features at which "
                f"{', '.join(run.implementers('provide_gradient_combination'))} could combine: take a combiner at the parameters"
            )
        if not any(True for _ in model.encoder.children()):
            model = Model(nn.Sequential(model.encoder), model.heads)  # a layer cannot be exchanged within itself
        layers = layers_of(model.encoder, self.config.target_modules)
        recipe = Recipe.of(self.config.method, layers, self.config.rank, self.config.alpha, self.config.options)
        if kind == "task":
            return PerTask(model, recipe)
        number = max(1, len(run.stream)) if kind == "experience" else 1
        return Adapted(model, recipe, [f"{kind} {place}" for place in range(number)])

    @hookimpl
    def collect_modules(self, run: Run) -> dict[str, Trainable]:
        """Nothing more to train, but an experience begins: its adapter comes into use before averages and teachers are made."""
        if self.config.adapters == "experience" and isinstance(run.model, Adapted):
            run.model.use(run.clock.experience + 1)
        return {}
