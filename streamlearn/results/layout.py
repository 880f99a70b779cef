"""What the rows and the columns of an accuracy matrix stand for: experiences and evaluation sets, which need not be equally many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from streamlearn.results.measure import Matrix

__all__ = ["Layout", "is_square", "one_after_another"]


def is_square(learnt: Sequence[int], experiences: int) -> bool:
    """Whether each experience has an evaluation set of its own, in the same order.

    Example:
        >>> is_square([1, 2], 2), is_square([3, 6], 6), is_square([1, 1], 1)
        (True, False, False)
    """
    return list(learnt) == list(range(1, experiences + 1))


def one_after_another(learnt: Sequence[int]) -> bool:
    """Whether each evaluation set is learnt later than the one before it.

    Example:
        >>> one_after_another([3, 6]), one_after_another([1, 1])
        (True, False)
    """
    return all(earlier < later for earlier, later in pairwise(learnt))


@dataclass(frozen=True, slots=True)
class Layout:
    """How a matrix of ``T + 1`` rows and ``S`` columns is to be labelled.

    Args:
        learnt: for each of the ``S`` evaluation sets, after how many experiences it has been learnt, in 1..T.
        experiences: their number ``T``.
        rows: names of the experiences; may be empty.
        columns: names of the evaluation sets; may be empty.
    """

    learnt: tuple[int, ...]
    experiences: int
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, matrix: Matrix, names: Sequence[str], learnt: Sequence[int] | None, sets: Sequence[str] | None) -> Layout:
        """That of ``matrix``; without ``learnt`` it is square, without ``sets`` its columns have the names of its rows if it is."""
        after = tuple(range(1, matrix.shape[1] + 1) if learnt is None else learnt)
        experiences = len(matrix) - 1
        if sets is None:
            sets = names if is_square(after, experiences) else ()
        return cls(after, experiences, tuple(names), tuple(sets))

    @property
    def square(self) -> bool:
        """Whether each experience has an evaluation set of its own: columns may then be called after experiences."""
        return is_square(self.learnt, self.experiences)

    @property
    def column(self) -> str:
        """What one column stands for, in short."""
        return "exp." if self.square else "set"

    @property
    def belongs_to(self) -> str:
        """Of what the test rows of a column are."""
        return "experience" if self.square else "evaluation set"

    @property
    def marked(self) -> str:
        """What the entry ``R[learnt[j], j]`` is about."""
        return "the experience just trained" if self.square else "the evaluation set just learnt"
