"""What a user may give to a builder as ``source`` and ``test``, brought into one form and checked once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from streamlearn.errors import DataError
from streamlearn.streams.data import Data, Source, Target, Transform
from streamlearn.streams.partition import stratified_split
from streamlearn.streams.sources import TensorSource, canonical_name, dataset_source, named_source
from streamlearn.streams.sources.labels import class_labels, class_names
from streamlearn.streams.task import Task

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

    SourceLike = str | Source | Dataset[Any] | tuple[ArrayLike | Tensor, ArrayLike | Tensor]

__all__ = ["Inputs", "Rows", "count_experiences", "resolve", "whole_number"]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Labelled rows of a source: ``labels[i]`` is the class of row ``indices[i]``, read from ``column``."""

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

    name: str
    train: Rows
    test: Rows
    classes: int
    class_names: tuple[str, ...]
    seed: int
    described: Mapping[str, Any]

    @property
    def task(self) -> Task:
        """The task of telling all classes apart."""
        return Task(self.name, "classification", self.classes, self.class_names)

    def fingerprints(self) -> tuple[str, ...]:
        """Content hashes of the sources, each once."""
        sources = {id(rows.source): rows.source for rows in (self.train, self.test)}
        return tuple(source.fingerprint() for source in sources.values())


def resolve(source: SourceLike, test: SourceLike | None, test_fraction: float, seed: int) -> Inputs:
    """Training and test rows from what the user gave.

    Args:
        source: a name, a `Source`, a tuple ``(x, y)``, or a map-style data set.
        test: the same; ``None`` takes the named source's own test rows, else splits ``source``.
        test_fraction: how much of ``source`` is split off, by class, when there are no test rows; in (0, 1).
        seed: of that split.

    Raises:
        DataError: what was given is no source, or its labels are no class numbers without gaps, or training and test differ
            in shape or classes.
    """
    seed = whole_number(seed, "seed", 0)
    if not isinstance(test_fraction, Real) or not 0 < test_fraction < 1:
        raise DataError(f"test_fraction is {test_fraction!r}: give a number between 0 and 1, or the test rows themselves as test=")
    named = canonical_name(source) if isinstance(source, str) else None
    found, own_test = named_source(named) if named else (_source(source, "data"), None)
    test_source = own_test if test is None else _test_source(test, found.name)
    column, labels = class_labels(found)
    classes = _count_classes(labels, found.name)
    everything = Rows(found, column, torch.arange(len(found)), labels)
    if test_source is None:
        train, held_out = stratified_split(labels, test_fraction, seed=seed, name=found.name)
        rows, test_rows = (Rows(found, column, part, labels[part]) for part in (train, held_out))
    else:
        rows, test_rows = everything, _test_rows(test_source, classes, found)
    described = {
        "source": named or _given(found),
        "test": _described_test(test, test_source),
        "seed": seed,
        "test_fraction": float(test_fraction),
    }
    name = named or (found.name if isinstance(source, Source) else "class")
    return Inputs(name, rows, test_rows, classes, class_names(found, classes), seed, described)


def _source(given: object, name: str) -> Source:
    if isinstance(given, Source):
        return given
    if isinstance(given, tuple) and len(given) == 2:
        return TensorSource.from_arrays(*given, name)
    if isinstance(given, Dataset):
        return dataset_source(given, name)
    what = f"a tuple of {len(given)}" if isinstance(given, tuple) else f"a {type(given).__name__}"
    raise DataError(f"{what} is no source: give a name, a pair (x, y), a map-style torch data set, or a Source")


def _test_source(given: object, name: str) -> Source:
    return named_source(given)[1] if isinstance(given, str) else _source(given, f"{name}/test")


def _test_rows(source: Source, classes: int, train: Source) -> Rows:
    if source.input_shape != train.input_shape:
        raise DataError(
            f"test rows of {source.name!r} have shape {source.input_shape} but training rows of {train.name!r} have {train.input_shape}: "
            "bring both to one shape"
        )
    if source is train or source.name == train.name:
        raise DataError(
            f"source {train.name!r} is given for training and for testing: give other rows as test (under another name), or test_fraction"
        )
    column, labels = class_labels(source)
    if int(labels.max()) >= classes:
        row = int((labels >= classes).nonzero()[0, 0])
        raise DataError(
            f"label {int(labels[row])} in row {row} of {source.name!r} is out of range: {train.name!r} has the classes 0 to {classes - 1}"
        )
    return Rows(source, column, torch.arange(len(source)), labels)


def _count_classes(labels: Tensor, name: str) -> int:
    classes = int(labels.max()) + 1
    if classes > len(labels) or not bool((counts := torch.bincount(labels, minlength=classes)).all()):
        present = set(labels.tolist())
        missing = next(number for number in range(classes) if number not in present)
        raise DataError(
            f"no row of source {name!r} has the class {missing}, though labels run to {classes - 1}: number classes from 0 without gaps"
        )
    return len(counts)


def _given(source: Source) -> dict[str, Any]:
    return {"given by the user": True, "name": source.name, "rows": len(source)}


def _described_test(test: object, source: Source | None) -> Any:
    if test is None or source is None:
        return None
    return canonical_name(test) if isinstance(test, str) else _given(source)


def whole_number(value: object, what: str, least: int) -> int:
    """``value`` if it is a whole number of at least ``least``.

    Raises:
        DataError: it is not.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < least:
        raise DataError(f"{what} is {value!r}: give a whole number of at least {least}")
    return int(value.__index__())


def count_experiences(value: int | None, default: int) -> int:
    """``value``, or ``default`` when it is ``None``; at least 1."""
    return whole_number(default if value is None else value, "the number of experiences", 1)
