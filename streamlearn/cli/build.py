"""From a strategy, which only names things, to the things themselves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from streamlearn.errors import ConfigurationError, UnknownNameError

if TYPE_CHECKING:
    import torch

    from streamlearn.cli.strategy import Named, Strategy, StreamSection
    from streamlearn.core.engine import Engine, Progress
    from streamlearn.core.optimization import OptimizerFactory
    from streamlearn.core.plugin import Plugin
    from streamlearn.models import Model
    from streamlearn.streams import Stream

__all__ = ["build"]

_NOT_USABLE = {
    "lbfgs": "it calls the loss several times a step, which the engine does not",
    "sparseadam": "it needs sparse gradients, which the models here do not have",
}


def build(strategy: Strategy, progress: Progress | None = None) -> tuple[Engine, Stream]:
    """The engine and the stream. What can be refused without data is refused before any are loaded.

    Raises:
        ConfigurationError: a name, an option or the composition is wrong.
        DataError: the stream cannot be built.
    """
    from streamlearn.core.composition import compose
    from streamlearn.core.engine import Engine

    _check_device(strategy.device)
    plugins = [_plugin(section.name, section.instance, section.options) for section in strategy.plugins]
    compose(plugins)
    optimizer = _optimizer(strategy.optimizer)
    builder = _model_builder(strategy.model)
    stream = _stream(strategy.stream, strategy.seed)
    model = _called(f"model {strategy.model.name!r}", builder, stream, **strategy.model.options)
    return Engine(model, optimizer, plugins, progress=progress, **strategy.engine_options()), stream


def _stream(section: StreamSection, seed: int) -> Stream:
    """The stream; the run's seed is also its own, where it takes one and the user named none."""
    from streamlearn.streams.catalogue import build_chain

    return build_chain([(link.name, link.options) for link in (section, *section.then)], seed)


def _plugin(name: str, instance: str | None, options: Mapping[str, Any]) -> Plugin:
    from streamlearn.core.registry import create

    return create(name, {**options, "name": instance} if instance else options)


def _check_device(name: str) -> None:
    import torch

    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigurationError(f"device {name!r} cannot be used here: {reason}; choose another, such as cpu") from error


def _model_builder(section: Named) -> Callable[..., Model]:
    from streamlearn import models

    known = {name: getattr(models, name) for name in models.__all__ if name.islower()}
    if section.name not in known:
        raise UnknownNameError("model", section.name, known)
    builder: Callable[..., Model] = known[section.name]
    _check_options(f"model {section.name}", section.options, list(inspect.signature(builder).parameters)[1:])
    return builder


def _optimizer(section: Named) -> OptimizerFactory:
    """A function from parameters to the optimiser; tried out on two numbers, so that a wrong value is told at once."""
    import torch

    every = {name.lower(): cls for name, cls in vars(torch.optim).items() if inspect.isclass(cls)}
    known = {name: cls for name, cls in every.items() if issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer}
    name = section.name.lower()
    if name in _NOT_USABLE:
        raise ConfigurationError(f"optimizer {name!r} cannot be used: {_NOT_USABLE[name]}; choose another, such as sgd or adam")
    if name not in known:
        raise UnknownNameError("optimizer", section.name, set(known) - set(_NOT_USABLE))
    cls = known[name]
    _check_options(f"optimizer {name}", section.options, list(inspect.signature(cls).parameters)[1:])
    options = {key: tuple(value) if isinstance(value, list) else value for key, value in section.options.items()}

    def factory(parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        return _called(f"optimizer {name!r}", cls, parameters, **options)  # type: ignore[no-any-return]

    factory([torch.nn.Parameter(torch.zeros(1, 2))])
    return factory


def _check_options(what: str, options: Mapping[str, Any], known: list[str]) -> None:
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of {what}", option, known)


def _called(what: str, function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Any:
    try:
        return function(*arguments, **options)
    except (TypeError, ValueError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise ConfigurationError(f"{what} does not accept ({given}): {error}") from error
