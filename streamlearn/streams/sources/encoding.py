"""How the columns of a table become inputs and targets: learnt from training rows, applied to test rows alike."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamlearn.errors import DataError

__all__ = ["Feature", "TargetColumn", "class_numbers", "encode_features", "encode_target", "learn_feature", "learn_target", "spread"]

Floats = NDArray[np.float64]
Kind = Literal["classification", "regression"]

_MOST_CATEGORIES = 1000
"""One-hot columns of more would make rows of zeros that fill the memory; such a column is an identifier or a free text."""
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}([ T].*)?|\d{1,2}[/.]\d{1,2}[/.]\d{2,4}( .*)?")


@dataclass(frozen=True, slots=True)
class Feature:
    """One column of inputs: ``(value - mean) / scale``, or one-hot if it has ``categories``."""

    name: str
    categories: tuple[str, ...] = ()
    mean: float = 0.0
    scale: float = 1.0

    @property
    def width(self) -> int:
        """How many values it takes in an input."""
        return len(self.categories) or 1


@dataclass(frozen=True, slots=True)
class TargetColumn:
    """One target: the number of a value in ``classes``, or ``(value - mean) / scale`` if it has none."""

    name: str
    classes: tuple[str, ...] = ()
    mean: float = 0.0
    scale: float = 1.0


def spread(values: Floats) -> tuple[float, float]:
    """Mean and standard deviation (that of all values, not its estimate); 1 for the latter where all values are equal."""
    return (float(values[0]), 1.0) if values.min() == values.max() else (float(values.mean()), float(values.std()))


def learn_feature(column: Any, name: str, table: str, standardize: bool) -> Feature:
    """How a pandas column becomes inputs.

    Raises:
        DataError: it holds dates, nothing, infinity, objects, or too many different texts.
    """
    if _is_number(column, name, table):
        mean, scale = spread(_numbers(column, name, table)) if standardize and not _is_boolean(column) else (0.0, 1.0)
        return Feature(name, mean=mean, scale=scale)
    texts = _texts(column, name, table)
    declared = column.dtype.categories.tolist() if hasattr(column.dtype, "categories") else texts
    if texts and all(_DATE.fullmatch(text) for text in texts):
        _refuse_dates(name, table)
    categories = tuple(map(str, _in_order(declared)))
    if len(categories) > _MOST_CATEGORIES:
        raise DataError(
            f"column {name!r} of table {table!r} has {len(categories)} different texts, too many for one-hot columns (at most "
            f"{_MOST_CATEGORIES}): leave it out with features=[...], or read it as text"
        )
    return Feature(name, categories)


def encode_features(features: Sequence[Feature], frame: Any, table: str) -> Tensor:
    """The inputs of every row of ``frame``, float32 ``(rows, sum of widths)``.

    Raises:
        DataError: a column holds nothing somewhere, is of another kind than in training, or has a category that is not known.
    """
    x = np.zeros((len(frame), sum(feature.width for feature in features)), dtype=np.float32)
    place = 0
    for feature in features:
        column = frame[feature.name]
        if feature.categories:
            rows = range(len(frame))
            x[rows, [place + number for number in _category_numbers(feature, column, table)]] = 1
        else:
            if not _is_number(column, feature.name, table):
                raise DataError(f"column {feature.name!r} of table {table!r} holds text where training rows hold numbers: repair the file")
            with np.errstate(over="ignore"):  # an overflow becomes infinity, which the source refuses with its row
                x[:, place] = (_numbers(column, feature.name, table) - feature.mean) / feature.scale
        place += feature.width
    return torch.from_numpy(x)


def learn_target(column: Any, name: str, table: str, standardize: bool, task: Kind | None) -> TargetColumn:
    """Whether a pandas column holds classes or values, and which.

    Raises:
        DataError: it holds dates, nothing somewhere, one class only, or floats that may be either.
    """
    numeric = _is_number(column, name, table)
    floating = numeric and column.dtype.kind == "f"
    if task == "regression" and not numeric:
        raise DataError(f"target {name!r} of table {table!r} holds text: values of a regression are numbers")
    if task == "classification" or not (floating or task == "regression"):
        return TargetColumn(name, class_numbers(_labels(column, name, table), f"target {name!r} of table {table!r}")[1])
    values = _numbers(column, name, table)
    if task is None and bool((values == values.round()).all()):
        raise DataError(
            f"target {name!r} of table {table!r} holds floats that all are whole numbers: say task='classification' or task='regression'"
        )
    mean, scale = spread(values) if standardize else (0.0, 1.0)
    return TargetColumn(name, mean=mean, scale=scale)


def encode_target(target: TargetColumn, column: Any, table: str) -> Tensor:
    """Class numbers (int64) or values (float32) of every row, ``(rows,)``.

    Raises:
        DataError: a row holds nothing, or a class that no training row has.
    """
    what = f"target {target.name!r} of table {table!r}"
    if target.classes:
        return class_numbers(_labels(column, target.name, table), what, target.classes)[0]
    if not _is_number(column, target.name, table):
        raise DataError(f"{what} holds text where training rows hold numbers: repair the file")
    return torch.from_numpy(((_numbers(column, target.name, table) - target.mean) / target.scale).astype(np.float32))


def class_numbers(values: Iterable[Any], what: str, known: Sequence[str] | None = None) -> tuple[Tensor, tuple[str, ...]]:
    """Numbers of the classes that ``values`` name (int64, ``(rows,)``), and the names of the classes.

    Args:
        values: texts, whole numbers or truth values.
        what: how messages name them.
        known: the names in order of their numbers; ``None`` sorts those that occur (numbers as numbers, text as text).

    Raises:
        DataError: one class only occurs, or one that is not known.

    Example:
        >>> class_numbers([10, 9, 10], "the labels")
        (tensor([1, 0, 1]), ('9', '10'))
    """
    given = list(values)
    names = tuple(dict.fromkeys(map(str, _in_order(given)))) if known is None else tuple(known)
    if known is None and len(names) < 2:
        raise DataError(f"{what} holds one class only, {', '.join(names) or 'none'}: give rows of at least two classes")
    numbers = {name: number for number, name in enumerate(names)}
    found = [numbers.get(str(value), -1) for value in given]
    if -1 in found:
        row = found.index(-1)
        raise DataError(
            f"{what} holds the class {str(given[row])!r} in row {row}, which no training row has: drop such rows, or train on some"
        )
    return torch.tensor(found, dtype=torch.int64), names


def _in_order(values: Iterable[Any]) -> list[Any]:
    different = list(dict.fromkeys(values))
    try:
        return sorted(different)
    except TypeError:  # text and numbers
        return sorted(different, key=str)


def _category_numbers(feature: Feature, column: Any, table: str) -> list[int]:
    numbers = {category: number for number, category in enumerate(feature.categories)}
    texts = _texts(column, feature.name, table)
    strange = next((row for row, text in enumerate(texts) if text not in numbers), None)
    if strange is not None:
        raise DataError(
            f"row {strange} of column {feature.name!r} of table {table!r} holds {texts[strange]!r}, which no training row holds: "
            "drop such rows, or train on some"
        )
    return [numbers[text] for text in texts]


def _is_boolean(column: Any) -> bool:
    return bool(column.dtype.kind == "b")


def _is_number(column: Any, name: str, table: str) -> bool:
    """Whether a column without gaps holds numbers or truth values; if not, it holds text or categories."""
    missing = column.isna().to_numpy()
    if missing.any():
        raise DataError(f"row {int(missing.argmax())} of column {name!r} of table {table!r} holds no value: fill it in, or drop such rows")
    if hasattr(column.dtype, "categories"):
        return False
    kind = column.dtype.kind
    if kind in "mM" or str(column.dtype).startswith("period"):
        _refuse_dates(name, table)
    if kind == "c":
        raise DataError(f"column {name!r} of table {table!r} holds complex numbers: give their real and imaginary parts as two columns")
    return kind in "biuf"


def _numbers(column: Any, name: str, table: str) -> Floats:
    values: Floats = column.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        row = int(np.isfinite(values).argmin())
        raise DataError(f"row {row} of column {name!r} of table {table!r} holds infinity: repair it, or drop such rows")
    return values


def _texts(column: Any, name: str, table: str) -> list[str]:
    values = column.tolist()
    if hasattr(column.dtype, "categories"):
        return [str(value) for value in values]
    for row, value in enumerate(values):
        if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
            _refuse_dates(name, table)
        if not isinstance(value, str):
            raise DataError(
                f"row {row} of column {name!r} of table {table!r} holds a {type(value).__name__}: give numbers, truth values or text"
            )
    return values  # type: ignore[no-any-return]


def _labels(column: Any, name: str, table: str) -> list[Any]:
    if not _is_number(column, name, table):
        return column.tolist() if hasattr(column.dtype, "categories") else _texts(column, name, table)
    if column.dtype.kind == "f":
        values = _numbers(column, name, table)
        if not bool((values == values.round()).all()):
            raise DataError(f"target {name!r} of table {table!r} holds fractions, which number no classes: say task='regression'")
        return [int(value) for value in values]
    return column.tolist()  # type: ignore[no-any-return]


def _refuse_dates(name: str, table: str) -> None:
    raise DataError(
        f"column {name!r} of table {table!r} holds dates: turn them into numbers, such as the hour or days since the first, or leave the "
        "column out with features=[...]"
    )
