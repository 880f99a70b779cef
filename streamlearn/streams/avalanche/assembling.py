"""From the data sets of a benchmark to `Data`: tasks, target columns and domains are known when all have been seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.avalanche.rows import DataRows, Reader, Readers
from streamlearn.streams.avalanche.trees import Items, Piece, Trees
from streamlearn.streams.data import Data, Source, Target
from streamlearn.streams.hiding import with_targets
from streamlearn.streams.sources.datasets import known_targets
from streamlearn.streams.sources.reading import read_rows
from streamlearn.streams.task import Task

__all__ = ["Assembler", "Part"]

Part = Sequence[Data]
"""The rows of one experience in one role, in pieces that are alike."""

_CHUNK = 1024


class _Rows(NamedTuple):
    """Rows of one piece that have one task label."""

    piece: Piece
    reader: Reader
    rows: Tensor
    column: str
    label: int

    def domain_key(self, frozen: bool) -> tuple[int, ...]:
        """What is done to inputs: by all transforms, or by those that Avalanche calls frozen, because they belong to the data."""
        steps = [step for step in self.piece.steps if step.frozen or not frozen]
        return tuple(id(function) for step in steps for function in step.of_inputs())


class _Columns:
    """Target columns over one source: a second one only if a row has different targets in different experiences."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._found: dict[str, tuple[Tensor, Tensor]] = {}

    def place(self, rows: Tensor, targets: Tensor, where: str) -> str:
        """The name of the column that holds ``targets`` for ``rows``."""
        for name, (values, known) in self._found.items():
            if bool(((values[rows] == targets) | ~known[rows]).all()):
                return self._write(name, rows, targets, where)
        name = f"y/{len(self._found)}" if self._found else "y"
        self._found[name] = torch.zeros(self._length, dtype=torch.int64), torch.zeros(self._length, dtype=torch.bool)
        return self._write(name, rows, targets, where)

    def _write(self, name: str, rows: Tensor, targets: Tensor, where: str) -> str:
        values, known = self._found[name]
        values[rows], known[rows] = targets, True
        if not torch.equal(values[rows], targets):
            raise DataError(f"a row comes up twice in {where} with different targets: give every row one target")
        return name

    def targets(self) -> dict[str, Tensor]:
        """All columns; zeros where no row was placed."""
        return {name: values for name, (values, _) in self._found.items()}


class Assembler:
    """Takes the data sets one by one, then gives their rows.

    The sources of different roles know the targets of their own rows only, even where all lie in one data set.

    Args:
        trees: reads them.
        name: of the tasks and sources.
        workers: as in `Readers`.
    """

    def __init__(self, trees: Trees, name: str, workers: int) -> None:
        self._trees, self._name, self._readers = trees, name, Readers(name, workers)
        self._found: dict[str, list[list[_Rows]]] = {}
        self._columns: dict[tuple[str, int], _Columns] = {}
        self._sizes: dict[int, int] = {}
        self._told: dict[int, str] = {}
        self.input_shape: tuple[int, ...] = ()
        self.tasks: tuple[Task, ...] = ()

    def add(self, role: str, i: int, dataset: Any) -> None:
        """The rows of experience ``i`` of ``role`` are those of ``dataset``.

        Raises:
            DataError: there are none, targets are no class numbers, or inputs have another shape than those before.
        """
        where = f"experience {i} of the {role} rows"
        kept = self._trees.column(dataset.targets, f"the targets of {where}") if hasattr(dataset, "targets") else None
        labels = getattr(dataset, "targets_task_labels", None)
        task = torch.zeros(len(dataset), dtype=torch.int64) if labels is None else self._trees.column(labels, f"the task labels of {where}")
        found = []
        for piece in self._trees.pieces(dataset, "train" if role == "train" else "eval"):
            known = _known(piece, None if kept is None else kept[piece.positions])
            reader = self._readers.reader(piece, known, role)
            targets = known if known is not None and reader.trusted else _read_targets(piece, reader, where)
            self._check(reader, targets, where)
            places = piece.rows if reader.places is None else reader.places[piece.rows]
            for label in torch.unique(task[piece.positions]).tolist():
                mine = task[piece.positions] == label
                rows, values = (places, targets) if bool(mine.all()) else (places[mine], targets[mine])
                columns = self._columns.setdefault((role, id(reader.source)), _Columns(len(reader.source)))
                found.append(_Rows(piece, reader, rows, columns.place(rows, values, where), label))
                self._sizes[label] = max(self._sizes.get(label, 0), int(values.max()) + 1)
        if not found:
            raise DataError(f"{where} of the Avalanche benchmark is empty: remove it from the benchmark or give it rows")
        self._found.setdefault(role, []).append(found)

    def _check(self, reader: Reader, targets: Tensor, where: str) -> None:
        if int(targets.min()) < 0:
            raise DataError(f"{where} has the target {int(targets.min())}: number classes from 0")
        self.input_shape = self.input_shape or reader.shape
        if reader.shape != self.input_shape:
            raise DataError(f"{where} has inputs of shape {reader.shape}, those before have {self.input_shape}: bring all to one shape")

    def parts(self) -> dict[str, list[Part]]:
        """By role and experience, the rows; ``tasks`` are known from now on."""
        one = len(self._sizes) == 1
        by_label = {
            label: Task(self._name if one else f"{self._name}/{label}", "classification", size)
            for label, size in sorted(self._sizes.items())
        }
        self.tasks = tuple(by_label.values())
        domains = _domains(self._found)
        sources: dict[tuple[str, int], Source] = {}
        made: dict[str, list[Part]] = {}
        for role, experiences in self._found.items():
            for found in experiences:
                part = [self._data(rows, role, by_label[rows.label], domains, sources) for rows in found]
                made.setdefault(role, []).append(part)
        return made

    def _data(
        self, found: _Rows, role: str, task: Task, domains: Mapping[tuple[int, ...], str], sources: dict[tuple[str, int], Source]
    ) -> Data:
        reader, key = found.reader, (role, id(found.reader.source))
        if key not in sources:
            sources[key] = with_targets(reader.source, self._columns[key].targets())
        leaf = found.piece.leaf
        domain = leaf.data.domain if isinstance(leaf, DataRows) else domains.get(found.domain_key(False), "")
        data = Data(sources[key], found.rows, (task,), {task.name: Target(found.column)}, reader.transform, domain, augment=reader.augment)
        self._told[id(data)] = reader.told
        return data

    def told(self, data: Data) -> str:
        """What is done to the inputs of ``data``, one of `parts`."""
        return self._told[id(data)]


def _known(piece: Piece, kept: Tensor | None) -> Tensor | None:
    """The targets of the rows of ``piece``, if they are kept beside the rows."""
    if kept is not None or piece.steps:
        return kept
    found = known_targets(piece.leaf)
    return None if found is None else found[piece.rows]


def _read_targets(piece: Piece, reader: Reader, where: str) -> Tensor:
    """The targets of the rows of ``piece``, from the rows themselves."""
    items = Items(piece.leaf, piece.steps)
    column = torch.cat([read_rows(items, reader.source.name, rows.tolist(), None).y for rows in torch.split(piece.rows, _CHUNK)])
    if column.is_floating_point() or column.dim() != 1:
        kind = str(column.dtype).removeprefix("torch.")
        raise DataError(f"the targets of {where} are {kind} of shape {tuple(column.shape)}: only classification benchmarks become streams")
    return column.long()


def _domains(found: Mapping[str, Sequence[Sequence[_Rows]]]) -> dict[tuple[int, ...], str]:
    """By all that is done to inputs, the name of the domain; empty where all training rows are of one."""
    every = [rows for experiences in found.values() for part in experiences for rows in part]
    train = [rows for part in found["train"] for rows in part]
    frozen = len({rows.domain_key(True) for rows in train}) > 1
    if len({rows.domain_key(frozen) for rows in train}) <= 1:
        return {}
    numbers: dict[tuple[int, ...], int] = {}
    for rows in every:
        numbers.setdefault(rows.domain_key(frozen), len(numbers))
    return {rows.domain_key(False): f"transform/{numbers[rows.domain_key(frozen)]}" for rows in every}
