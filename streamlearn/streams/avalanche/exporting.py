"""Streams as Avalanche's benchmarks."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from streamlearn.errors import DataError, MissingExtraError
from streamlearn.streams.avalanche.rows import DataRows
from streamlearn.streams.avalanche.trees import chosen_pieces, read_together
from streamlearn.streams.data import Data, JoinedData
from streamlearn.streams.stream import Stream

__all__ = ["to_avalanche"]


def to_avalanche(stream: Stream) -> Any:
    """The experiences of ``stream`` as an Avalanche benchmark, for its strategies, plugins and metrics.

    Protocol: experience ``i`` of ``train_stream`` holds the training rows of experience ``i``, experience ``k`` of ``test_stream`` those of
    evaluation set ``k``, and ``valid_stream``, if every experience has rows of role ``"validation"``, those. Rows are triples (x, class,
    task label); the label is the place of the row's task in ``stream.tasks``, hence 0 throughout if there is one task. Experiences tell
    their classes (``classes_in_this_experience`` ...) and task labels. Transforms of the stream belong to the rows, augmentation too: they
    are the same in Avalanche's groups "train" and "eval". Inputs are read when a row is asked for.

    Args:
        stream: with an end; every row is asked on one classification task and has its label.

    Returns:
        A ``CLScenario``; `streamlearn.streams.from_avalanche` makes it a stream again, with the same rows of the same sources.

    Raises:
        DataError: Avalanche has no place for what is in the stream: no end, values instead of classes, rows without labels or of several
            tasks, episodes, rows of other roles.
        MissingExtraError: Avalanche is not installed.

    Source: Carta et al., "Avalanche: a PyTorch library for deep continual learning", JMLR 2023.

    Example:
        ``Naive(model, optimizer).train(to_avalanche(stream).train_stream)`` trains on it. What Avalanche cannot do is refused:

        >>> from streamlearn.streams import episodes
        >>> to_avalanche(episodes("digits", ways=2))
        Traceback (most recent call last):
        ...
        streamlearn.errors.DataError: experience 0 of stream 'digits/episodes' consists of episodes, for which Avalanche has no place: ...
    """
    train = _rows_of(stream, "train")
    if train is None:
        raise DataError(f"stream {stream.name!r} has no training rows: Avalanche trains on nothing else")
    library = _library()
    labels = {task.name: label for label, task in enumerate(stream.tasks)}
    sets = range(len(stream.sets))
    tests = [_parts(stream.evaluation_set(k).data, f"evaluation set {k} of stream {stream.name!r}") for k in sets]
    chosen = {"train": train, "test": tests, "valid": _rows_of(stream, "validation")}
    streams = {name: [library.experience(parts, labels) for parts in found] for name, found in chosen.items() if found is not None}
    for i, experience in enumerate(streams["train"]):
        experience.evaluation_sets = stream.sets_of(i)
    return library.benchmark(streams)


def _rows_of(stream: Stream, role: str) -> list[Sequence[Data]] | None:
    """The rows of ``role``, experience by experience; ``None`` where no experience has any.

    Raises:
        DataError: only some have, or there are rows for which Avalanche has no place.
    """
    if stream.endless:
        raise DataError(f"stream {stream.name!r} is endless, and Avalanche's streams are not: take a part, such as stream[:100]")
    found: list[Sequence[Data]] = []
    for experience in stream:
        where = f"experience {experience.index} of stream {stream.name!r}"
        other = next((name for name in experience.data if name not in ("train", "validation")), None)
        if other is not None:
            raise DataError(f"{where} has rows of role {other!r}, for which Avalanche has no place: give it a stream of training rows")
        if role in experience.data:
            found.append(_parts(experience.data[role], where))
    if found and len(found) < len(stream):
        raise DataError(
            f"{len(found)} of {len(stream)} experiences of stream {stream.name!r} have rows of role {role!r}: let all have some"
        )
    return found or None


def _parts(data: Data | JoinedData, where: str) -> Sequence[Data]:
    """The pieces of ``data`` that have rows.

    Raises:
        DataError: there are none, or they are not plain labelled rows of one classification task each.
    """
    found = tuple(part for part in data.parts() if len(part))
    if not found:
        raise DataError(f"{where} is empty: Avalanche's experiences all have rows, so leave it out")
    for part in found:
        names = ", ".join(task.name for task in part.tasks)
        if len(part) != len(part.indices):
            raise DataError(f"{where} consists of episodes, for which Avalanche has no place: give it a stream of rows")
        if len(part.tasks) != 1:
            raise DataError(f"rows in {where} are asked on {len(part.tasks)} tasks ({names}): Avalanche's have one target each")
        if part.tasks[0].kind != "classification":
            raise DataError(f"task {names!r} in {where} is a {part.tasks[0].kind}: Avalanche's benchmarks have class numbers as targets")
        if names not in part.targets or not all(bool(known.all()) for known in part.labelled.values()):
            raise DataError(f"{where} has rows without labels of task {names!r}: Avalanche's rows all have one, so leave these out")
    return found


class _Library(NamedTuple):
    """What is made with Avalanche."""

    experience: Callable[[Sequence[Data], Mapping[str, int]], Any]
    benchmark: Callable[[Mapping[str, Sequence[Any]]], Any]


@functools.cache
def _library() -> _Library:
    """Avalanche is imported here, once, because that takes seconds.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own deprecations and those of what it imports
            from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
            from avalanche.benchmarks.scenarios.generic_scenario import CLScenario, EagerCLStream
            from avalanche.benchmarks.scenarios.supervised import with_classes_timeline
            from avalanche.benchmarks.scenarios.task_aware import with_task_labels
            from avalanche.benchmarks.utils.classification_dataset import TaskAwareSupervisedClassificationDataset
            from avalanche.benchmarks.utils.data_attribute import DataAttribute, TaskLabels
            from avalanche.benchmarks.utils.flat_data import ConstantSequence
    except ImportError as error:
        raise MissingExtraError("to_avalanche", "avalanche-lib", "avalanche") from error

    class RowsOfStream(TaskAwareSupervisedClassificationDataset):  # type: ignore[misc]
        """Reads the rows of a batch together where torch's loader asks for them together."""

        def __getitems__(self, rows: list[int]) -> list[list[Any]]:
            added = [attribute for attribute in self._data_attributes.values() if attribute.use_in_getitem]
            found: list[list[Any]] = [[] for _ in rows]
            for piece in chosen_pieces(self, torch.tensor(rows)):
                for place, item in zip(piece.positions.tolist(), read_together(piece), strict=True):
                    found[place] = [*item, *(attribute[rows[place]] for attribute in added)]
            return found

    def experience(parts: Sequence[Data], labels: Mapping[str, int]) -> Any:
        pieces = []
        for part in parts:
            column = part.column(part.tasks[0].name)
            assert column is not None
            targets = DataAttribute(column.tolist(), "targets")
            task = TaskLabels(ConstantSequence(labels[part.tasks[0].name], len(part)))
            pieces.append(RowsOfStream([DataRows(part)], data_attributes=[targets, task]))
        joined = pieces[0]
        for piece in pieces[1:]:
            joined = joined.concat(piece)
        return DatasetExperience(dataset=joined)

    def benchmark(streams: Mapping[str, Sequence[Any]]) -> Any:
        return with_task_labels(with_classes_timeline(CLScenario([EagerCLStream(name, found) for name, found in streams.items()])))

    return _Library(experience, benchmark)
