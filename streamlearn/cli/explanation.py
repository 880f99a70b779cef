"""What a strategy would do, as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlearn.cli.build import build
from streamlearn.cli.strategy import length
from streamlearn.cli.text import options_text

if TYPE_CHECKING:
    from streamlearn.cli.strategy import Named, Strategy

__all__ = ["explanation"]


def explanation(strategy: Strategy) -> str:
    """Stream, model, optimiser, and the composition with its reasons.

    Raises:
        ConfigurationError: as `build` does.
    """
    engine, stream = build(strategy)
    lines = {
        "stream": f"{stream.name}, {len(stream)} experiences; {' | '.join(map(_named, (strategy.stream, *strategy.stream.then)))}",
        "model": _named(strategy.model),
        "optimizer": _named(strategy.optimizer),
        "training": f"{length(strategy)} of each experience, batch size {strategy.batch_size}, seed {strategy.seed}",
        "device": strategy.device,
    }
    head = "\n".join(f"{key + ':':<10} {value}" for key, value in lines.items())
    return f"{head}\n\n{engine.explain()}"


def _named(section: Named) -> str:
    return f"{section.name}({options_text(section.options)})"
