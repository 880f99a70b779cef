"""What a column of a `datasets.Dataset` holds: numbers, texts, images or arrays; classes or values."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.sources.encoding import class_numbers

__all__ = ["array_of", "kind_of", "targets_of"]


def targets_of(dataset: Any, column: str, name: str, known: tuple[str, ...]) -> tuple[Tensor, tuple[str, ...]]:
    """Class numbers and the names of the classes, or values and no names."""
    feature, what = dataset.features[column], f"target {column!r} of source {name!r}"
    if kind_of(feature) == "array":
        values, whole = array_of(dataset, column, name)
        if whole:
            raise DataError(f"{what} holds sequences of whole numbers: give one class, or floats, for each row")
        return torch.from_numpy(values.astype(np.float32)), ()
    if kind_of(feature) not in ("number", "text"):
        raise DataError(f"{what} is of type {feature}: give classes or floats")
    given = dataset[column][:]
    labelled = type(feature).__name__ == "ClassLabel"
    missing = next((row for row, value in enumerate(given) if value is None or (labelled and value < 0)), None)
    if missing is not None:
        raise DataError(f"row {missing} of {what} has no label: drop such rows")
    if labelled:
        return torch.tensor(given, dtype=torch.int64), tuple(feature.names)
    if any(isinstance(value, float) for value in given[:1]):
        return torch.tensor(given, dtype=torch.float32), ()
    return class_numbers(given, what, known or None)


def array_of(dataset: Any, column: str, name: str) -> tuple[Any, bool]:
    """The rows of a column of sequences as one array, and whether they are whole numbers."""
    leaf = np.dtype(_leaf(dataset.features[column]))
    if leaf.kind not in "biuf":
        raise DataError(f"column {column!r} of source {name!r} holds sequences of texts or objects: give numbers")
    values = dataset.select_columns([column]).with_format("numpy")[column][:]
    if not isinstance(values, np.ndarray) or values.dtype == object:
        shapes = [None if value is None else np.shape(value) for value in values]
        row = next((row for row, shape in enumerate(shapes) if shape is None or shape != shapes[0]), 0)
        raise DataError(
            f"row {row} of column {column!r} of source {name!r} {'is missing' if shapes[row] is None else f'has shape {shapes[row]}'}, but "
            "all rows must have one shape: pad or cut them"
        )
    return values.astype(leaf, copy=False), leaf.kind in "iu"


def _leaf(feature: Any) -> str:
    """The type of the numbers in a sequence or array, as numpy calls it; ``"object"`` for anything else."""
    while hasattr(feature, "feature"):
        feature = feature.feature
    try:
        return str(np.dtype(feature.dtype).name)
    except TypeError:
        return "object"


def kind_of(feature: Any) -> str:
    """What is in a column: "number", "text", "image", "array", or "other"."""
    called = type(feature).__name__
    if called in ("List", "LargeList", "Sequence") or called.startswith("Array"):
        return "array"
    if called == "Image":
        return "image"
    if called not in ("Value", "ClassLabel"):
        return "other"
    if feature.dtype in ("string", "large_string", "string_view"):
        return "text"
    return "number" if feature.dtype == "bool" or feature.dtype.startswith(("int", "uint", "float")) else "other"
