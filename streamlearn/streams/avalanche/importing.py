"""Avalanche's benchmarks as streams."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.avalanche.assembling import Assembler, Part
from streamlearn.streams.avalanche.rows import DataRows
from streamlearn.streams.avalanche.trees import Trees
from streamlearn.streams.data import Data, classes_in, join
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.inputs import whole_number
from streamlearn.streams.stream import Stream

__all__ = ["from_avalanche"]


def from_avalanche(
    benchmark: Any,
    *,
    train: str = "train",
    test: str = "test",
    validation: str | None = None,
    name: str | None = None,
    workers: int = 0,
) -> Stream:
    """The experiences of an Avalanche benchmark, as they are: same rows, same order, same transforms, same class and task numbers.

    Protocol: experience ``i`` holds the rows of ``benchmark.streams[train][i]`` with its transforms of the group "train", and evaluation
    set ``j`` those of ``benchmark.streams[test][j]`` with the group "eval". If all rows have one task label there is one task, called
    ``name``; else there is a task ``"<name>/<label>"`` for each label, and every row is asked on its own. A task has as many classes as its
    largest target says. Experiences whose rows go through different transforms are different domains, ``"transform/0"`` and so on.

    With ``n`` experiences and ``m`` test experiences, experience ``i`` belongs to test experience ``i`` if ``n = m``; to the only one if
    ``m = 1``; to that of the experience it was cut from, if Avalanche knows it (online streams); else both are spread evenly over the
    stream: ``i`` and ``j`` belong together if ``⌊i·m/n⌋ = j`` (``n > m``) or ``⌊j·n/m⌋ = i`` (``n < m``).

    Targets and indices are read at once, and of inputs a few rows; the other rows are read when they are asked for. Arrays in memory
    (tensors, torchvision's MNIST and CIFAR) with the usual transforms (ToTensor, Normalize, a fixed permutation or rotation) are read as
    whole batches if this gives a few of the rows bit for bit, everything else row by row through the benchmark itself. A lazy stream is
    read to its end, because its length has to be known.

    Args:
        benchmark: has ``streams``, as all of Avalanche's scenarios; its experiences have a ``dataset`` with class numbers as targets.
        train: the stream of training rows; without one of this name, its online version (``"train_online"``).
        test: the stream of evaluation rows; without one of this name, that which an online scenario calls ``"original_test"``.
        validation: the stream whose rows have the role ``"validation"``, as long as ``train``; ``None``: there are no such rows.
        name: of the stream, its tasks and its sources; by default that of torchvision's data set (``"mnist"``), or ``"avalanche"``.
        workers: processes that read rows which do not lie in memory, at least 0; 0 reads in this process.

    Raises:
        DataError: this is no benchmark, its targets are no class numbers, an experience has no rows, or rows cannot be read.
        UnknownNameError: it has no stream of this name; the nearest is offered.

    Source: Lomonaco et al., "Avalanche: an end-to-end library for continual learning", CLVision workshop, 2021; Carta et al., "Avalanche:
        a PyTorch library for deep continual learning", JMLR 2023.

    Example:
        With Avalanche installed, ``from_avalanche(SplitMNIST(n_experiences=5))`` is a stream of 5 experiences:

        >>> from_avalanche("split_mnist")
        Traceback (most recent call last):
        ...
        streamlearn.errors.DataError: a str is no Avalanche benchmark: give an object with streams, such as SplitMNIST(n_experiences=5)
    """
    streams = getattr(benchmark, "streams", None)
    if not isinstance(streams, Mapping):
        raise DataError(
            f"a {type(benchmark).__name__} is no Avalanche benchmark: give an object with streams, such as SplitMNIST(n_experiences=5)"
        )
    whole_number(workers, "workers", 0)
    chosen = {"train": _stream(streams, train, f"{train}_online"), "test": _stream(streams, test, f"original_{test}")}
    if validation is not None:
        chosen["validation"] = _stream(streams, validation)
    experiences = {role: _experiences(given, role) for role, given in chosen.items()}
    _check_lengths(experiences, validation)
    trees = Trees()
    called = _name(trees, experiences["train"][0]) if name is None else name
    assembler = Assembler(trees, called, workers)
    for role, found in experiences.items():
        for i, one in enumerate(found):
            assembler.add(role, i, one.dataset)
    parts = assembler.parts()
    told = {id(data): assembler.told(data) for found in parts.values() for part in found for data in part}
    options = {"train": train, "test": test, "validation": validation, "name": name, "workers": workers}
    given = {"given by the user": True, "name": type(benchmark).__name__, "experiences": len(experiences["train"])}
    origins = [_origin(experience) for experience in experiences["train"]]
    open_to_training = [getattr(experience, "access_task_boundaries", False) for experience in experiences["train"]]
    tasks = assembler.tasks

    def experience(i: int) -> Experience:
        mine = {role: join(found[i]) for role, found in parts.items() if role != "test"}
        present = tuple(task for task in tasks if task in mine["train"].tasks)
        return Experience(i, present, mine, f"experience {i}", classes_in(mine["train"]), origins[i] if open_to_training[i] else None)

    def evaluation(j: int) -> EvaluationSet:
        return EvaluationSet(j, join(parts["test"][j]), f"experience {j}")

    return Stream(
        f"{called}/from_avalanche",
        len(parts["train"]),
        experience,
        evaluation,
        tasks=tasks,
        input_shape=assembler.input_shape,
        description={"builder": "from_avalanche", "benchmark": given, **options},
        fingerprints=lambda: _fingerprints(parts, told),
        sets=_sets(experiences["train"], origins, len(parts["test"])),
    )


def _fingerprints(parts: Mapping[str, Sequence[Part]], told: Mapping[int, str]) -> list[str]:
    """Those of the sources, and one of what is done with their rows: the description, which holds an object, does not tell it."""
    digest = hashlib.sha256()
    every = [(role, i, data) for role, found in parts.items() for i, part in enumerate(found) for data in part]
    for role, i, data in every:
        digest.update(f"{role} {i} {data.tasks[0].name} {data.domain} {told[id(data)]}".encode())
        digest.update(data.indices.numpy().data)
        column = data.column(data.tasks[0].name)
        assert column is not None
        digest.update(column.numpy().data)
    sources = {id(data.source): data.source for _, _, data in every}
    return [*(source.fingerprint() for source in sources.values()), digest.hexdigest()]


def _stream(streams: Mapping[str, Any], wanted: str, other: str | None = None) -> Any:
    found = streams.get(wanted, streams.get(other or wanted))
    if found is None:
        raise UnknownNameError("stream of this Avalanche benchmark", wanted, streams)
    return found


def _experiences(stream: Any, role: str) -> list[Any]:
    found = list(stream)
    if not found:
        raise DataError(f"the Avalanche stream {stream.name!r} has no experience: it is to give the {role} rows")
    strange = next((i for i, experience in enumerate(found) if not hasattr(experience, "dataset")), None)
    if strange is not None:
        raise DataError(f"experience {strange} of the Avalanche stream {stream.name!r} has no dataset: only data sets become streams")
    return found


def _check_lengths(experiences: Mapping[str, Sequence[Any]], validation: str | None) -> None:
    if validation is not None and len(experiences["validation"]) != len(experiences["train"]):
        raise DataError(
            f"the Avalanche stream {validation!r} has {len(experiences['validation'])} experiences and that of training rows has "
            f"{len(experiences['train'])}: validation rows belong to one experience each, so give as many"
        )


def _origin(experience: Any) -> int | None:
    """The number of the experience from which this one was cut."""
    origin = getattr(experience, "origin_experience", None)
    try:
        return None if origin is None else int(origin.current_experience)
    except (AssertionError, TypeError):  # Avalanche asserts that the number has been set
        return None


def _sets(experiences: Sequence[Any], origins: Sequence[int | None], tests: int) -> Callable[[int], tuple[int, ...]] | None:
    """To which test experiences each experience belongs."""
    count = len(experiences)
    told = [getattr(experience, "evaluation_sets", None) for experience in experiences]
    if all(numbers is not None for numbers in told):  # it was a stream before
        kept = [tuple(experience.evaluation_sets) for experience in experiences]
        return None if kept == [(i,) for i in range(count)] else lambda i: kept[i]
    if tests == 1 < count:
        return lambda i: (0,)
    known = [number for number in origins if number is not None]
    if len(known) == count and max(known) < tests:
        return lambda i: (known[i],)
    if tests == count:
        return None
    if count > tests:
        return lambda i: (i * tests // count,)
    return lambda i: tuple(j for j in range(tests) if j * count // tests == i)


def _name(trees: Trees, experience: Any) -> str:
    """What the data of the first experience are called."""
    leaf = next((piece.leaf for piece in trees.pieces(experience.dataset, "train")), None)
    if isinstance(leaf, DataRows):
        data: Data = leaf.data
        return data.source.name
    known = type(leaf).__module__.startswith(("torchvision.", "avalanche.")) and hasattr(leaf, "data")
    return type(leaf).__name__.removeprefix("Tensor").lower() if known else "avalanche"
