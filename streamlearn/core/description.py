"""What was run, as JSON: enough to say whether another run is the same."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy
import torch

from streamlearn.core import registry

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.streams import Stream

__all__ = ["describe"]


def describe(run: Run, stream: Stream, origin: Mapping[str, Any] | None) -> dict[str, Any]:
    """The content of ``run.json``: stream, strategy and seed, which make a run what it is; device and versions, which do not.

    ``stream`` is the one given, before any plugin changed it; ``origin`` is what whoever started the run wants to find again.
    """
    options, main = run.options, run.optimization.main
    return {
        "format": 1,
        "stream": stream.describe(),
        "strategy": {
            "plugins": [
                {
                    "name": plugin.info.name,
                    "instance": plugin.name,
                    "config": plugin.config.model_dump(mode="json", fallback=lambda value: type(value).__name__),
                }
                for plugin in run.plugins
            ],
            "epochs": options.epochs,
            "batch_size": options.batch_size,
            "drop_last": options.drop_last,
            "evaluate": options.evaluate,
            "evaluate_every": options.evaluate_every,
            # what was never asked for is left out: runs from before these options can still be resumed
            **({"microbatches": options.microbatches} if options.microbatches > 1 else {}),
            **({"compile": options.compile} if options.compile else {}),
            **({"iterations": options.iterations} if options.iterations else {}),
            "model": {
                "parameters": sum(p.numel() for p in run.model.parameters()),
                "shapes": {name: list(p.shape) for name, p in run.model.named_parameters()},
            },
            "optimizer": None if main is None else {"name": type(main).__name__, "groups": _settings(main)},
        },
        "seed": options.seed,
        "device": options.device,
        "versions": {
            "streamlearn": importlib.metadata.version("streamlearn"),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "python": platform.python_version(),
            "plugins": registry.distributions_of(run.plugins),
        },
        "origin": None if origin is None else dict(origin),
    }


def _settings(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [
        {
            option: value
            for option, value in group.items()
            if option != "params" and isinstance(value, int | float | str | bool | tuple | None)
        }
        for group in optimizer.param_groups
    ]
