"""What a user may give to a builder as ``source`` and ``test``, brought into one form and checked once."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from streamlearn.errors import DataError
from streamlearn.streams.data import Data, Source, Target, Transform
from streamlearn.streams.hiding import hide_rows, with_targets
from streamlearn.streams.partition import split_rows
from streamlearn.streams.sources import TensorSource, canonical_name, dataset_source, named_source
from streamlearn.streams.sources.labels import class_labels, class_names, regression_values
from streamlearn.streams.stream import ENDLESS, Stream
from streamlearn.streams.task import Task

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    SourceLike = str | Source | Dataset[Any] | tuple[ArrayLike | Tensor, ArrayLike | Tensor]

__all__ = [
    "Inputs", "Rows", "as_source", "count_classes", "count_experiences", "count_or_endless", "given_by_user", "glance", "plain_number",
    "real_number", "refuse_same_rows", "resolve", "same_rows", "whole_number",
]  # fmt: skip

_GLANCE = 8  # rows that tell almost any two sources apart
_CHUNK_VALUES = 2**22


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Labelled rows of a source: ``labels[i]`` is the class (or the values) of row ``indices[i]``, read from ``column``."""

    source: Source
    column: str
    indices: Tensor
    labels: Tensor

    def data(
        self, positions: Tensor | slice, task: Task, relabel: Tensor | None = None, transform: Transform | None = None, domain: str = ""
    ) -> Data:
        """The rows at ``positions``, asked on ``task``."""
        return Data(self.source, self.indices[positions], (task,), {task.name: Target(self.column, relabel)}, transform, domain)


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """Training rows, test rows, the seed, and what the stream is to tell about all this."""

    task: Task
    train: Rows
    test: Rows
    seed: int
    described: Mapping[str, Any]
    sources: tuple[Source, ...]

    @property
    def name(self) -> str:
        """What the stream and its task are called."""
        return self.task.name

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return self.task.size

    @property
    def class_names(self) -> tuple[str, ...]:
        """What people call the classes; empty when they have no names."""
        return self.task.classes

    def fingerprints(self) -> tuple[str, ...]:
        """Content hashes of the sources, each once."""
        return tuple(source.fingerprint() for source in self.sources)


def resolve(source: SourceLike, test: SourceLike | None, test_fraction: float, seed: int, *, regression: bool = False) -> Inputs:
    """Training and test rows from what the user gave.

    Args:
        source: a name, a `Source`, a tuple ``(x, y)``, or a map-style data set.
        test: the same; ``None`` takes the named source's own test rows, else splits ``source``.
        test_fraction: how much of ``source`` is split off, by class, when there are no test rows; in (0, 1).
        seed: of that split.
        regression: whether targets may also be values, which then make a regression task.

    Raises:
        DataError: what was given is no source, or its labels are no class numbers without gaps, or training and test differ
            in shape or classes.
    """
    seed = whole_number(seed, "seed", 0)
    if not 0 < (fraction := real_number(test_fraction)) < 1:
        raise DataError(f"test_fraction is {test_fraction!r}: give a number between 0 and 1, or the test rows themselves as test=")
    if test is source and not isinstance(test, (str, Source)):
        raise DataError("the same object is given for training and for testing: give other rows as test, or leave it out for test_fraction")
    named = canonical_name(source) if isinstance(source, str) else None
    found, own_test = named_source(named) if named else (as_source(source, "data"), None)
    test_source = own_test if test is None else _test_source(test, found.name)
    name = found.name if named or isinstance(source, Source) else "class"
    found, column, labels, task = _with_task(found, name, regression)
    everything = Rows(found, column, torch.arange(len(found)), labels)
    if test_source is None:
        rows, test_rows = _split(everything, fraction, seed)
    else:
        rows, test_rows = everything, _test_rows(test_source, task, found)
        if test is not None:
            refuse_same_rows(test_source, found)
    described = {
        "source": named or given_by_user(found),
        "test": _described_test(test, test_source),
        "seed": seed,
        "test_fraction": float(fraction),
    }
    sources = (found,) if test_source is None else (found, test_rows.source)
    return Inputs(task, rows, test_rows, seed, described, sources)


def _with_task(source: Source, name: str, regression: bool) -> tuple[Source, str, Tensor, Task]:
    """The source with a target column in the form of its task, the name and values of that column, and the task."""
    values = regression_values(source) if regression else None
    if values is None:
        column, labels = class_labels(source)
        classes = count_classes(labels, source.name)
        return source, column, labels, Task(name, "classification", classes, class_names(source, classes))
    column, targets = values
    if targets.dim() == 1:  # of one value each
        targets = targets.unsqueeze(1)
        source = with_targets(source, {column: targets})
    return source, column, targets, Task(name, "regression", targets[0].numel())


def _split(rows: Rows, fraction: float, seed: int) -> tuple[Rows, Rows]:
    """Rows for training, in whose source the targets of all others are hidden, and rows for testing."""
    source, labels = rows.source, rows.labels
    train, held_out = split_rows(labels, fraction, seed=seed, name=source.name)
    shown = hide_rows(source, {rows.column: labels}, train)
    return Rows(shown, rows.column, train, labels[train]), Rows(source, rows.column, held_out, labels[held_out])


def as_source(given: object, name: str) -> Source:
    """A `Source` of what the user gave, which is no name.

    Raises:
        DataError: it is none of the things of which a source can be made.
    """
    if isinstance(given, Source):
        return given
    if isinstance(given, tuple) and len(given) == 2:
        return TensorSource.from_arrays(*given, name)
    if isinstance(given, Dataset):
        return dataset_source(given, name)
    if isinstance(given, Stream):
        raise DataError(f"stream {given.name!r} stands where a source is wanted: only operators, such as online or joint, take a stream")
    what = f"a tuple of {len(given)}" if isinstance(given, tuple) else f"a {type(given).__name__}"
    raise DataError(f"{what} is no source: give a name, a pair (x, y), a map-style torch data set, or a Source")


def _test_source(given: object, name: str) -> Source:
    if isinstance(given, str):
        train, own_test = named_source(given)
        return own_test or train
    return as_source(given, f"{name}/test")


def _test_rows(source: Source, task: Task, train: Source) -> Rows:
    if source.input_shape != train.input_shape:
        raise DataError(
            f"test rows of {source.name!r} have shape {source.input_shape} but training rows of {train.name!r} have {train.input_shape}: "
            "bring both to one shape"
        )
    if source is train or source.name == train.name:
        raise DataError(
            f"source {train.name!r} is given for training and for testing: give other rows as test (under another name), or test_fraction"
        )
    if task.kind == "regression":
        return _test_values(source, task, train)
    classes = task.size
    column, labels = class_labels(source)
    if int(labels.max()) >= classes:
        row = int((labels >= classes).nonzero()[0, 0])
        raise DataError(
            f"label {int(labels[row])} in row {row} of {source.name!r} is out of range: {train.name!r} has the classes 0 to {classes - 1}"
        )
    return Rows(source, column, torch.arange(len(source)), labels)


def _test_values(source: Source, task: Task, train: Source) -> Rows:
    values = regression_values(source)
    size = 0 if values is None else values[1][0].numel()
    if values is None or size != task.size:
        raise DataError(
            f"test rows of {source.name!r} have other targets than {train.name!r}, which has {task.size} values: make them alike"
        )
    column, targets = values
    if targets.dim() == 1:
        targets = targets.unsqueeze(1)
        source = with_targets(source, {column: targets})
    return Rows(source, column, torch.arange(len(source)), targets)


def count_classes(labels: Tensor, name: str) -> int:
    """How many classes ``labels`` (int64, at least 0) have.

    Raises:
        DataError: a class below the largest has no row; ``name`` says in which source.
    """
    classes = int(labels.max()) + 1
    if classes > len(labels) or not bool((counts := torch.bincount(labels, minlength=classes)).all()):
        present = set(labels.tolist())
        missing = next(number for number in range(classes) if number not in present)
        raise DataError(
            f"no row of source {name!r} has the class {missing}, though labels run to {classes - 1}: number classes from 0 without gaps"
        )
    return len(counts)


def refuse_same_rows(test: Source, train: Source, instead: str = "test_fraction") -> None:
    """Refuse test rows that are the training rows under another name; ``instead`` is the option that holds some out.

    Raises:
        DataError: they are.
    """
    if same_rows(test, train):
        raise DataError(
            f"the {len(test)} test rows of {test.name!r} are the training rows of {train.name!r}: give other rows as test, or leave it out "
            f"for {instead}"
        )


def same_rows(a: Source, b: Source) -> bool:
    """Whether two sources have the same inputs in the same order, whatever they are called and whatever their targets are.

    Nothing is read where lengths or shapes differ, and a few rows where these do.

    Example:
        >>> x, y = torch.rand(6, 2), [0, 1, 2] * 2
        >>> first, again, other = (as_source(pair, "data") for pair in ((x, y), (x.clone(), y[::-1]), (x + 1, y)))
        >>> same_rows(first, again), same_rows(first, other)
        (True, False)
    """
    if a is b:
        return True
    if (len(a), a.input_shape) != (len(b), b.input_shape) or glance(a) != glance(b):
        return False
    size = max(1, _CHUNK_VALUES // max(1, math.prod(a.input_shape)))
    return all(_equal(a.take(rows).x, b.take(rows).x) for rows in torch.arange(len(a)).split(size))  # type: ignore[no-untyped-call]


def glance(source: Source) -> bytes:
    """What a few rows of a source hold: of two sources of one length and shape with the same rows, the same."""
    few = torch.linspace(0, len(source) - 1, min(_GLANCE, len(source)), dtype=torch.float64).long()
    return source.take(few).x.detach().double().contiguous().numpy().tobytes()


def _equal(a: Tensor, b: Tensor) -> bool:
    return torch.equal(a, b) if a.dtype == b.dtype else torch.equal(a.double(), b.double())


def given_by_user(source: Source) -> dict[str, Any]:
    """What a description says of a source that no name brings back."""
    return {"given by the user": True, "name": source.name, "rows": len(source)}


def _described_test(test: object, source: Source | None) -> Any:
    if test is None or source is None:
        return None
    return canonical_name(test) if isinstance(test, str) else given_by_user(source)


def real_number(value: object) -> float:
    """``value`` as a number of Python, numbers of numpy too: an ``int`` stays one, and what is no number, or a bool, becomes NaN.

    Example:
        >>> import numpy as np
        >>> real_number(np.float32(0.5)), real_number(np.int64(3)), real_number("3")
        (0.5, 3, nan)
    """
    found = plain_number(value)
    return found if isinstance(found, (int, float)) and not isinstance(found, bool) else float("nan")


def plain_number(value: Any) -> Any:
    """A number of numpy, or any other real one, as one of Python, which JSON can hold; all else as it is."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return value
    return int(value) if isinstance(value, Integral) else float(value)


def whole_number(value: object, what: str, least: int) -> int:
    """``value`` if it is a whole number of at least ``least``.

    Raises:
        DataError: it is not.
    """
    try:
        number = -1 if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]  # this is what tells
    except TypeError:  # also of arrays and tensors, which look like whole numbers until they are asked
        number = -1
    if number < least:
        raise DataError(f"{what} is {value!r}: give a whole number of at least {least}")
    return number


def count_experiences(value: int | str | None, default: int) -> int:
    """``value``, or ``default`` when it is ``None``; at least 1."""
    if value == ENDLESS:
        raise DataError("the number of experiences is 'endless', but this protocol ends with its rows or classes: give a number")
    return whole_number(default if value is None else value, "the number of experiences", 1)


def count_or_endless(value: int | str | None, default: int) -> int | None:
    """``value``, or ``default`` when it is ``None``; ``None`` for ``"endless"``."""
    return None if value == ENDLESS else count_experiences(value, default)
