"""Which row is which: rows are known by the names of their source and domain, and by their number in the source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.data import Columns, Data, Source, same_kind
from streamlearn.streams.hiding import with_targets, without_targets
from streamlearn.streams.stream import Stream

__all__ = ["Apart", "new_names", "refuse_known_answers"]


class Apart:
    """Gives pieces of data that batches could not tell apart, since they are of one source and domain, sources of different names.

    A memory finds the piece that a row of a batch is from by the names of source, domain and tasks. The same source and name always give
    the same object, so that pieces of different experiences stay alike.
    """

    def __init__(self) -> None:
        self._sources: dict[tuple[int, str], tuple[Source, Source]] = {}

    def __call__(self, parts: Sequence[Data]) -> list[Data]:
        """The pieces in their order."""
        kinds: dict[object, list[Data]] = {}
        found = []
        for part in parts:
            known = kinds.setdefault((part.source.name, part.domain, tuple(task.name for task in part.tasks)), [])
            number = next((place for place, other in enumerate(known) if same_kind(other, part)), len(known))
            if number == len(known):
                known.append(part)
            found.append(replace(part, source=self.source(part.source, f"{part.source.name}#{number + 1}")) if number else part)
        return found

    def source(self, source: Source, name: str) -> Source:
        """``source`` under another name."""
        if source.name == name:
            return source
        return self._sources.setdefault((id(source), name), (source, _Renamed(source, name)))[1]


class _Renamed:
    """The rows and targets of a source under another name."""

    def __init__(self, source: Source, name: str) -> None:
        self.name, self.input_shape = name, source.input_shape
        self.class_names = tuple(getattr(source, "class_names", ()))
        self._source = source
        for known in ("targets", "row_bytes"):  # only where the source has them: their presence says something
            if hasattr(source, known):
                setattr(self, known, getattr(source, known))

    def __len__(self) -> int:
        return len(self._source)

    def take(self, index: Tensor) -> Columns:
        """The rows at ``index``."""
        return self._source.take(index)

    def with_targets(self, targets: Mapping[str, Tensor]) -> _Renamed:
        """The same rows under this name with other targets."""
        return _Renamed(with_targets(self._source, targets), self.name)

    def without_targets(self) -> _Renamed:
        """The same rows under this name without targets."""
        return _Renamed(without_targets(self._source), self.name)

    def fingerprint(self) -> str:
        """That of the source."""
        return self._source.fingerprint()


def new_names(streams: Sequence[Stream]) -> list[dict[str, str]]:
    """For each stream the sources that need other names, because an earlier stream has a source of this name with other rows."""
    known = dict[str, list[Source]]()
    names = list[dict[str, str]]()
    for stream in streams:
        own = {part.source.name: part.source for part in (*_labelled(stream), *_evaluated(stream))}
        names.append({})
        for name, source in own.items():
            others = known.setdefault(name, [])
            number = next((place for place, other in enumerate(others) if _same_rows(other, source)), len(others))
            if number == len(others):
                others.append(source)
            if number:
                names[-1][name] = f"{name}#{number + 1}"
    return names


def _same_rows(a: Source, b: Source) -> bool:
    if a is b:
        return True
    alike = (len(a), a.input_shape) == (len(b), b.input_shape)
    return alike and without_targets(a).fingerprint() == without_targets(b).fingerprint()


def refuse_known_answers(streams: Sequence[Stream], names: Sequence[Mapping[str, str]]) -> None:
    """Splits of one source that differ would give one stream the labels that another asks for."""
    trained, tested = (
        [_rows(pieces(one), renamed) for one, renamed in zip(streams, names, strict=True)] for pieces in (_labelled, _evaluated)
    )
    for (i, mine), (j, theirs) in product(enumerate(trained), enumerate(tested)):
        for name in mine.keys() & theirs.keys() if i != j else ():
            known = trained[j].get(name, torch.zeros_like(theirs[name]))  # what a stream trains on itself, it does not keep apart
            both = (mine[name] & theirs[name] & ~known).nonzero().flatten()
            if len(both):
                raise DataError(
                    f"{len(both)} rows of source {name!r}, such as row {int(both[0])}, are trained on in stream {i} of those to be "
                    f"concatenated and evaluated in stream {j}: split them with one seed, or give test rows"
                )


def _labelled(stream: Stream) -> Iterator[Data]:
    return (part for experience in stream for data in experience.data.values() for part in data.parts() if part.targets)


def _evaluated(stream: Stream) -> Iterator[Data]:
    return (part for k in range(len(stream.sets)) for part in stream.evaluation_set(k).data.parts())


def _rows(parts: Iterable[Data], names: Mapping[str, str]) -> dict[str, Tensor]:
    """Which rows of each source there are, as a bool column."""
    found = dict[str, Tensor]()
    for part in parts:
        name = names.get(part.source.name, part.source.name)
        found.setdefault(name, torch.zeros(len(part.source), dtype=torch.bool))[part.indices] = True
    return found
