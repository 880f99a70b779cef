"""What arrives at once (`Experience`), and what a run is measured on (`EvaluationSet`)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from streamlearn.streams.data import Data, JoinedData
from streamlearn.streams.task import Task

__all__ = ["EvaluationSet", "Experience"]


@dataclass(frozen=True, slots=True, eq=False)
class Experience:
    """One element of a stream, as training sees it.

    Hidden truth is not in it: what evaluation needs lives in `EvaluationSet`, which training never meets.

    Args:
        index: its place in the stream, from 0.
        tasks: the tasks present.
        data: rows by role, ``{"train": ...}`` at the least, or ``{"target": ...}`` for adaptation at test time.
        name: for people.
        classes: for each classification task the class numbers that have rows here, ascending.
        origin: where an experience was cut into several, the number of that experience; ``None`` where nothing was cut, or where
            training is not told.
    """

    index: int
    tasks: tuple[Task, ...]
    data: Mapping[str, Data | JoinedData]
    name: str = ""
    classes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    origin: int | None = None

    @property
    def main_role(self) -> str:
        """The role that training is about: ``"train"`` where it is present, else the first that is not ``"validation"``."""
        return "train" if "train" in self.data else next((role for role in self.data if role != "validation"), "validation")


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationSet:
    """Rows on which the model is measured, labelled; ``index`` is its number among the evaluation sets of the stream."""

    index: int
    data: Data | JoinedData
    name: str = ""

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks measured."""
        return self.data.tasks
