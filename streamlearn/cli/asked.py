"""The options that ``run`` and ``explain`` share, and the strategy that they add up to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streamlearn.errors import ConfigurationError, UnknownNameError
from streamlearn.options import parse, parse_chain

if TYPE_CHECKING:
    from streamlearn.cli.strategy import Strategy

__all__ = ["Asked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was written on the command line. ``None`` means: not said."""

    strategy: Annotated[
        Path | None, typer.Argument(metavar="[STRATEGY.toml]", show_default=False, help="A strategy file; options below override it.")
    ] = None
    stream: Annotated[
        str | None,
        typer.Option(metavar="'NAME:key=value,... | NAME:...'", help="The stream, in place of the file's; operators follow after |."),
    ] = None
    plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME:key=value,...", show_default=False, help="A plugin; repeat it, in order. Replaces all of the file's."),
    ] = None
    no_plugin: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", show_default=False, help="Refuse a strategy that lists this plugin, or one of this distribution."),
    ] = None
    model: Annotated[str | None, typer.Option(metavar="NAME:key=value,...", help="The model, such as 'mlp:hidden=[100]'.")] = None
    optimizer: Annotated[
        str | None, typer.Option(metavar="NAME:key=value,...", help="A class of torch.optim, such as 'sgd:lr=0.05,momentum=0.9'.")
    ] = None
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the data of each experience.")] = None
    iterations: Annotated[int | None, typer.Option(min=1, help="Batches of each experience, in place of --epochs.")] = None
    batch_size: Annotated[int | None, typer.Option(min=1, help="Rows of each experience per batch.")] = None
    seed: Annotated[int | None, typer.Option(min=0, help="Of everything random; also of the stream, unless --stream names one.")] = None
    seeds: Annotated[int | None, typer.Option(min=1, help="Run with each of the seeds 0 to N-1, into DIR/seed-0, DIR/seed-1, ...")] = None
    device: Annotated[str | None, typer.Option(help="Where to train: cpu, cuda, ...")] = None
    checkpoint_every: Annotated[int | None, typer.Option(min=1, help="Save also after every so many updates.")] = None
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Folder for the result and the checkpoints.")] = None
    resume: Annotated[Path | None, typer.Option(metavar="DIR", help="Continue the run that was stopped in DIR.")] = None
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the last line only.")] = False

    def said(self, *besides: str) -> list[str]:
        """The options that were given, as they are written, but for those named."""
        names = [
            name for name in self.__slots__ if name not in besides and (value := getattr(self, name)) is not None and value is not False
        ]
        return ["STRATEGY.toml" if name == "strategy" else "--" + name.replace("_", "-") for name in names]

    @property
    def is_demo(self) -> bool:
        """Whether nothing was said about what to run.

        Raises:
            ConfigurationError: nothing was, and yet there are options for it.
        """
        if self.strategy or self.stream or self.plugin or self.resume:
            return False
        others = self.said("seed", "output", "quiet")
        if others:
            raise ConfigurationError(
                f"{', '.join(others)} is given, but not what to run: add --stream, --plugin or a strategy file "
                "(without them, run is the demo, which takes --seed, --output and --quiet only)"
            )
        return True

    def to_strategy(self) -> Strategy:
        """The file, if there is one, overridden by the options.

        Raises:
            ConfigurationError: an option or the file is wrong.
        """
        from streamlearn.cli.strategy import read_toml, validated

        if self.seed is not None and self.seeds is not None:
            raise ConfigurationError("--seed and --seeds exclude each other: --seed S runs one seed, --seeds N runs the seeds 0 to N-1")
        where = "the command line" if self.strategy is None else str(self.strategy)
        content: dict[str, Any] = {} if self.strategy is None else read_toml(self.strategy)
        validated(content, where)
        for name in ("epochs", "iterations", "batch_size", "seed", "device", "checkpoint_every"):
            if getattr(self, name) is not None:
                content[name] = getattr(self, name)
        if self.stream is not None:
            first, *others = parse_chain(self.stream)
            content["stream"] = {**_section(*first), **({"then": [_section(*link) for link in others]} if others else {})}
        for name in ("model", "optimizer"):
            if getattr(self, name) is not None:
                content[name] = _section(*parse(getattr(self, name)))
        if self.plugin:
            content["plugins"] = [_plugin_section(text) for text in self.plugin]
        strategy = validated(content, where)
        if self.no_plugin:
            _refuse_forbidden(strategy, self.no_plugin, "the command line" if self.plugin else where)
        return strategy


def _refuse_forbidden(strategy: Strategy, words: Sequence[str], where: str) -> None:
    """Hold a strategy to what ``--no-plugin`` says.

    Raises:
        UnknownNameError: a word to which no installed plugin answers, for it would forbid nothing.
        ConfigurationError: a plugin is listed that a word forbids.
    """
    from streamlearn.core.registry import installed, named, unknown_words

    for word in words:
        if unknown_words(word):
            known = {name for plugin in installed() for name in (plugin.name, plugin.distribution)}
            raise UnknownNameError("plugin or distribution after --no-plugin", word, known)
        for section in strategy.plugins:
            met = next((plugin for plugin in named(section.name) if plugin.answers_to(word)), None)
            if met is not None:
                raise ConfigurationError(
                    f"{where} lists the plugin {section.name!r} (of {met.distribution} {met.version}), which --no-plugin {word} forbids: "
                    "take out one of the two"
                )


def _section(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    if "name" in options:
        raise ConfigurationError(f"{name!r} is given the option 'name': the name stands before the colon, leave it out after it")
    return {**options, "name": name}


def _plugin_section(text: str) -> dict[str, Any]:
    """``replay:capacity=5,name=second`` is the plugin replay, called second, as in ``Replay(capacity=5, name="second")``."""
    name, options = parse(text)
    instance = options.pop("name", None)
    return {**options, "name": name, **({} if instance is None else {"instance": str(instance)})}
