"""The engine's own settings."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Literal

import torch

from streamlearn.errors import ConfigurationError

__all__ = ["Options"]

_COUNTS = ("epochs", "iterations", "batch_size", "evaluation_batch_size", "evaluate_every", "checkpoint_every", "microbatches")


@dataclass(frozen=True, slots=True)
class Options:
    """The engine's own settings; see `Engine`."""

    epochs: int = 1
    batch_size: int = 32
    seed: int = 0
    device: str = "cpu"
    drop_last: bool = False
    evaluate: Literal["experience", "end", "never"] = "experience"
    evaluate_every: int | None = None
    evaluation_batch_size: int = 1024
    checkpoint_every: int | None = None
    microbatches: int = 1
    compile: bool | str = False
    iterations: int | None = None

    def __post_init__(self) -> None:
        for name in (
            "epochs",
            "batch_size",
            "seed",
            "evaluation_batch_size",
            "evaluate_every",
            "checkpoint_every",
            "microbatches",
            "iterations",
        ):
            if hasattr(type(getattr(self, name)), "__index__") and not isinstance(getattr(self, name), bool):
                object.__setattr__(self, name, operator.index(getattr(self, name)))  # numpy's whole numbers are welcome
        if not isinstance(self.drop_last, bool):
            raise ConfigurationError(f"Engine: drop_last is {self.drop_last!r}, but it must be True or False")
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"Engine: {name} is {value!r}, but it must be a whole number of at least 1")
        if self.iterations is not None and self.epochs != 1:
            raise ConfigurationError(f"Engine: epochs is {self.epochs} and iterations is {self.iterations}: give one of them")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigurationError(f"Engine: seed is {self.seed!r}, but it must be a whole number")
        if not isinstance(self.compile, bool | str):
            raise ConfigurationError(
                f"Engine: compile is {self.compile!r}, but it must be True, False or the name of a backend of torch.compile"
            )
        try:
            torch.device(self.device)
        except RuntimeError:
            raise ConfigurationError(
                f"Engine: device is {self.device!r}, which torch does not know: give 'cpu', 'cuda' or 'cuda:0'"
            ) from None
        if self.evaluate not in ("experience", "end", "never"):
            raise ConfigurationError(f"Engine: evaluate is {self.evaluate!r}, but it must be 'experience', 'end' or 'never'")
