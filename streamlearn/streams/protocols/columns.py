"""A source with several target columns: a task for each, and labels that are missing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.data import Data, Source, Target
from streamlearn.streams.hiding import hide_rows, with_targets
from streamlearn.streams.inputs import as_source, given_by_user, refuse_same_rows
from streamlearn.streams.partition import permutation
from streamlearn.streams.protocols.several import checked_names
from streamlearn.streams.sources import TensorSource, canonical_name, named_source
from streamlearn.streams.sources.labels import target_columns
from streamlearn.streams.sources.tensors import as_tensor
from streamlearn.streams.task import Task

__all__ = ["Pool", "columns_pool", "has_columns"]

_SURELY_CLASSES = 1000
"""Up to this number a class of which no row is labelled is believed; beyond it, numbers that no row could fill are a mistake."""


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """All rows that a stream of several tasks may train on, and all that it is measured on, in homogeneous pieces."""

    name: str
    train: tuple[Data, ...]
    test: tuple[Data, ...]
    input_shape: tuple[int, ...]
    described: Mapping[str, Any]
    fingerprints: Callable[[], Sequence[str]]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """Every task, in order of the pieces."""
        return tuple({task.name: task for piece in self.train for task in piece.tasks}.values())


@dataclass(frozen=True, slots=True, eq=False)
class _Table:
    """A source whose missing labels hold zeros; ``known`` tells, for each column that has some, where they are not missing."""

    source: Source
    tasks: Mapping[str, Task]
    known: Mapping[str, Tensor]

    def data(self, source: Source, indices: Tensor) -> Data:
        """Rows of ``source``, which shows what is to be seen of this one."""
        tasks = tuple(self.tasks.values())
        targets = {task.name: Target(column) for column, task in self.tasks.items()}
        masks = {self.tasks[column].name: known[indices] for column, known in self.known.items()}
        return Data(source, indices, tasks, targets, labelled={task: mask for task, mask in masks.items() if not bool(mask.all())})

    def fingerprint(self) -> str:
        """A hash of the rows and of which labels are missing: a zero that stands for none is another content than a label 0."""
        digest = hashlib.sha256(self.source.fingerprint().encode())
        for column, known in sorted(self.known.items()):
            digest.update(column.encode() + known.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest() if self.known else self.source.fingerprint()


def has_columns(given: object) -> bool:
    """Whether ``given`` is one source with several target columns."""
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping):
        return True
    source = named_source(given)[0] if isinstance(given, str) else given
    return isinstance(source, Source) and len(target_columns(source)) > 1


def columns_pool(source: Any, test: Any, test_fraction: float, seed: int, names: object) -> Pool:
    """The rows of ``source``, each asked on every task, and test rows: those given, the named source's own, or some split off.

    Raises:
        DataError: a column is no target, or training and test rows do not fit together.
    """
    named = canonical_name(source) if isinstance(source, str) else None
    own_test = named_source(source)[1] if named else None
    table = _table(source, "data")
    if names is not None:
        called = checked_names(names, len(table.tasks), "tasks", "target column")
        table = replace(table, tasks={c: replace(t, name=name) for (c, t), name in zip(table.tasks.items(), called, strict=True)})
    given_test, tables = own_test if test is None else test, [table]
    if given_test is None:
        rows, held_out = _split(table, test_fraction, seed)
        shown = hide_rows(table.source, target_columns(table.source), rows)
        train, tested = table.data(shown, rows), table.data(table.source, held_out)
    else:
        other = _fitting(_table(given_test, f"{table.source.name}/test"), table)
        train, tested = (part.data(part.source, torch.arange(len(part.source))) for part in (table, other))
        tables.append(other)
    _refuse_unlabelled(train, table.source.name)
    described = {
        "source": named or given_by_user(table.source),
        "test": None if test is None else canonical_name(test) if isinstance(test, str) else given_by_user(tested.source),
        "seed": seed,
        "test_fraction": float(test_fraction),
    }
    name, shape = table.source.name, table.source.input_shape
    return Pool(name, (train,), (tested,), shape, described, lambda: [part.fingerprint() for part in tables])


def _table(given: Any, name: str) -> _Table:
    """What the user gave, with its missing labels found and replaced."""
    if isinstance(given, tuple) and len(given) == 2 and isinstance(given[1], Mapping):
        x, columns = as_tensor(given[0], f"x of source {name!r}"), _tensors(given[1], name)
        cleaned = {key: _cleaned(column, key, name) for key, column in columns.items()}
        source: Source = TensorSource(x, {key: values for key, (values, _, _) in cleaned.items()}, name)
    else:
        source = named_source(given)[0] if isinstance(given, str) else as_source(given, name)
        columns = dict(target_columns(source))
        cleaned = {key: _cleaned(column, key, source.name) for key, column in columns.items()}
        if any(values is not columns[key] for key, (values, _, _) in cleaned.items()) or not hasattr(source, "targets"):
            source = with_targets(source, {key: values for key, (values, _, _) in cleaned.items()})
    tasks = {key: replace(task, name=key) for key, (_, _, task) in cleaned.items()}
    return _Table(source, tasks, {key: known for key, (_, known, _) in cleaned.items() if known is not None})


def _tensors(columns: Mapping[Any, Any], name: str) -> dict[str, Tensor]:
    strange = next((key for key in columns if not isinstance(key, str) or not key), None)
    if strange is not None or not columns:
        raise DataError(f"source {name!r} has the target columns {list(columns)}: give at least one, each with a name, as {{'a': values}}")
    return {key: as_tensor(column, f"target {key!r} of source {name!r}").detach().cpu() for key, column in columns.items()}


def _cleaned(column: Tensor, key: str, name: str) -> tuple[Tensor, Tensor | None, Task]:
    """The column with zeros where a label is missing, where it is not (``None``: everywhere), and its task."""
    what = f"target {key!r} of source {name!r}"
    if column.is_floating_point():
        values, missing = _regressed(column, what)
    else:
        values, missing = _classes(column, what)
    if len(column) and bool(missing.all()):
        raise DataError(f"{what} has no label in any row: leave this column out")
    size = values.shape[1] if column.is_floating_point() else int(values.max()) + 1 if len(values) else 1
    if not column.is_floating_point() and size > max(_SURELY_CLASSES, len(values)):
        raise DataError(f"{what} has {len(values)} rows and labels up to {size - 1}: number classes from 0 without gaps")
    task = Task(key, "regression" if column.is_floating_point() else "classification", size)
    if not bool(missing.any()):
        return values, None, task
    return values.masked_fill(missing.view(-1, *[1] * (values.dim() - 1)), 0), ~missing, task


def _regressed(column: Tensor, what: str) -> tuple[Tensor, Tensor]:
    values = column.unsqueeze(1) if column.dim() == 1 else column
    if values.dim() != 2 or values.shape[1] == 0:
        raise DataError(f"{what} has shape {tuple(column.shape)}: values to regress have shape (rows,) or (rows, columns)")
    infinite = values.isinf().any(1)
    if bool(infinite.any()):
        raise DataError(f"row {int(infinite.nonzero()[0, 0])} of {what} holds infinity: repair it, or give NaN where it is missing")
    return values, values.isnan().any(1)


def _classes(column: Tensor, what: str) -> tuple[Tensor, Tensor]:
    if column.dim() != 1 or column.is_complex():
        cure = ".argmax(1)" if column.dim() == 2 and column.shape[1] > 1 else ".squeeze(1)" if column.dim() == 2 else "one integer a row"
        raise DataError(f"{what} has shape {tuple(column.shape)}: class numbers are integers of shape (rows,), convert them with {cure}")
    values = column if column.dtype == torch.int64 else column.long()
    wrong = values < -1
    if bool(wrong.any()):
        row = int(wrong.nonzero()[0, 0])
        raise DataError(
            f"row {row} of {what} has the negative label {int(values[row])}: number classes from 0, and give -1 where it is missing"
        )
    return values, values == -1


def _split(table: _Table, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows for training and rows for testing, ascending; rows that miss the same labels are spread over both alike."""
    rows = len(table.source)
    if rows < 2:
        raise DataError(f"source {table.source.name!r} has {rows} row, too few to train and to test: add rows or give test=")
    count = min(max(1, round(fraction * rows)), rows - 1)
    order = permutation(rows, seed=seed, purpose="test rows")
    for known in table.known.values():  # stable: rows of one pattern lie side by side, in random order
        order = order[known[order].long().argsort(stable=True)]
    stops = torch.arange(rows + 1) * count // rows
    chosen = stops[1:] > stops[:-1]
    return order[~chosen].sort().values, order[chosen].sort().values


def _fitting(test: _Table, train: _Table) -> _Table:
    """The test rows, asked on the tasks of the training rows."""
    name, known = test.source.name, train.source.name
    if test.source is train.source or name == known:
        raise DataError(f"source {known!r} is given for training and for testing: give other rows as test (under another name)")
    if test.source.input_shape != train.source.input_shape:
        raise DataError(
            f"test rows of {name!r} have shape {test.source.input_shape} but training rows of {known!r} have {train.source.input_shape}: "
            "bring both to one shape"
        )
    if test.tasks.keys() != train.tasks.keys():
        raise DataError(
            f"test rows of {name!r} have the targets {', '.join(test.tasks)}, {known!r} has {', '.join(train.tasks)}: make them alike"
        )
    for column, task in train.tasks.items():
        own = test.tasks[column]
        if own.kind != task.kind or (task.kind == "regression" and own.size != task.size):
            raise DataError(f"target {column!r} of {name!r} is {_told(own)}, that of {known!r} {_told(task)}: make them alike")
        if own.size > task.size:
            raise DataError(
                f"label {own.size - 1} in {column!r} of {name!r} is out of range: {known!r} has the classes 0 to {task.size - 1}"
            )
    refuse_same_rows(test.source, train.source)
    return replace(test, tasks=train.tasks)


def _told(task: Task) -> str:
    return f"{task.size} classes" if task.kind == "classification" else f"{task.size} values a row"


def _refuse_unlabelled(train: Data, name: str) -> None:
    for task in train.tasks:
        if task.name in train.labelled and not bool(train.labelled[task.name].any()):
            raise DataError(
                f"no training row of source {name!r} has a label of {task.name!r}: label more rows, or give other test rows as test="
            )
