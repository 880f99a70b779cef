"""Comparing nested states bit for bit, and saying where they differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["close", "copied", "difference", "difference_of_events", "leaves", "size_in_bytes"]


def difference(a: Any, b: Any, path: str = "") -> str | None:  # noqa: PLR0911 - a case for each kind of thing
    """Where two nested states differ first, or ``None`` where they are equal bit for bit; a list equals a tuple.

    Example:
        >>> difference({"w": [1, 2]}, {"w": (1, 2)})
        >>> difference({"w": [1, 2]}, {"w": [1, 3]})
        "'w/1' is 2 in one and 3 in the other"
    """
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return _difference_of_tensors(a, b, path)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        if a.keys() != b.keys():
            return f"{path!r} has the keys {_few(a)} in one and {_few(b)} in the other"
        found = (difference(a[key], b[key], _joined(path, key)) for key in a)
        return next((text for text in found if text is not None), None)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        if len(a) != len(b):
            return f"{path!r} has {len(a)} entries in one and {len(b)} in the other"
        found = (difference(x, y, _joined(path, number)) for number, (x, y) in enumerate(zip(a, b, strict=True)))
        return next((text for text in found if text is not None), None)
    if type(a) is type(b) and (a == b or (a != a and b != b)):  # noqa: PLR0124 - NaN is the one value that differs from itself
        return None
    return f"{path!r} is {_short(a)} in one and {_short(b)} in the other"


def _difference_of_tensors(a: Tensor, b: Tensor, path: str) -> str | None:
    if a.dtype != b.dtype or a.shape != b.shape:
        return f"{path!r} is {a.dtype} {tuple(a.shape)} in one and {b.dtype} {tuple(b.shape)} in the other"
    if torch.equal(a, b) or (a.is_floating_point() and torch.equal(a.nan_to_num(), b.nan_to_num()) and torch.equal(a.isnan(), b.isnan())):
        return None
    gap = f" (by up to {float((a - b).abs().max()):.2g})" if a.is_floating_point() else ""
    return f"{path!r} differs{gap}"


def difference_of_events(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> str | None:
    """Where two records differ first, or ``None``."""
    found = difference(a, b)
    return None if found is None else f"the record: event {found}"


def close(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two sets of weights are equal but for rounding: the sum of the same terms in another order."""
    return a.keys() == b.keys() and all(a[n].shape == b[n].shape and torch.allclose(a[n], b[n], rtol=1e-3, atol=1e-5) for n in a)


def copied(tree: Any) -> Any:
    """A copy of a nested state that later changes of it do not reach."""
    if isinstance(tree, Tensor):
        return tree.detach().clone()
    if isinstance(tree, Mapping):
        return {key: copied(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [copied(value) for value in tree]
    return tree


def leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Everything in a nested state that holds nothing else, with its path; of a mapping also the keys that are no strings."""
    if isinstance(tree, Mapping):
        yield from ((_joined(path, key), key) for key in tree if not isinstance(key, str))
        for key, value in tree.items():
            yield from leaves(value, _joined(path, key))
    elif isinstance(tree, list | tuple):
        for number, value in enumerate(tree):
            yield from leaves(value, _joined(path, number))
    else:
        yield path, tree


def size_in_bytes(tree: Any) -> int:
    """What a nested state takes: the bytes of its tensors, 8 for a number, the length of a string; keys are free.

    Example:
        >>> size_in_bytes({"w": torch.zeros(3), "n": 1, "name": "ab", "none": None})
        22
    """
    total = 0
    for _, leaf in leaves(tree):
        if isinstance(leaf, Tensor):
            total += leaf.nbytes
        elif isinstance(leaf, str | bytes):
            total += len(leaf)
        elif leaf is not None:
            total += 8
    return total


def _joined(path: str, key: object) -> str:
    return f"{path}/{key}" if path else str(key)


def _few(mapping: Mapping[Any, Any]) -> str:
    names = [str(key) for key in mapping]
    return f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}" or "(none)"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
