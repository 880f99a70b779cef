"""Scalarizers of TorchJD as loss weightings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from streamlearn import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.optimization import Trainable
from streamlearn.core.plugin import Passes
from streamlearn.core.randomness import forked
from streamlearn.errors import ConfigurationError
from torch import Tensor
from torchjd import Stateful

from streamlearn_torchjd.memory import Averages, Logits, Scale, key_of, task_of
from streamlearn_torchjd.recipe import Recipe, scalarizers

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step

__all__ = ["TorchJDScalarizer"]

_LEARNED = {"uw": "log_var", "imtl_l": "log_scale"}
"""Methods that learn a number for each row together with the model, and what TorchJD calls the vector of them."""


class TorchJDScalarizer(Plugin):
    r"""A scalarizer of TorchJD makes one loss of those of the rows.

    .. math:: s(L) = S(L_1, ..., L_K)

    with S the scalarizer: ``constant``, ``cosmos``, ``dwa``, ``famo``, ``geometric_mean``, ``imtl_l``, ``mean``, ``pbi``, ``random``,
    ``stch``, ``sum`` or ``uw``; whatever the installed TorchJD offers is found. Its weights are ∂s/∂L_k, so that it stands beside any
    combiner of gradients.

    What TorchJD keeps by position is kept by the names of rows, and survives a resume bit for bit. ``uw`` and ``imtl_l`` learn a number
    for each *task* together with the model; rows that are parts of one (``"digit@photo"``) share it. ``dwa`` ends its epoch with every
    epoch of the engine, and a row without two of them counts as one that stays as it is. ``famo`` compares the losses that were
    minimised with those after the update, on the same rows and with the same dropout.

    Args:
        method: the name of the scalarizer, any that TorchJD has.
        options: those of the scalarizer, with their names and ranges in TorchJD; they may also be given beside ``method``. A vector
            with an entry for each row (``weights``, ``reference``, ``min_losses``) is a mapping by the names of the rows. The number of
            rows is never given.
        learning_rate: of what ``uw`` and ``imtl_l`` learn, above 0; ``None`` takes the model's.

    Raises:
        UnknownNameError: there is no such scalarizer, or it has no such option.
        ConfigurationError: an option is missing or refused, or the scalarizer refuses the losses of a step.

    Cost: no additional pass, but one forward for ``famo``. Memory: 4 numbers for each row.

    Reference: Quinton & Rey, Jacobian descent for multi-objective optimization, arXiv 2406.16232, 2024 (TorchJD); each method has its
    own, which TorchJD names.

    Example:
        >>> TorchJDScalarizer(method="stch", mu=0.5)
        TorchJDScalarizer(method='stch', options={'mu': 0.5})
        >>> TorchJDScalarizer(method="stch")
        Traceback (most recent call last):
            ...
        streamlearn.errors.ConfigurationError: plugin torchjd_scalarizer: method 'stch' of TorchJD needs the option 'mu': give it a value
    """

    info = PluginInfo(
        name="torchjd_scalarizer",
        family="weighting",
        summary="Weighs the losses of the tasks by any scalarizer of TorchJD.",
        reference="Quinton & Rey 2024, arXiv 2406.16232 (TorchJD 0.18)",
        passes=lambda plugin: Passes(forward=int(plugin.config.method == "famo")),
        memory="4 numbers for each row",
    )

    class Config(PluginConfig):
        """Options of `TorchJDScalarizer`."""

        method: str = "imtl_l"
        options: dict[str, Any] = Field(default_factory=dict)
        learning_rate: float | None = Field(None, gt=0)

    def __init__(
        self,
        *,
        name: str | None = None,
        method: str = "imtl_l",
        options: Mapping[str, Any] | None = None,
        learning_rate: float | None = None,
        **more: Any,
    ) -> None:
        asked: dict[str, Any] = {"method": method, **({"learning_rate": learning_rate} if learning_rate is not None else {})}
        every = {**(options or {}), **more}
        super().__init__(name=name, **asked, **({"options": every} if every else {}))
        self._recipe = Recipe.of(self.name, scalarizers(), method, every)
        if issubclass(self._recipe.cls, Stateful) and method not in (*_LEARNED, "dwa", "famo"):
            raise ConfigurationError(
                f"plugin {self.name}: method {method!r} of this TorchJD keeps a state that is not known here: upgrade streamlearn-torchjd"
            )
        self._averages = Averages() if method == "dwa" else None
        self._logits = Logits(every) if method == "famo" else None

    # ------------------------------------------------------------------ the scalar

    @hookimpl
    def collect_modules(self, run: Run) -> dict[str, Trainable]:
        """What ``uw`` and ``imtl_l`` learn, for every task met so far."""
        if self._recipe.method not in _LEARNED:
            return {}
        like = next((p for p in run.model.parameters() if p.is_floating_point()), None)
        return {key_of(task): Trainable(Scale(like), learning_rate=self.config.learning_rate) for task in run.tasks}

    @hookimpl
    def provide_weighting(self, losses: Mapping[str, Tensor], step: Step) -> Tensor:
        """S(L). The module is made anew for every call, so that asking twice changes nothing."""
        rows, values = tuple(losses), torch.stack(list(losses.values()))
        module: Any = self._recipe.build(rows, values.detach()).to(values.device, values.dtype)
        learned: dict[str, Tensor] = {}
        if self._recipe.method in _LEARNED:
            found = [step.module(f"{self.name}/{key_of(task_of(row, step))}")() for row in rows]
            learned[_LEARNED[self._recipe.method]] = torch.stack(found)
        if self._averages is not None:
            module._previous_averages = self._averages.of(rows, values)
        if self._logits is not None:
            learned["_w"] = self._logits.of(rows, values)
        try:
            return self._called(module, learned, values, step)
        except ValueError as error:
            raise ConfigurationError(
                f"plugin {self.name}: method {self._recipe.method!r} of TorchJD refuses the losses of {', '.join(rows)}: {error}"
            ) from error

    def _called(self, module: Any, learned: dict[str, Tensor], values: Tensor, step: Step) -> Tensor:
        if self._recipe.method != "random":
            return torch.func.functional_call(module, learned, (values,))  # type: ignore[no-any-return]
        with forked(values.device):
            seed = step.run.generator(self).initial_seed()
            torch.default_generator.manual_seed(seed)
            if values.device.type != "cpu":
                torch.get_device_module(values.device).manual_seed(seed)
            return module(values)  # type: ignore[no-any-return]

    # ------------------------------------------------------------------ what it remembers

    @hookimpl
    def after_step(self, step: Step) -> None:
        """Count the losses (``dwa``), or see what the update did to them (``famo``)."""
        if not step.updated or not step.losses:
            return
        if self._averages is not None:
            self._averages.add({row: loss.detach() for row, loss in step.losses.items()})
        if self._logits is not None:
            before = {row: loss.detach() for row, loss in step.losses.items()}
            with torch.no_grad(), forked(step.run.device):
                after = {row: loss.detach() for row, loss in step.at().losses.items()}
            self._logits.learn(before, after)

    @hookimpl
    def after_epoch(self, run: Run) -> None:
        """The averages of ``dwa`` are those of an epoch."""
        if self._averages is not None:
            self._averages.roll()

    def state_dict(self) -> dict[str, Any]:
        """What the method keeps of each row."""
        kept = self._averages or self._logits
        return {} if kept is None else kept.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        kept = self._averages or self._logits
        if kept is not None:
            kept.load_state_dict(state)
