"""Parameters by name, and the optimisers that move them.

Optimiser state is kept by parameter *name*. A parameter that grows keeps its name, its leading slice and that slice's state; a
parameter whose gradient is absent is not touched (a zero gradient would still move it through momentum).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from streamlearn.errors import ConfigurationError

__all__ = ["Optimization", "OptimizerFactory", "Trainable"]

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


@dataclass(frozen=True, slots=True)
class Trainable:
    """A helper module of a plugin, trained together with the model.

    Args:
        module: the module.
        optimizer: builds an optimiser of its own; ``None`` puts it in a group of its own in the main optimiser.
        learning_rate: for that group; ``None`` takes the main one.
        weight_decay: for that group; 0 unless asked for, because log-variances and rates must not decay.
    """

    module: nn.Module
    optimizer: OptimizerFactory | None = None
    learning_rate: float | None = None
    weight_decay: float = 0.0


class Optimization:
    """The trainable parameters of a run and their optimisers.

    Args:
        factory: the user's function from parameters to an optimiser.
        model: whose parameters the main optimiser moves.
    """

    def __init__(self, factory: OptimizerFactory, model: nn.Module) -> None:
        self._factory = factory
        self._model = model
        self._modules: dict[str, nn.Module] = {}
        self._own: dict[str, torch.optim.Optimizer] = {}
        self._named: dict[str, nn.Parameter] = dict(model.named_parameters())
        try:
            self._main = factory(list(self._named.values())) if self._named else None
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"the optimizer could not be built: {error}; give a function of the parameters, as in lambda p: torch.optim.SGD(p, lr=0.1)"
            ) from error
        if self._named and not isinstance(self._main, torch.optim.Optimizer):
            raise ConfigurationError(f"optimizer= must return a torch optimizer, it returned {type(self._main).__name__}")
        held = {id(p) for group in (self._main.param_groups if self._main else ()) for p in group["params"]}
        if self._named and not held & {id(p) for p in self._named.values()}:
            raise ConfigurationError("optimizer= returned an optimizer of other parameters: give it those it is called with")
        if isinstance(self._main, torch.optim.LBFGS):
            raise ConfigurationError("optimizer= built LBFGS, which wants to evaluate the loss itself: use SGD, Adam or the like")
        self._phase: tuple[torch.optim.Optimizer, frozenset[str]] | None = None

    # ------------------------------------------------------------------ parameters

    @property
    def main(self) -> torch.optim.Optimizer | None:
        """The main optimiser; ``None`` when the model has no parameter."""
        return self._main

    def parameters(self) -> dict[str, nn.Parameter]:
        """Every parameter by name: the model's, then ``"<plugin>/<module>.<its name>"``."""
        return self._named

    def trainable(self) -> dict[str, nn.Parameter]:
        """Those that are not frozen."""
        return {name: p for name, p in self._named.items() if p.requires_grad}

    def trainable_names(self) -> list[str]:
        """Names of those that are not frozen."""
        return [name for name, p in self._named.items() if p.requires_grad]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to train."""
        return not any(p.requires_grad for p in self._named.values())

    def add(self, name: str, trainable: Trainable) -> None:
        """Train ``trainable`` under ``name``; one that is known already is kept as it is."""
        if name in self._modules:
            return
        module = self._modules[name] = trainable.module
        own = list(module.parameters())
        if own and trainable.optimizer is not None:
            self._own[name] = trainable.optimizer(own)
        elif own and self._main is not None:
            group: dict[str, Any] = {"params": own, "weight_decay": trainable.weight_decay}
            if trainable.learning_rate is not None:
                group["lr"] = trainable.learning_rate
            self._main.add_param_group(group)
        self._named |= {f"{name}.{key}": p for key, p in module.named_parameters()}

    def refresh(self) -> None:
        """The model or a helper module has grown: follow new and exchanged parameters, by name."""
        main = self._main
        if main is None:
            self.__init__(self._factory, self._model)  # type: ignore[misc]
            return
        current = dict(self._model.named_parameters())
        for module_name, module in self._modules.items():
            current |= {f"{module_name}.{key}": p for key, p in module.named_parameters()}
        places = {id(p): (o, group) for o in (main, *self._own.values()) for group in o.param_groups for p in group["params"]}
        for name, new in current.items():
            old = self._named.get(name)
            if old is new:
                continue
            if old is None:
                main.param_groups[0]["params"].append(new)
                continue
            optimizer, found = places[id(old)]
            group = found["params"]
            group[[p is old for p in group].index(True)] = new
            kept_state = optimizer.state.pop(old, {})
            # factored state (Adafactor's) has other shapes and cannot be grown: the parameter starts without
            if not any(isinstance(value, Tensor) and value.ndim and value.shape != old.shape for value in kept_state.values()):
                optimizer.state[new] = {key: _grown(value, old, new) for key, value in kept_state.items()}
        self._named = current

    # ------------------------------------------------------------------ updates

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        if self._phase is not None:
            return [self._phase[0], *self._own.values()]
        return [*([] if self._main is None else [self._main]), *self._own.values()]

    def step(self) -> None:
        """One update from the gradients in ``.grad``, which are gone afterwards."""
        for optimizer in self._optimizers():
            optimizer.step()
        self.clear()  # a loop over what is known here anyway; torch's zero_grad takes ten times as long for the same

    def gradients(self) -> dict[str, Tensor]:
        """The gradients in ``.grad`` by name; an absent one is left out."""
        return {name: p.grad for name, p in self._named.items() if p.grad is not None}

    def update(self, gradients: Mapping[str, Tensor]) -> None:
        """One update from ``gradients``; a parameter without one is not touched."""
        for name, parameter in self._named.items():
            parameter.grad = gradients.get(name)
        self.step()

    def move(self, name: str, gradients: Mapping[str, Tensor]) -> None:
        """One update of the helper module ``name`` by the optimiser of its own, for what is known only once the model has moved.

        Args:
            name: ``"<plugin>/<its name>"``, of a `Trainable` with an ``optimizer``.
            gradients: by name within the module; a parameter without one, or a frozen one, is not touched.
        """
        own = dict(self._modules[name].named_parameters())
        for key, parameter in own.items():
            parameter.grad = gradients.get(key) if parameter.requires_grad else None
        self._own[name].step()
        for parameter in own.values():
            parameter.grad = None

    def clear(self) -> None:
        """Drop every gradient."""
        for parameter in self._named.values():
            parameter.grad = None

    def begin_phase(self, factory: OptimizerFactory | None, names: frozenset[str]) -> None:
        """Use an optimiser of the phase's own on ``names``, in place of the main one; ``None`` keeps that.

        Modules that have an optimiser of their own keep it: two would move them twice.
        """
        apart = {id(p) for optimizer in self._own.values() for group in optimizer.param_groups for p in group["params"]}
        chosen = [p for name, p in self._named.items() if name in names and id(p) not in apart]
        self._phase = (factory(chosen), names) if factory is not None and chosen else None

    def end_phase(self) -> None:
        """Back to the main optimiser."""
        self._phase = None

    def forget(self, names: Iterable[str] | None = None) -> None:
        """Drop the state of every optimiser (momentum and the like), or that of the parameters called ``names``; settings stay."""
        chosen = None if names is None else [self._named[name] for name in names if name in self._named]
        for optimizer in self._optimizers():
            for parameter in list(optimizer.state) if chosen is None else chosen:
                optimizer.state.pop(parameter, None)

    # ------------------------------------------------------------------ state, by name

    def state_dict(self) -> dict[str, Any]:
        """State and settings of every optimiser, by parameter name."""
        names = {id(p): name for name, p in self._named.items()}
        optimizers: dict[str, torch.optim.Optimizer | None] = {"main": self._main, **{f"own:{n}": o for n, o in self._own.items()}}
        if self._phase is not None:
            optimizers["phase"] = self._phase[0]
        return {
            key: {
                "state": {names[id(p)]: dict(values) for p, values in optimizer.state.items()},
                "groups": [{option: value for option, value in group.items() if option != "params"} for group in optimizer.param_groups],
            }
            for key, optimizer in optimizers.items()
            if optimizer is not None
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        optimizers: dict[str, torch.optim.Optimizer | None] = {"main": self._main, **{f"own:{n}": o for n, o in self._own.items()}}
        if self._phase is not None:
            optimizers["phase"] = self._phase[0]
        for key, saved in state.items():
            optimizer = optimizers.get(key)
            if optimizer is None:
                raise ConfigurationError(f"the checkpoint holds the state of optimizer {key!r}, which this strategy does not have")
            optimizer.state.clear()
            for name, values in saved["state"].items():
                optimizer.state[self._named[name]] = dict(values)
            for group, settings in zip(optimizer.param_groups, saved["groups"], strict=True):
                group.update({option: tuple(v) if isinstance(group.get(option), tuple) else v for option, v in settings.items()})


def _grown(value: Any, old: nn.Parameter, new: nn.Parameter) -> Any:
    """A piece of optimiser state for the grown parameter: the leading slice is kept, the rest starts at zero."""
    if not isinstance(value, Tensor) or value.shape != old.shape:
        return value
    grown = torch.zeros_like(new)
    grown[tuple(slice(0, size) for size in old.shape)] = value
    return grown
