"""``run`` and ``explain``."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import get_type_hints

from streamlearn.cli.asked import Asked
from streamlearn.errors import ConfigurationError

__all__ = ["explain", "run"]

DEMO = Path("runs/demo")


def _command(act: Callable[[Asked], None]) -> Callable[..., None]:
    """A command with the options that `Asked` declares: they are written down once."""

    def command(**given: object) -> None:
        act(Asked(**given))  # type: ignore[arg-type]

    command.__name__, command.__doc__ = act.__name__, act.__doc__
    command.__annotations__ = hints = get_type_hints(Asked, include_extras=True)
    options = [option.replace(annotation=hints[name]) for name, option in inspect.signature(Asked).parameters.items()]
    command.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
    return command


@_command
def run(asked: Asked) -> None:
    """Train and measure. Without arguments: the demo.

    What runs is written in a TOML file, in options, or both. Without --stream: class_incremental:source=digits. Without
    --optimizer: sgd:lr=0.05,momentum=0.9.

    Example: streamlearn run --stream class_incremental:source=mnist,experiences=5 --plugin replay:capacity=500 --plugin ewc:strength=10
    --epochs 2 --output runs/mnist
    """
    if asked.is_demo:
        from streamlearn.cli.demo import demo

        demo(asked.output or DEMO, asked.seed or 0, asked.quiet)
        return
    if asked.resume is not None:
        _refuse_beside_resume(asked)
        from streamlearn.cli.execute import resume

        resume(asked.resume, asked.quiet)
        return
    strategy = asked.to_strategy()
    from streamlearn.cli.execute import run_once, run_seeds

    if asked.seeds is None:
        run_once(strategy, asked.output, asked.quiet)
    else:
        run_seeds(strategy, asked.seeds, asked.output, asked.quiet)


@_command
def explain(asked: Asked) -> None:
    """Show what run would do with the same options: which plugin acts where, in which order, and why. Trains nothing."""
    if asked.resume is not None:
        raise ConfigurationError("explain takes the options of a run, and --resume has none: leave it out")
    strategy = asked.to_strategy()
    from streamlearn.cli.explanation import explanation

    print(explanation(strategy))


def _refuse_beside_resume(asked: Asked) -> None:
    others = asked.said("resume", "quiet")
    if others:
        raise ConfigurationError(f"--resume takes everything from {asked.resume}: remove {', '.join(others)}")
