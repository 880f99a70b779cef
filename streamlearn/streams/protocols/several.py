"""What protocols over several sources do alike: reading a list of them, names for them, and whether their inputs fit together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from streamlearn.errors import DataError
from streamlearn.streams.data import Source
from streamlearn.streams.inputs import as_source, given_by_user, glance, same_rows
from streamlearn.streams.sources import canonical_name, named_source
from streamlearn.streams.sources.labels import target_columns

__all__ = ["GivenSet", "checked_names", "dtype_of_inputs", "listed", "naming", "read_sets", "refuse_trained", "told_together"]


@dataclass(frozen=True, slots=True, eq=False)
class GivenSet:
    """One data set: its rows, its only target column, and what a description says of it."""

    source: Source
    told: Any
    column: str
    targets: Tensor


def listed(given: object) -> list[object] | None:
    """``given`` as a list, if it is several sources and not one.

    A tuple is a list of sources unless it may be the pair ``(x, y)``: two things of which one at least is no source by itself.

    Example:
        >>> listed(["digits", "usps"]), listed(("digits", "usps")), listed(([[0.0], [1.0]], [0, 1]))
        (['digits', 'usps'], ['digits', 'usps'], None)
    """
    if isinstance(given, list) or (isinstance(given, tuple) and (len(given) != 2 or all(map(_is_one, given)))):
        return list(given)
    return None


def _is_one(given: object) -> bool:
    pair = isinstance(given, tuple) and len(given) == 2 and hasattr(given[0], "__array__")
    return pair or isinstance(given, (str, Source, Dataset))


@contextlib.contextmanager
def naming(which: str) -> Iterator[None]:
    """Says in an error about data which of several is meant: ``"experience 3: ..."``."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{which}: {error}") from error


def checked_names(names: object, count: int, argument: str, what: str) -> tuple[str, ...]:
    """``names`` if they are ``count`` different names, one for each ``what``.

    Raises:
        DataError: they are not.
    """
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{argument} is {names!r}: give a list of names, one for each {what}")
    if len(names) != count:
        raise DataError(f"{argument} lists {len(names)} names for {count}: give one for each {what}")
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        first = names.index(twice)
        second = names.index(twice, first + 1)
        raise DataError(f"{what}s {first} and {second} are both called {twice!r}: give each a name of its own with {argument}=[...]")
    return tuple(names)


def dtype_of_inputs(source: Source) -> torch.dtype:
    """The type of the inputs of ``source``, read from no row where it can answer for none."""
    try:
        return source.take(torch.empty(0, dtype=torch.int64)).x.dtype
    except Exception:  # noqa: BLE001  (whatever a foreign source raises when it is asked for nothing)
        return source.take(torch.zeros(1, dtype=torch.int64)).x.dtype


def told_together(parts: list[Any]) -> Any:
    """Several sources in a description: a list if names bring all of them back."""
    if all(part is None for part in parts):
        return None
    if all(part is None or isinstance(part, str) for part in parts):
        return parts
    return {"given by the user": True, "sources": parts}


def read_sets(train: object, test: object) -> tuple[list[GivenSet], list[GivenSet | None], GivenSet | None]:
    """The training sets; for each its test set, if it has one; and the test set that all share, if they do.

    Raises:
        DataError: there is none, or one is no data set or does not fit to the first; says which.
    """
    given = list(train) if isinstance(train, (list, tuple)) else []
    if not given:
        what = (
            "an empty list" if isinstance(train, (list, tuple)) else repr(train) if isinstance(train, str) else f"a {type(train).__name__}"
        )
        raise DataError(f"train is {what}: give a list of data sets, one for each experience")
    every, tests = list[GivenSet](), list[GivenSet | None]()
    for i, one in enumerate(given):
        with naming(f"experience {i}"):
            found, own_test = _set(one, f"data/{i}")
            _check_inputs(found, every[0] if every else found)
        every.append(found)
        tests.append(own_test)
    shared, own = None, None if test is None else listed(test)
    if own is not None and len(own) != len(every):
        raise DataError(f"test lists {len(own)} sources for {len(every)} experiences: give one for each, or a single one that all share")
    for i, one in enumerate(own or ()):
        with naming(f"test rows of experience {i}"):
            tests[i] = tests[i] if one is None else _test_set(one, f"{every[i].source.name}/test", every)
    if test is not None and own is None:
        with naming("test rows"):
            tests, shared = [None] * len(every), _test_set(test, "data/test", every)
    return every, tests, shared


def _test_set(given: object, name: str, every: Sequence[GivenSet]) -> GivenSet:
    found, own_test = _set(given, name)
    found = own_test or found
    _check_inputs(found, every[0])
    if any(found.source is one.source for one in every):
        raise DataError(f"source {found.source.name!r} is also trained on: give other rows, or test_fraction")
    return found


def refuse_trained(every: Sequence[GivenSet], tests: Sequence[GivenSet | None], shared: GivenSet | None) -> None:
    """Refuse test rows that any experience trains on. Rows are read only where two sources are of one length and shape.

    Raises:
        DataError: says which are.
    """
    alike: dict[object, list[int]] = {}
    for i, one in enumerate(every):
        alike.setdefault((len(one.source), one.source.input_shape), []).append(i)
    seen = cache(lambda i: glance(every[i].source))
    for which, test in [("test rows", shared), *((f"test rows of experience {i}", one) for i, one in enumerate(tests))]:
        near = [] if test is None else alike.get((len(test.source), test.source.input_shape), [])
        if test is None or not near:
            continue
        few = glance(test.source)
        known = next((i for i in near if seen(i) == few and same_rows(test.source, every[i].source)), None)
        if known is not None:
            raise DataError(f"{which}: these are the rows that experience {known} trains on: give other rows, or test_fraction")


def _set(given: object, name: str) -> tuple[GivenSet, GivenSet | None]:
    """What the user gave, and the test rows that it has if it is a name."""
    if isinstance(given, str):
        told = canonical_name(given)
        source, test = named_source(given)
        return _with_targets(source, told), None if test is None else _with_targets(test, told)
    source = as_source(_from_frame(given), name)
    return _with_targets(source, given_by_user(source)), None


def _from_frame(given: object) -> object:
    """A pair whose inputs are a DataFrame, as arrays; anything else as it is. Whole numbers in a table are measurements, not tokens."""
    if not (isinstance(given, tuple) and len(given) == 2 and hasattr(given[0], "columns")):
        return given
    frame, y = given
    if isinstance(y, str):
        if y not in frame.columns:
            raise DataError(f"the table has no column {y!r}: it has {', '.join(map(str, frame.columns))}")
        frame, y = frame.drop(columns=y), frame[y]
    x = np.asarray(frame)
    return x.astype(np.float32) if x.dtype.kind in "biu" else x, y


def _with_targets(source: Source, told: Any) -> GivenSet:
    if len(source) == 0:
        raise DataError(f"source {source.name!r} has no rows: give at least one, or leave it out")
    columns = target_columns(source)
    if len(columns) != 1:
        raise DataError(f"source {source.name!r} has the target columns {', '.join(columns) or 'none'}: give a source with exactly one")
    ((column, targets),) = columns.items()
    return GivenSet(source, told, column, targets)


def _check_inputs(one: GivenSet, first: GivenSet) -> None:
    shape, wanted = one.source.input_shape, first.source.input_shape
    if shape != wanted:
        raise DataError(f"its inputs have shape {shape}, those of experience 0 {wanted}: bring all to one shape")
    own, usual = (str(dtype_of_inputs(part.source)).removeprefix("torch.") for part in (one, first))
    if own != usual:
        raise DataError(f"its inputs are {own}, those of experience 0 {usual}: bring all to one type")
