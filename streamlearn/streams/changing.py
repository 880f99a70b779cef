"""What is done to inputs on their way into a batch; that of a user's own function is checked, because torch would blame the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from streamlearn.errors import DataError

__all__ = ["changing"]

Change = Callable[[Tensor, Tensor], Tensor]
"""From inputs ``(rows, ...)`` and index ``(rows,)`` to other inputs."""


def changing(augment: Callable[..., Any] | None, transform: Callable[..., Any] | None, source: str, domain: str) -> Change | None:
    """``augment`` and then ``transform``; ``None`` when there is neither.

    Args:
        augment, transform: called with the inputs, and with the index too where they have a true attribute ``needs_index``. Those with a
            true attribute ``trusted`` are called as they are.
        source, domain: what messages call the rows.
    """
    changes = [_one(change, f"the {what} {_name(change)} of rows of source {source!r}{f', domain {domain!r}' if domain else ''},")
               for what, change in (("augmentation", augment), ("transform", transform)) if change is not None]  # fmt: skip
    if len(changes) < 2:
        return changes[0] if changes else None
    first, second = changes
    return lambda x, index: second(first(x, index), index)


def _one(change: Callable[..., Any], what: str) -> Change:
    called: Change = change if getattr(change, "needs_index", False) else lambda x, index: change(x)
    if getattr(change, "trusted", False):
        return called

    def checked(x: Tensor, index: Tensor) -> Tensor:
        try:
            found = called(x, index)
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{what} fails on inputs of shape {tuple(x.shape)}: {type(error).__name__}: {error}") from error
        if not isinstance(found, Tensor):
            raise DataError(f"{what} gives a {type(found).__name__}: let it give a tensor of as many rows")
        if len(found) != len(x) or found.dtype != x.dtype:
            given = f"{len(found)} rows of {_type(found)}"
            raise DataError(f"{what} makes {given} out of {len(x)} rows of {_type(x)}: let it keep rows and type")
        if found.is_floating_point() and not bool(found.isfinite().all()):
            row = int((~found.isfinite()).reshape(len(found), -1).any(1).nonzero()[0, 0])
            raise DataError(f"{what} makes NaN or infinity out of row {int(index[row])}: let it give finite values")
        return found

    return checked


def _name(change: Callable[..., Any]) -> str:
    return str(getattr(change, "__name__", type(change).__name__))


def _type(x: Tensor) -> str:
    return str(x.dtype).removeprefix("torch.")
