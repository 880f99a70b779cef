"""Wrong when there are two of them."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from streamlearn import hookimpl
from streamlearn.core.run import Run
from streamlearn.streams import Experience
from tests.testing.wrong.control import Control


class OneForAll(Control):
    """Keeps its anchor in the class: two engines that train by turns pull to each other's weights.

    One run after another is right, because the anchor is dropped when a run starts; a sweep with two engines in one process is not.
    Avalanche's wrappers changed the caller's list of plugins in the same way.
    """

    shared: ClassVar[dict[str, Tensor]] = {}

    @property
    def _anchor(self) -> dict[str, Tensor]:
        return type(self).shared

    @_anchor.setter
    def _anchor(self, value: dict[str, Tensor]) -> None:
        type(self).shared = value

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Start with nothing to hold."""
        type(self).shared = {}


class CachesForAll(Control):
    """Caches the anchor of each experience by its number, in its module: whoever comes second holds the weights of the first.

    The second seed of a sweep is then held at the solution of the first, and the five seeds agree astonishingly well.
    """

    @hookimpl
    def after_experience(self, experience: Experience, run: Run) -> None:  # type: ignore[override]
        """Hold the weights as somebody had them at the end of this experience."""
        self._anchor = _CACHE.setdefault(experience.index, run.snapshot())


_CACHE: dict[int, dict[str, Tensor]] = {}
