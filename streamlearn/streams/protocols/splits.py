"""Cutting a data set along its classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.inputs import Inputs, count_experiences, whole_number
from streamlearn.streams.partition import RowsByClass, even_groups, permutation

__all__ = ["ClassSplit", "class_groups"]


class ClassSplit:
    """Groups of classes, and which training and test rows belong to each.

    Args:
        inputs: the rows, and the seed of the shuffle.
        experiences: number of groups; ``None`` for 5, or for as many as ``classes`` has.
        classes: the groups themselves, or ``None`` to cut all classes evenly.
        shuffle: whether to shuffle the classes before they are cut.
        first: how many classes the first group has; the others share the rest evenly. ``None``: all alike.

    Raises:
        DataError: the groups are not what they must be, or a group has no test rows.
    """

    def __init__(
        self,
        inputs: Inputs,
        experiences: int | None,
        classes: Sequence[Sequence[int]] | None,
        shuffle: bool,
        first: int | None = None,
    ) -> None:
        classes = as_groups(classes)
        self.groups = class_groups(inputs.classes, experiences, classes, shuffle=shuffle, seed=inputs.seed, name=inputs.name, first=first)
        called = inputs.class_names or tuple(map(str, range(inputs.classes)))
        self.names = tuple("classes " + ", ".join(called[c] for c in group) for group in self.groups)
        self.options: dict[str, Any] = {
            "experiences": len(self.groups),
            "classes": None if classes is None else [list(map(int, group)) for group in classes],
            "shuffle": bool(shuffle),
            "first": None if first is None else int(first),
        }
        self._classes = inputs.classes
        self._train = RowsByClass(inputs.train.labels, inputs.classes)
        self._test = RowsByClass(inputs.test.labels, inputs.classes)
        for i, group in enumerate(self.groups):
            if not int(self._test.counts[list(group)].sum()):
                raise DataError(f"experience {i} has no test rows: {inputs.test.source.name!r} holds none of the {self.names[i]}; add some")

    def train(self, i: int) -> Tensor:
        """Positions of the training rows of group ``i``."""
        return self._train.of(self.groups[i])

    def test(self, i: int) -> Tensor:
        """Positions of the test rows of group ``i``."""
        return self._test.of(self.groups[i])

    def relabelling(self, i: int) -> Tensor:
        """Maps the class numbers of group ``i`` to 0, 1, ...; the others to -1, which no loss accepts."""
        relabel = torch.full((self._classes,), -1)
        relabel[list(self.groups[i])] = torch.arange(len(self.groups[i]))
        return relabel


def as_groups(classes: Any) -> Any:
    """Arrays, tensors and sets of class numbers as lists; all else as it is.

    Example:
        >>> as_groups([{3, 1}, range(2)])
        [[1, 3], [0, 1]]
    """
    if hasattr(classes, "tolist"):
        return classes.tolist()
    if not isinstance(classes, (list, tuple)):
        return classes
    return [_as_list(group) for group in classes]


def _as_list(group: Any) -> Any:
    if isinstance(group, (set, frozenset)):
        return sorted(group, key=hash)  # a whole number is its own hash, and what is none is refused later
    if hasattr(group, "tolist"):
        return group.tolist()
    return list(group) if isinstance(group, range) else group


def class_groups(
    available: int,
    experiences: int | None,
    classes: Sequence[Sequence[int]] | None,
    *,
    shuffle: bool,
    seed: int,
    name: str,
    first: int | None = None,
) -> tuple[tuple[int, ...], ...]:
    """The classes of each experience, ascending.

    Example:
        >>> class_groups(5, 2, None, shuffle=False, seed=0, name="toy")
        ((0, 1, 2), (3, 4))
        >>> class_groups(6, 3, None, shuffle=False, seed=0, name="toy", first=4)
        ((0, 1, 2, 3), (4,), (5,))
        >>> class_groups(5, None, [[4, 0], [1]], shuffle=True, seed=0, name="toy")
        ((0, 4), (1,))
    """
    if classes is not None:
        if first is not None:
            raise DataError(f"first is {first}, but classes says which come together: leave first out")
        return _given_groups(available, experiences, classes, name)
    count = count_experiences(experiences, 5)
    if available < count:
        raise DataError(f"source {name!r} has {available} classes, fewer than {count} experiences: ask for at most {available}")
    order = permutation(available, seed=seed, purpose="classes").tolist() if shuffle else list(range(available))
    head: list[list[int]] = []
    if first is not None:
        if whole_number(first, "first", 1) > available - (count - 1):
            raise DataError(f"first is {first}: {available} classes leave fewer than one for each of the other {count - 1} experiences")
        head, order = [order[:first]], order[first:]
    rest = even_groups(order, count - len(head)) if count > len(head) else ()
    if first is not None and count == 1 and order:
        raise DataError(f"first is {first} of {available} classes, and there is no other experience for the rest: ask for more experiences")
    return tuple(tuple(sorted(group)) for group in (*head, *rest))


def _given_groups(available: int, experiences: int | None, classes: Sequence[Sequence[int]], name: str) -> tuple[tuple[int, ...], ...]:
    _check_form(classes)
    count = count_experiences(experiences, len(classes))
    if count != len(classes):
        raise DataError(f"classes has {len(classes)} groups but {count} experiences are asked for: leave experiences out")
    home: dict[int, int] = {}
    for i, group in enumerate(classes):
        for given in group:
            number = whole_number(given, f"a class in group {i} of classes", 0)
            if number >= available:
                raise DataError(f"group {i} of classes names the class {number}: source {name!r} has the classes 0 to {available - 1}")
            if number in home:
                raise DataError(f"classes names the class {number} twice, in groups {home[number]} and {i}: name each class at most once")
            home[number] = i
    return tuple(tuple(sorted(map(int, group))) for group in classes)


def _check_form(classes: object) -> None:
    form = "give groups of class numbers, for example [[0, 1], [2, 3]]"
    if isinstance(classes, str) or not isinstance(classes, Sequence) or not classes:
        raise DataError(f"classes is {classes!r}: {form}")
    for i, group in enumerate(classes):
        if isinstance(group, str) or not isinstance(group, Sequence) or not group:
            raise DataError(f"group {i} of classes is {group!r}: {form}")
