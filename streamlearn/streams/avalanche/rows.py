"""How rows of Avalanche's data sets are read: in memory where that gives the same inputs, bit for bit, else one by one."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import Dataset

from streamlearn.errors import DataError
from streamlearn.streams.avalanche.changes import Chain, Change, compiled, in_memory
from streamlearn.streams.avalanche.trees import Items, Piece
from streamlearn.streams.data import Columns, Data, Source, Transform
from streamlearn.streams.hiding import without_targets
from streamlearn.streams.sources import TensorSource
from streamlearn.streams.sources.reading import Kind, Workers, read_rows

__all__ = ["DataRows", "ItemSource", "Reader", "Readers"]

_PROBED = 8


class DataRows(Dataset[tuple[Tensor, int]]):
    """Rows of a `Data` as torch's data sets give them; nothing is read before a row is asked for.

    Args:
        data: labelled rows of one task.
    """

    def __init__(self, data: Data) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: list[int]) -> list[tuple[Tensor, int]]:
        batch = self.data.batch(torch.tensor(rows))
        return list(zip(batch.x, batch.targets[self.data.tasks[0].name].tolist(), strict=True))


class ItemSource:
    """The rows of a leaf, read one by one through its transforms; without targets, which are known beside the rows."""

    def __init__(self, items: Items, name: str, kind: Kind, workers: int) -> None:
        self.name, self.input_shape = name, kind.x_shape
        self.targets: dict[str, Tensor] = {}
        self._items, self._kind = items, kind
        self._workers = Workers(items, name, kind, workers) if workers else None

    def __len__(self) -> int:
        return len(self._items)

    def take(self, index: Tensor) -> Columns:
        """The rows at ``index``.

        Raises:
            DataError: a row cannot be read; chained to the data set's own error.
        """
        rows = index.tolist()
        if not rows:
            return Columns(torch.empty(0, *self.input_shape, dtype=self._kind.x_type), {})
        found = self._workers.read(rows) if self._workers else read_rows(self._items, self.name, rows, self._kind)
        return Columns(found.x, {})

    def fingerprint(self) -> str:
        """SHA-256 of the number of rows and their shape: their content may be random, and reading all of it costs an epoch."""
        return hashlib.sha256(f"{len(self)} {self.input_shape}".encode()).hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Reader:
    """How the rows of pieces that are read alike become rows of a `Data`.

    Args:
        source: holds the rows, without targets.
        shape: of one input.
        told: what is done to inputs, for the hash of the stream.
        transform, augment: of batches of ``source``, as in `Data`.
        trusted: whether the targets that the data set keeps beside its rows are those in its rows.
        places: where in ``source`` the rows of the leaf lie; ``None``: they are its rows.
    """

    source: Source
    shape: tuple[int, ...]
    told: str
    transform: Transform | None = None
    augment: Transform | None = None
    trusted: bool = True
    places: Tensor | None = None


class Readers:
    """One reader for all pieces that are read alike, and one source for all that share a leaf.

    Args:
        name: of the source of training rows; the names of other sources begin with it.
        workers: processes that read what does not lie in memory.
    """

    def __init__(self, name: str, workers: int) -> None:
        self._name, self._workers = name, workers
        self._readers: dict[tuple[int, ...], tuple[Piece, Reader]] = {}  # pieces are kept because keys are made of their addresses
        self._names: dict[int, str] = {}
        self._counts: dict[str, int] = {}
        self._bare: dict[int, tuple[object, Source | None]] = {}

    def reader(self, piece: Piece, targets: Tensor | None, role: str) -> Reader:
        """The reader of ``piece``; for one that is new a few rows are read.

        Args:
            piece: the rows.
            targets: of these rows, as the data set keeps them; ``None``: it keeps none.
            role: names the source of a leaf that is new.

        Raises:
            DataError: a row cannot be read.
        """
        if piece.key not in self._readers:
            made = self._of_stream(piece) if isinstance(piece.leaf, DataRows) else self._of_leaf(piece, targets, role)
            self._readers[piece.key] = piece, made
        return self._readers[piece.key][1]

    def _of_leaf(self, piece: Piece, targets: Tensor | None, role: str) -> Reader:
        name, items = self._name_of(piece.leaf, role), Items(piece.leaf, piece.steps)
        places = torch.linspace(0, len(piece.rows) - 1, min(_PROBED, len(piece.rows))).long()
        probe = piece.rows[places]
        with torch.random.fork_rng(devices=[]):
            met = read_rows(items, name, probe.tolist(), None)
        shape = tuple(met.x.shape[1:])
        trusted = targets is not None and torch.equal(met.y.flatten().long(), targets[places])
        changes = compiled([getattr(piece.leaf, "transform", None), *piece.functions])
        held = None if changes is None else self._in_memory(piece.leaf, name)
        if changes is not None and held is not None:
            chain = Chain(changes)
            batch = chain(held.take(probe).x)
            if batch.dtype == met.x.dtype and torch.equal(batch, met.x):
                return Reader(held, shape, chain.told, chain if changes else None, trusted=trusted)
        told = ", ".join(type(function).__name__ for function in piece.functions)
        return Reader(ItemSource(items, name, Kind.of(met.x[0], met.y[0]), self._workers), shape, told, trusted=trusted)

    def _of_stream(self, piece: Piece) -> Reader:
        """Rows that came from a stream are read from its source again."""
        data: Data = piece.leaf.data
        changes: tuple[Change, ...] | None = compiled(piece.functions)
        if changes is None:
            raise DataError(f"rows of source {data.source.name!r} got transforms in Avalanche: change the inputs of the stream instead")
        chain = Chain(changes, data.transform)
        if id(data.source) not in self._bare:
            self._bare[id(data.source)] = data.source, without_targets(data.source)
        bare = self._bare[id(data.source)][1]
        assert bare is not None
        first = torch.tensor([0])
        with torch.random.fork_rng(devices=[]):
            x = Chain(changes)(data.batch(first).x)
        return Reader(bare, tuple(x.shape[1:]), chain.told, chain if changes else data.transform, data.augment, places=data.indices)

    def _in_memory(self, leaf: object, name: str) -> TensorSource | None:
        if id(leaf) not in self._bare:
            self._bare[id(leaf)] = leaf, in_memory(leaf, name)
        held = self._bare[id(leaf)][1]
        return held if isinstance(held, TensorSource) else None

    def _name_of(self, leaf: object, role: str) -> str:
        if id(leaf) not in self._names:
            name = self._name if role == "train" else f"{self._name}/{role}"
            self._counts[name] = count = self._counts.get(name, 0) + 1
            self._names[id(leaf)] = name if count == 1 else f"{name}#{count}"
        return self._names[id(leaf)]
