"""Finding and checking the class labels of any source."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.data import Source

__all__ = ["class_labels", "class_names", "regression_values", "target_columns"]

_CHUNK = 1024


def class_labels(source: Source) -> tuple[str, Tensor]:
    """The only target column of ``source``, checked to hold class numbers: its name and values (int64, ``(rows,)``).

    A source that keeps its columns in an attribute ``targets`` is asked for that; any other is read once, row by row.

    Raises:
        DataError: there is not exactly one column, or it does not hold one integer of at least 0 for each row.
    """
    columns = target_columns(source)
    if len(columns) != 1:
        raise DataError(f"source {source.name!r} has the target columns {', '.join(columns) or 'none'}: give a source with exactly one")
    ((key, column),) = columns.items()
    what = f"the labels {key!r} of source {source.name!r}"
    dtype, shape = str(column.dtype).removeprefix("torch."), tuple(column.shape)
    if column.is_floating_point() and column.dim() and _values(source, column):
        scores = ", .argmax(1) of scores" if column.dim() == 2 and column.shape[1] > 1 else ""
        raise DataError(
            f"{what} are {dtype} values of shape {shape}, and this protocol needs classes: give class numbers{scores}, or take one for "
            "values, which are data_incremental, domain_incremental, gradual_adaptation, joint, multitask and from_datasets"
        )
    cure = _cure(column)
    if cure:
        raise DataError(
            f"{what} are {dtype} of shape {shape}: class numbers are integers of shape ({len(source)},), convert them with {cure}"
        )
    if int(column.min()) < 0:
        row = int((column < 0).nonzero()[0, 0])
        raise DataError(f"row {row} of source {source.name!r} has the negative label {int(column[row])} in {key!r}: number classes from 0")
    return key, column


def target_columns(source: Source) -> Mapping[str, Tensor]:
    """All target columns of ``source``; one that does not keep them in an attribute ``targets`` is read once, row by row."""
    columns = getattr(source, "targets", None)
    return _read_columns(source) if columns is None else columns


def regression_values(source: Source) -> tuple[str, Tensor] | None:
    """The only target column of ``source`` and its name, if it holds values rather than classes, else ``None``.

    Floats that all are whole numbers are taken for classes that were given in the wrong type, unless the source says otherwise by a true
    attribute ``regression``.
    """
    columns = target_columns(source)
    if len(columns) != 1:
        return None
    ((key, column),) = columns.items()
    return (key, column) if column.is_floating_point() and _values(source, column) else None


def _values(source: Source, column: Tensor) -> bool:
    """Whether the floats of a column are values, and no classes that were given in the wrong type."""
    return bool(getattr(source, "regression", False)) or not bool((column == column.round()).all())


def class_names(source: Source, classes: int) -> tuple[str, ...]:
    """What people call the classes of ``source``; empty when they have no names, or not ``classes`` of them."""
    names = tuple(str(name) for name in getattr(source, "class_names", ()))
    return names if len(names) == classes else ()


def _cure(column: Tensor) -> str:
    if column.dim() == 2 and column.shape[1] > 1:
        return ".argmax(1)"
    squeeze = ".squeeze(1)" if column.dim() == 2 else ""
    cast = ".long()" if column.is_floating_point() else ""
    return squeeze + cast


def _read_columns(source: Source) -> dict[str, Tensor]:
    if len(source) == 0:
        raise DataError(f"source {source.name!r} has no rows: give at least one")
    read: dict[str, list[Tensor]] = {}
    for rows in torch.split(torch.arange(len(source)), _CHUNK):
        for key, column in source.take(rows).targets.items():
            read.setdefault(key, []).append(column)
    return {key: torch.cat(columns) for key, columns in read.items()}
