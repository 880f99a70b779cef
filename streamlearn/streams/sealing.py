"""Seals: what training holds of a thing that it must not reach is a number, and what it stands for lies here.

No attribute, slot or closure of the objects that training meets leads to it.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, NoReturn, TypeVar

from streamlearn.errors import DataError

__all__ = ["Sealed", "SealedBuilder", "Withheld", "evaluating_allowed"]

T = TypeVar("T")

_KEPT: dict[int, object] = {}
_NUMBERS = itertools.count()


class Sealed(Generic[T]):
    """A thing that only its owner opens; it is dropped with the last reference to the seal.

    Args:
        thing: what to keep out of reach.

    Example:
        >>> sealed = Sealed([1, 2])
        >>> sealed.open()
        [1, 2]
    """

    __slots__ = ("__weakref__", "_number")

    def __init__(self, thing: T) -> None:
        self._number = next(_NUMBERS)
        _KEPT[self._number] = thing
        weakref.finalize(self, _KEPT.pop, self._number, None)

    def open(self) -> T:
        """The thing."""
        return _KEPT[self._number]  # type: ignore[return-value]

    def __copy__(self) -> Sealed[T]:
        return self

    def __deepcopy__(self, memo: object) -> Sealed[T]:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("what is hidden from training cannot be pickled: pickle the stream's description and rebuild it")


class SealedBuilder(Generic[T]):
    """A function of the number of an experience whose closure, which may hold sources with every label, is out of reach."""

    __slots__ = ("_sealed",)

    def __init__(self, build: Callable[[int], T]) -> None:
        self._sealed: Sealed[Callable[[int], T]] = build._sealed if isinstance(build, SealedBuilder) else Sealed(build)

    def __call__(self, i: int) -> T:
        return self._sealed.open()(i)


class Withheld(SealedBuilder[T]):
    """A sealed builder of evaluation sets, or of truth, which answers the evaluator alone."""

    __slots__ = ()

    def __call__(self, i: int) -> T:
        if not _EVALUATING.get():
            raise DataError(f"evaluation set {i} is out of reach of training: steer by rows of role 'validation', as run.measure() does")
        return super().__call__(i)


_EVALUATING: ContextVar[bool] = ContextVar("evaluating", default=False)


@contextmanager
def evaluating_allowed() -> Iterator[None]:
    """Within it, streams for training give their evaluation sets and truth too: for the evaluator, which builds them, and nobody else."""
    token = _EVALUATING.set(True)
    try:
        yield
    finally:
        _EVALUATING.reset(token)
