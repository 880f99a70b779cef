"""What to run, as users write it: a TOML file, options of the command line, or both.

A strategy file, with every key that it may have (all are optional):

    epochs = 5                # the options of `streamlearn.Engine`
    batch_size = 32
    seed = 0                  # also of the stream, unless [stream] names a seed
    device = "cpu"
    checkpoint_every = 100    # updates; also: drop_last, evaluate, evaluate_every, evaluation_batch_size

    [stream]                  # 'streamlearn streams list'; other keys are options of the builder
    name = "class_incremental"
    source = "digits"
    then = [{ name = "online", rows = 10 }]    # operators, in order

    [model]                   # a builder of streamlearn.models
    name = "mlp"
    hidden = [100]

    [optimizer]               # a class of torch.optim, its name in lower case
    name = "sgd"
    lr = 0.05

    [[plugins]]               # 'streamlearn plugins list'; as often as there are plugins, in order
    name = "replay"
    instance = "replay"       # only needed when a plugin is listed twice
    capacity = 200

Names are looked up among entry points, torch.optim and streamlearn.models; nothing that a file names is imported by path.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field

from streamlearn.errors import ConfigurationError, UnknownNameError

__all__ = ["Named", "PluginSection", "Strategy", "StreamSection", "read_toml", "validated"]


class Named(pydantic.BaseModel):
    """A name and the options that stand beside it."""

    model_config = pydantic.ConfigDict(extra="allow", frozen=True, strict=True)

    name: str = Field(min_length=1)

    @property
    def options(self) -> dict[str, Any]:
        """All keys that are not fields of the section itself."""
        return dict(self.model_extra or {})


class PluginSection(Named):
    """A plugin; ``instance`` tells two of one kind apart."""

    instance: str | None = Field(None, min_length=1)


class StreamSection(Named):
    """A stream builder, and the operators that are applied to what it gives."""

    then: list[Named] = Field(default_factory=list)


class Strategy(pydantic.BaseModel):
    """Everything that makes a run: the content of a strategy file, with defaults filled in."""

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True, strict=True)

    stream: StreamSection = StreamSection(name="class_incremental", source="digits")  # type: ignore[call-arg]
    model: Named = Named(name="mlp")
    optimizer: Named = Named(name="sgd", lr=0.05, momentum=0.9)  # type: ignore[call-arg]
    plugins: list[PluginSection] = Field(default_factory=list)
    epochs: int = Field(1, ge=1)
    iterations: int | None = Field(None, ge=1)
    batch_size: int = Field(32, ge=1)
    seed: int = Field(0, ge=0)
    device: str = "cpu"
    drop_last: bool = False
    evaluate: Literal["experience", "end", "never"] = "experience"
    evaluate_every: int | None = Field(None, ge=1)
    evaluation_batch_size: int = Field(1024, ge=1)
    checkpoint_every: int | None = Field(None, ge=1)

    def to_json(self) -> dict[str, Any]:
        """As it is kept in ``run.json``; `validated` reads it back."""
        return self.model_dump(mode="json")

    def engine_options(self) -> dict[str, Any]:
        """What is passed to `streamlearn.Engine` as it is."""
        return self.model_dump(exclude={"stream", "model", "optimizer", "plugins"})


def length(strategy: Strategy) -> str:
    """For how long each experience is trained, in words."""
    if strategy.iterations:
        return f"{strategy.iterations} iteration{'s' if strategy.iterations > 1 else ''}"
    return f"{strategy.epochs} epoch{'s' if strategy.epochs > 1 else ''}"


def read_toml(path: Path) -> dict[str, Any]:
    """The content of a strategy file, not yet validated.

    Raises:
        ConfigurationError: it cannot be read, or is not TOML; the place is named.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigurationError(f"there is no strategy file {str(path)!r}: give the path of a TOML file") from None
    except OSError as error:
        raise ConfigurationError(f"cannot read the strategy file {str(path)!r}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from error


def validated(content: Mapping[str, Any], where: str) -> Strategy:
    """``content`` as a strategy.

    Args:
        content: what was read.
        where: what the messages call its origin.

    Raises:
        UnknownNameError: a key that a strategy does not have; the nearest is offered.
        ConfigurationError: a value that is not allowed.

    Example:
        >>> validated({"epochs": 2, "plugins": [{"name": "ewc", "strength": 10.0}]}, "strategy.toml").plugins[0].options
        {'strength': 10.0}
        >>> validated({"plugin": []}, "strategy.toml")
        Traceback (most recent call last):
            ...
        streamlearn.errors.UnknownNameError: unknown key of strategy.toml 'plugin': did you mean 'plugins'? (known: ...)
    """
    try:
        return Strategy.model_validate(dict(content))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise UnknownNameError(f"key of {where}", place, Strategy.model_fields) from None
        if first["type"] == "missing":
            raise ConfigurationError(f"{where} lacks {place}: every section needs a name") from None
        raise ConfigurationError(f"{where}: {place} is {first['input']!r}, but it must be otherwise: {first['msg']}") from None
