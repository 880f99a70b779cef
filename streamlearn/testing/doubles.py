"""The kit's little streams and networks: six classes of points, a few updates an experience, a fraction of a second a run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from streamlearn import streams
from streamlearn.core.plugin import STREAM_KINDS
from streamlearn.errors import ConfigurationError, UnknownNameError
from streamlearn.models import Heads, Model
from streamlearn.streams import Data, EvaluationSet, Experience, Stream, Task
from streamlearn.streams.data import JoinedData, Target
from streamlearn.streams.sources import TensorSource

__all__ = ["NETWORKS", "growing_stream", "network", "optimizer", "points", "stream_without_a_task", "tiny_stream"]

FEATURES, CLASSES = 6, 6
UNEVEN = ((0, 1, 2), (3, 4), (5,))
"""Classes of each experience: as many rows as classes, so that nothing may count on experiences of equal size."""


def points(rows: int = 36, seed: int = 0, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    """``(x, y)``: rows in six well separated classes, row i of class i mod 6, drawn from a generator of its own."""
    draw = torch.Generator().manual_seed(seed)
    centres = 2.0 * torch.randn(CLASSES, FEATURES, generator=torch.Generator().manual_seed(7))
    y = torch.arange(rows) % CLASSES
    return centres[y] + 0.5 * torch.randn(rows, FEATURES, generator=draw) + shift, y


def tiny_stream(kind: str = "class_incremental", experiences: int = 3) -> Stream:
    """A stream of some kind that is walked through in a fraction of a second.

    Args:
        kind: one of ``class_incremental``, ``task_incremental``, ``domain_incremental``, ``multitask``, ``adaptation``, ``test_time``
            and ``episodes``.
        experiences: 3 or 6; ``adaptation`` always has one.

    Raises:
        UnknownNameError: there is no such kind.
        ConfigurationError: another number of experiences.

    Example:
        >>> [len(experience.data["train"]) for experience in tiny_stream()]
        [18, 12, 6]
    """
    if kind not in STREAM_KINDS:
        raise UnknownNameError("kind of stream", kind, STREAM_KINDS)
    if experiences not in (3, 6):
        raise ConfigurationError(f"tiny_stream has 3 or 6 experiences, not {experiences}: take one of the two, and slice it")
    return _BUILDERS[kind](experiences)


def _classes(experiences: int) -> Sequence[Sequence[int]]:
    return UNEVEN if experiences == 3 else [(label,) for label in range(CLASSES)]


def _class_incremental(experiences: int) -> Stream:
    return streams.class_incremental(points(), classes=_classes(experiences), test=points(24, 1))


def _task_incremental(experiences: int) -> Stream:
    pairs = [(0, 1), (2, 3), (4, 5)]
    classes = pairs if experiences == 3 else [*pairs, (1, 2), (3, 4), (5, 0)]
    return _by_task(classes) if experiences == 6 else streams.task_incremental(points(), classes=classes, test=points(24, 1))


def _domain_incremental(experiences: int) -> Stream:
    return streams.domain_incremental(points(), experiences, test=points(24, 1))


def _multitask(experiences: int) -> Stream:
    (x, y), (test_x, test_y) = points(18 * experiences), points(24, 1)
    targets, test = {"a": y, "b": y % 2}, {"a": test_y, "b": test_y % 2}
    return streams.multitask((x, targets), experiences, validation=0.34, test=(test_x, test))


def _adaptation(experiences: int) -> Stream:
    return streams.adaptation(points(24), points(24, 1, shift=1.0))


def _shifted(x: Tensor) -> Tensor:
    return x + 1.0


def _stretched(x: Tensor) -> Tensor:
    return 1.5 * x


def _test_time(experiences: int) -> Stream:
    return streams.test_time(points(24), [_shifted, _stretched], test=points(24, 1), passes=1 if experiences == 3 else 3)[:experiences]


def _episodes(experiences: int) -> Stream:
    made: Stream = streams.episodes("sinusoids", experiences, shots=3, queries=3, train_episodes=12, test_episodes=3)
    return made


_BUILDERS: dict[str, Callable[[int], Stream]] = {
    "class_incremental": _class_incremental,
    "task_incremental": _task_incremental,
    "domain_incremental": _domain_incremental,
    "multitask": _multitask,
    "adaptation": _adaptation,
    "test_time": _test_time,
    "episodes": _episodes,
}


# ---------------------------------------------------------------------- by hand: what no builder makes


def _by_task(classes: Sequence[Sequence[int]]) -> Stream:
    """A task of its own for each experience, over classes that come up again; all tasks are known beforehand."""
    pieces = [(Task(f"task {i}", size=len(mine)), tuple(mine)) for i, mine in enumerate(classes)]
    return _stream("tasks", [_piece(task, mine) for task, mine in pieces], [task for task, _ in pieces])


def growing_stream(kind: str = "class_incremental") -> Stream:
    """Heads grow between experiences: one task gets more classes, or tasks come up that nobody knew of.

    Args:
        kind: ``class_incremental`` (one task of 2, then 4, then 6 classes) or ``task_incremental`` (a new task in each experience).

    Example:
        >>> [[(task.name, task.size) for task in experience.tasks] for experience in growing_stream()]
        [[('growing', 2)], [('growing', 4)], [('growing', 6)]]
    """
    if kind == "class_incremental":
        pieces = [_piece(Task("growing", size=size), (size - 2, size - 1), first=0) for size in (2, 4, 6)]
    else:
        pieces = [_piece(Task(f"task {i}", size=2 + i % 2), (2 * i, 2 * i + 1)) for i in range(3)]
    return _stream(f"growing {kind}", pieces, pieces[0].tasks)


def stream_without_a_task() -> Stream:
    """Tasks "a" and "b" on every row, then rows of "a" alone, then of "b" alone.

    Example:
        >>> [[task.name for task in experience.tasks] for experience in stream_without_a_task()]
        [['a', 'b'], ['a'], ['b']]
    """
    a, b = Task("a", size=CLASSES), Task("b", size=2)
    x, y = points(54)
    source = TensorSource(x, {"a": y, "b": y % 2}, "points")
    asked = [(a, b), (a,), (b,)]
    pieces = [
        Data(source, torch.arange(18 * i, 18 * i + 18), tasks, {t.name: Target(t.name) for t in tasks}) for i, tasks in enumerate(asked)
    ]
    return _stream("without a task", pieces, (a, b), validation=6)


def _piece(task: Task, classes: Sequence[int], first: int | None = None) -> Data:
    """The rows of ``classes``, asked on ``task``; numbered from 0, or as they are with ``first=0``."""
    x, y = points()
    relabel = torch.arange(CLASSES)
    if first is None:
        relabel[torch.tensor(classes)] = torch.arange(len(classes))
    wanted = torch.isin(y, torch.tensor(classes)).nonzero().flatten()
    return Data(TensorSource(x, {"y": y}, "points"), wanted, (task,), {task.name: Target("y", relabel)})


def _stream(name: str, pieces: Sequence[Data], tasks: Iterable[Task], validation: int = 0) -> Stream:
    """A stream that trains and is measured on the same pieces; the last rows of each may be kept for validation."""

    def experience(i: int) -> Experience:
        rows = torch.arange(len(pieces[i]))
        data: dict[str, Data | JoinedData] = {"train": pieces[i].subset(rows[: len(rows) - validation])}
        if validation:
            data["validation"] = pieces[i].subset(rows[-validation:])
        columns = {task.name: pieces[i].column(task.name) for task in pieces[i].tasks}
        classes = {task: tuple(sorted(set(column.tolist()))) for task, column in columns.items() if column is not None}
        return Experience(i, pieces[i].tasks, data, f"part {i}", classes)

    return Stream(
        name, len(pieces), experience, lambda i: EvaluationSet(i, pieces[i], f"part {i}"), tasks=tuple(tasks), input_shape=(FEATURES,),
        description={"by": "streamlearn.testing", "name": name}, fingerprints=(name,),
    )  # fmt: skip


# ---------------------------------------------------------------------- networks

NETWORKS = ("heads", "plain")
"""A model with a head for each task, and a plain module whose one output all tasks share."""


def network(stream: Stream, kind: str = "heads", *, normalized: bool = False) -> nn.Module:
    """A network of one hidden layer for ``stream``.

    Args:
        stream: tells inputs and tasks.
        kind: ``"heads"`` for a head for each task, or ``"plain"`` for a module with one output of 6, which all tasks share.
        normalized: with BatchNorm behind the hidden layer, which adapting at test time needs.

    Example:
        >>> sum(p.numel() for p in network(tiny_stream()).parameters())
        110
    """
    width = stream.input_shape[0]
    layers: list[nn.Module] = [nn.Linear(width, 8), *([nn.BatchNorm1d(8)] if normalized else []), nn.ReLU()]
    if kind == "heads":
        return Model(nn.Sequential(*layers), Heads(8, stream.tasks))
    return nn.Sequential(*layers, nn.Linear(8, max(CLASSES, *(task.size for task in stream.tasks))))


def optimizer(parameters: Iterable[Any]) -> torch.optim.Optimizer:
    """SGD with momentum, whose state must survive a restart too."""
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
