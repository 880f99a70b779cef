"""Which labels training sees, and when: all, few, late or none. Evaluation always has everything."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.data import Data, JoinedData, join
from streamlearn.streams.experience import Experience
from streamlearn.streams.hiding import hide_labels, raw_targets
from streamlearn.streams.inputs import whole_number
from streamlearn.streams.operators.deriving import checked_fraction, checked_stream, classes_in, derived, map_role
from streamlearn.streams.partition import permutation
from streamlearn.streams.stream import Stream

__all__ = ["POLICIES", "label_policy"]

POLICIES = ("full", "sparse", "delayed", "never")

_OWNERS = {"per_class": "sparse", "fraction": "sparse", "steps": "delayed"}

Rows = Data | JoinedData


def label_policy(
    stream: Stream,
    policy: str = "sparse",
    *,
    per_class: int | None = None,
    fraction: float | None = None,
    steps: int | None = None,
    seed: int = 0,
) -> Stream:
    """The same rows arrive, but only some of their labels do, or they arrive later, or never.

    Protocol: ``"full"``: as it is.

    ``"sparse"``: of the ``n_c`` rows that experience ``i`` has of class ``c`` in role ``train``, ``min(per_class, n_c)`` or
    ``max(1, round(fraction * n_c))`` keep their label; the others stay as rows without one. All rows of a source have one random order,
    drawn from ``seed`` and the source's name, and the first of each class are labelled: a row that comes in several experiences, such as
    in several domains, keeps its label in all or in none of them as long as the same rows come along (where they do not, as after
    `blurry`, put the policy before that). A row that comes more than once in one experience counts once. Where rows are asked on several
    tasks, each task draws from that same order; tasks that read one column of the source share their labels, which are drawn by the
    values of that column. Regression knows one class.

    ``"delayed"``: experience ``i`` has its own rows without labels in role ``target``, and in role ``train`` the labelled rows of
    experience ``i - steps``, none while ``i < steps``. What would arrive after the end never does. What is predicted for the target rows
    before the model learns from them is scored (``"prequential"`` in the record). On an `online` stream, where an experience is a step,
    this is interleaved test-then-train with delayed labels.

    ``"never"``: role ``train`` becomes ``target``, without labels, and is scored in the same way.

    Rows of role ``validation`` keep their labels under ``"sparse"``, come with those of ``train`` under ``"delayed"``, and are left out
    under ``"never"``. `Experience.classes` tells what visible labels tell; under the last two policies names of experiences, which may
    name classes, become numbers. Rows that are to be predicted are not augmented.

    Args:
        stream: any stream whose data are rows, not episodes.
        policy: ``"full"``, ``"sparse"``, ``"delayed"`` or ``"never"``.
        per_class: of ``"sparse"``: labels for each class of each experience, at least 1.
        fraction: of ``"sparse"``, instead of ``per_class``: in (0, 1].
        steps: of ``"delayed"``: after how many experiences labels arrive, at least 1.
        seed: at least 0; which rows keep their labels.

    Raises:
        DataError: an argument is missing, out of its range, or of another policy; the stream has episodes, or a regression task and
            ``per_class``.
        UnknownNameError: no policy is called so.

    Source: sparse: Wang et al., "ORDisCo: Effective and efficient usage of incremental unlabeled data for semi-supervised continual
        learning", CVPR 2021. Delayed: Gama, Sebastiao and Rodrigues, "On evaluating stream learning algorithms", Machine Learning 2013;
        Gomes et al., "A survey on semi-supervised learning for delayed partially labelled data streams", ACM Computing Surveys 2022.

    Example:
        >>> from streamlearn.streams import class_incremental
        >>> stream = label_policy(class_incremental("digits", 5), "sparse", per_class=3)
        >>> train = stream[0].data["train"]
        >>> len(train), int(train.labelled["digits"].sum())
        (289, 6)
        >>> late = label_policy(class_incremental("digits", 5), "delayed", steps=1)
        >>> [sorted(experience.data) for experience in late[:2]]
        [['target'], ['target', 'train']]
    """
    base = checked_stream(stream, "label_policy")
    options = _checked(policy, per_class, fraction, steps, seed)
    _refuse_what_cannot_be(base, options)
    made: Callable[[int], Experience]
    if policy == "full":
        made = base.__getitem__
    elif policy == "sparse":
        made = _sparse(base, options)
    else:
        made = _late(base, options["steps"])
    truth = _truth(base) if policy in ("delayed", "never") else None
    return derived(base, "label_policy", options, experience=made, length=None if base.endless else len(base), truth=truth)


def _sparse(base: Stream, options: Mapping[str, Any]) -> Callable[[int], Experience]:
    few = _Labelling(_Few(options["per_class"], options["fraction"], options["seed"]))
    own = _Labelling(_every)  # the sources of other roles, too, know the labels that are hidden in role train

    def experience(i: int) -> Experience:
        found = base[i]
        data = {role: (few if role == "train" else own)(rows) for role, rows in found.data.items()}
        if "train" not in data:
            return replace(found, data=data)
        classes = {**dict.fromkeys(found.classes, ()), **classes_in(data["train"])}
        return replace(found, data=data, classes=classes)

    return experience


def _late(base: Stream, steps: int | None) -> Callable[[int], Experience]:
    """Experience i of the policies ``"delayed"`` and, without ``steps``, ``"never"``."""
    own = _Labelling(_every)

    def experience(i: int) -> Experience:
        found = base[i]
        data = {role: own(rows) for role, rows in found.data.items() if role not in ("train", "validation", "target")}
        unlabelled = [map_role(found.data[role], _bare) for role in ("train", "target") if role in found.data]
        if unlabelled:
            data["target"] = join(unlabelled)
        earlier = base[i - steps] if steps is not None and i >= steps else None
        if earlier is not None:
            data |= {role: own(earlier.data[role]) for role in ("train", "validation") if role in earlier.data}
        tasks = {task.name: task for task in (*(earlier.tasks if earlier is not None else ()), *found.tasks)}
        classes = classes_in(data["train"]) if "train" in data else {}
        return replace(found, data=data, tasks=tuple(tasks.values()), classes=classes, name=f"experience {i}")

    return experience


class _Labelling:
    """Data whose sources know only the labels that ``keep`` keeps.

    What was made last is kept: the many domains of one data set then share one choice and one source.
    """

    def __init__(self, keep: Callable[[Sequence[Data]], list[dict[str, Tensor]]]) -> None:
        self._keep = keep
        self._last: tuple[Sequence[Data], list[Data]] = (), []

    def __call__(self, rows: Rows) -> Rows:
        parts = _check_rows(rows)
        if [_place(part) for part in parts] != [_place(part) for part in self._last[0]]:
            self._last = parts, hide_labels(parts, self._keep(parts))
        made = [replace(part, source=known.source, labelled=known.labelled) for part, known in zip(parts, self._last[1], strict=True)]
        made = [part if part.targets else part.without_labels() for part in made]
        return made[0] if len(made) == 1 else JoinedData(made)


def _check_rows(rows: Rows) -> Sequence[Data]:
    """The pieces of ``rows``.

    Raises:
        DataError: they are episodes.
    """
    episodes = next((part for part in rows.parts() if len(part) != len(part.indices)), None)
    if episodes is not None:
        raise DataError(
            f"data of source {episodes.source.name!r} are episodes, whose support rows are given with their labels: label_policy is for "
            "streams of rows"
        )
    return rows.parts()


def _place(part: Data) -> tuple[object, ...]:
    """What says where the labels of ``part`` lie; compared while both are alive."""
    targets = tuple((task, target.column, id(target.relabel)) for task, target in part.targets.items())
    masks = tuple((task, id(mask)) for task, mask in part.labelled.items())
    return id(part.source), part.indices.data_ptr(), part.indices.stride(), part.indices.shape, targets, masks


def _columns(part: Data) -> dict[str, list[str]]:
    """The tasks that read each column of the source."""
    found: dict[str, list[str]] = {}
    for task, target in part.targets.items():
        found.setdefault(target.column, []).append(task)
    return found


def _known(part: Data, tasks: Sequence[str]) -> Tensor:
    """Which rows have a label of any of ``tasks``, bool, ``(rows,)``."""
    every = torch.ones(len(part), dtype=torch.bool)
    return torch.stack([part.labelled.get(task, every) for task in tasks]).any(0)


def _every(parts: Sequence[Data]) -> list[dict[str, Tensor]]:
    """All rows keep their labels, and the source knows no others."""
    return [{column: _known(part, tasks) for column, tasks in _columns(part).items()} for part in parts]


@dataclass(frozen=True, slots=True)
class _Few:
    """The rows of each class that come first in the order of their source keep their labels."""

    per_class: int | None
    fraction: float | None
    seed: int

    def __call__(self, parts: Sequence[Data]) -> list[dict[str, Tensor]]:
        groups: dict[tuple[str, ...], list[tuple[int, str]]] = {}
        for number, part in enumerate(parts):
            for column, tasks in _columns(part).items():
                groups.setdefault(tuple(tasks), []).append((number, column))
        kept: list[dict[str, Tensor]] = [{} for _ in parts]
        for names, members in groups.items():
            for (number, column), mask in zip(members, self._of_group(parts, names, members), strict=True):
                kept[number][column] = mask
        return kept

    def _of_group(self, parts: Sequence[Data], tasks: tuple[str, ...], members: Sequence[tuple[int, str]]) -> list[Tensor]:
        """Of rows that are asked on the same tasks, which keep their labels."""
        starts: dict[tuple[int, str], int] = {}  # rows of several sources are numbered one after another
        total, numbers, classes, places = 0, [], [], []
        for number, column in members:
            part = parts[number]
            key = id(part.source), column
            if key not in starts:
                starts[key], total = total, total + len(part.source)
            known = _known(part, tasks)
            numbers.append(torch.where(known, part.indices + starts[key], -1))
            classes.append(self._classes(part, tasks, column))
            places.append((_order(part.source.name, len(part.source), self.seed)[part.indices] + 0.5) / len(part.source))
        rows, first = np.unique(torch.cat(numbers).numpy(), return_index=True)
        first = first[rows >= 0]
        kept = torch.from_numpy(rows[rows >= 0][self._first(torch.cat(classes).numpy()[first], torch.cat(places).numpy()[first])])
        return [torch.isin(found, kept) for found in numbers]

    def _classes(self, part: Data, tasks: tuple[str, ...], column: str) -> Tensor:
        kinds = {task.name: task.kind for task in part.tasks}
        regressed = next((task for task in tasks if kinds.get(task) == "regression"), None)
        if regressed is None:
            own = part.column(tasks[0]) if len(tasks) == 1 else raw_targets(part.source, column, part.indices)
            return own if own is not None else torch.zeros(len(part), dtype=torch.int64)
        if self.per_class is not None:
            raise _without_classes(regressed)
        return torch.zeros(len(part), dtype=torch.int64)

    def _first(self, classes: Any, places: Any) -> Any:
        """Positions of the rows that come first within their class."""
        order = np.lexsort((places, classes))
        _, first, counts = np.unique(classes[order], return_index=True, return_counts=True)
        rank = np.arange(len(order)) - np.repeat(first, counts)
        wanted = [self.per_class or max(1, round((self.fraction or 0.0) * count)) for count in counts.tolist()]
        return np.sort(order[rank < np.repeat(wanted, counts)])


@functools.lru_cache(maxsize=8)
def _order(source: str, rows: int, seed: int) -> Tensor:
    """The place of each row of a source in its one random order."""
    return permutation(rows, seed=seed, purpose=f"labels of {source}")


def _without_classes(task: str) -> DataError:
    return DataError(f"task {task!r} is a regression, without classes of which per_class could keep labels: give fraction instead")


def _truth(base: Stream) -> Callable[[int], Rows | None]:
    """What is known of the rows that experience i predicts."""

    def truth(i: int) -> Rows | None:
        data = base[i].data
        known = [data["train"]] if "train" in data else []
        if "target" in data and (more := base.truth(i)) is not None:
            known.append(more)
        return join([map_role(rows, _clean) for rows in known]) if known else None

    return truth


def _clean(part: Data) -> Data:
    """Rows that are predicted are not augmented."""
    return replace(part, augment=None)


def _bare(part: Data) -> Data:
    return _clean(part).without_labels()


def _checked(policy: object, per_class: Any, fraction: Any, steps: Any, seed: object) -> dict[str, Any]:
    """The options, told as JSON.

    Raises:
        DataError: one is missing, out of its range, or of another policy.
        UnknownNameError: no policy is called so.
    """
    if policy not in POLICIES:
        raise UnknownNameError("label policy", str(policy), POLICIES)
    given = {"per_class": per_class, "fraction": fraction, "steps": steps}
    strange = next((name for name, value in given.items() if value is not None and _OWNERS[name] != policy), None)
    if strange is not None:
        raise DataError(f"{strange} is {given[strange]!r}, but the policy is {policy!r}: leave it out, or take {_OWNERS[strange]!r}")
    if policy == "sparse" and (per_class is None) == (fraction is None):
        both = "neither is given" if per_class is None else "both are given"
        raise DataError(f"the policy 'sparse' takes either per_class or fraction, and {both}: give one of them, such as per_class=10")
    if policy == "delayed" and steps is None:
        raise DataError("the policy 'delayed' needs steps, after which labels arrive: give steps=1 or more")
    return {
        "policy": policy,
        "per_class": None if per_class is None else whole_number(per_class, "per_class", 1),
        "fraction": None if fraction is None else checked_fraction(fraction, "fraction", one=True),
        "steps": None if steps is None else whole_number(steps, "steps", 1),
        "seed": whole_number(seed, "seed", 0),
    }


def _refuse_what_cannot_be(stream: Stream, options: Mapping[str, Any]) -> None:
    """Told when the stream is built, where it can be: later, only the experience in question is refused.

    Raises:
        DataError: the stream has episodes, or a regression task where labels are counted by class.
    """
    regressed = next((task.name for task in stream.tasks if task.kind == "regression"), None)
    if options["per_class"] is not None and regressed is not None:
        raise _without_classes(regressed)
    if options["policy"] != "full":
        for rows in stream[0].data.values():
            _check_rows(rows)
