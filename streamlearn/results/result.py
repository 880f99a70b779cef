"""The result of a run: its record, and everything that follows from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamlearn.errors import ConfigurationError, UnknownNameError
from streamlearn.results import matrix as reading
from streamlearn.results.compute import as_json
from streamlearn.results.every import every_metric, matrix_metrics
from streamlearn.results.figure import matrix_figure, to_svg
from streamlearn.results.files import disk_errors, encode, plain, write_atomically
from streamlearn.results.folder import FORMAT, claim, problem_of, read_description, title_of
from streamlearn.results.layout import is_square, one_after_another
from streamlearn.results.measure import Matrix, Measure
from streamlearn.results.record import Record
from streamlearn.results.reference import accuracy_gap, intransigence
from streamlearn.results.table import fit, matrix_table, metrics_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Result"]

_ROWS_TAKEN = (
    "in the metrics, R has the rows before training, after each set but the last has been learnt, and at the end of the stream; "
    "T is the number of sets"
)


class Result:
    """What was run, what was measured, and what follows from it. Nothing is stored twice: all is read from the record.

    Args:
        description: what was run, as JSON: ``format``, ``stream``, ``strategy``, ``seed``, ``versions``.
        record: what was measured.
        times: how long it took; kept apart, because it differs between equal runs.
        model: the trained model; ``None`` when the result was loaded.
        save_checkpoint: writes the trained state into a folder.

    Raises:
        ConfigurationError: ``description`` lacks its format, the stream's name, or its number of experiences; or what it says
            of when the evaluation sets are learnt is no list of numbers of experiences.

    Example:
        >>> record = Record()
        >>> for trained, accuracy in enumerate((0.5, 0.9)):
        ...     record.append({"event": "evaluation", "trained": trained, "set": 0, "task": "t", "metric": "accuracy", "value": accuracy})
        >>> record.append({"event": "experience", "index": 0, "name": "all digits"})
        >>> result = Result({"format": 1, "stream": {"name": "digits", "experiences": 1}}, record)
        >>> result.accuracy_matrix.tolist()
        [[0.5], [0.9]]
        >>> float(result.metrics["average_accuracy"])
        0.9
    """

    def __init__(
        self,
        description: Mapping[str, Any],
        record: Record,
        times: Record | None = None,
        model: object | None = None,
        save_checkpoint: Callable[[Path], None] | None = None,
    ) -> None:
        self.description: dict[str, Any] = plain(description)
        problem = problem_of(self.description)
        if problem:
            raise ConfigurationError(f"the description of the run {problem}")
        self.record = record
        self._times = Record() if times is None else times
        self.model = model
        self._save_checkpoint = save_checkpoint

    @property
    def events(self) -> list[dict[str, Any]]:
        """Everything that was measured, in order; see `streamlearn.results.record`."""
        return self.record.events

    @property
    def times(self) -> list[dict[str, Any]]:
        """Seconds by activity, in order."""
        return self._times.events

    @property
    def experiences(self) -> int:
        """Number of experiences in the stream, trained or not."""
        return int(self.description["stream"]["experiences"])

    @property
    def learnt_after(self) -> tuple[int, ...]:
        """For each evaluation set, after how many experiences it has been learnt: 1, 2, ... when each experience has its own."""
        return tuple(self.description["stream"].get("learnt_after") or range(1, self.experiences + 1))

    @property
    def experience_names(self) -> tuple[str, ...]:
        """Name of each experience; one not trained yet has that of its own evaluation set, or an empty one."""
        return self._names[0]

    @property
    def set_names(self) -> tuple[str, ...]:
        """Name of each evaluation set; one not measured has that of the experience whose own it is, or an empty one."""
        return self._names[1]

    @property
    def _names(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        experiences = reading.experience_names(self.events, self.experiences)
        sets = reading.set_names(self.events, len(self.learnt_after))
        if not is_square(self.learnt_after, self.experiences):
            return experiences, sets
        pairs = list(zip(experiences, sets, strict=True))
        return tuple(name or other for name, other in pairs), tuple(name or other for other, name in pairs)

    @property
    def stream_name(self) -> str:
        """Name of the stream."""
        return str(self.description["stream"]["name"])

    @property
    def main_metric(self) -> str:
        """``"accuracy"`` when any was measured; otherwise what was."""
        return reading.main_metric(self.events)

    @property
    def accuracy_matrix(self) -> Matrix:
        """``R[i, j]``: accuracy in [0, 1] on evaluation set ``j`` after ``i`` experiences, shape ``(experiences + 1, sets)``.

        There are as many evaluation sets as experiences, unless several experiences share one or one has several: column ``j``
        has been learnt in row ``learnt_after[j]``. Row 0 is before any training; a set with several classification tasks has
        their mean; NaN is undefined or not measured.
        """
        return self.matrix(metric="accuracy")

    def matrix(self, task: str | None = None, metric: str | None = None) -> Matrix:
        """The matrix of one ``metric``, of one ``task`` or the mean over the tasks that have it; laid out as `accuracy_matrix`.

        Args:
            task: all when ``None``.
            metric: ``None`` for accuracy, or for what was measured (of ``task``) when that is not accuracy.

        Raises:
            UnknownNameError: no such task, or no such metric (of ``task``), was evaluated.
        """
        metric = metric or reading.main_metric(self.events, task)
        return reading.matrix_of(self.events, self.experiences, len(self.learnt_after), metric, task)

    @property
    def metrics(self) -> dict[str, Measure]:
        """The usual metrics by name, with their definitions; undefined ones say why. There are more in `every_metric`."""
        return matrix_metrics(self)

    @property
    def every_metric(self) -> dict[str, Measure]:
        """Those of `metrics` first, then each variant that circulates, those of evaluations within experiences, and costs."""
        return every_metric(self)

    def measure(self, name: str) -> Measure:
        """One metric of `every_metric`, such as ``"forgetting_from_first"`` or ``"stability_gap"``, with its definition.

        Raises:
            UnknownNameError: there is none of this name; the nearest is offered.
        """
        measures = self.every_metric
        if name not in measures:
            raise UnknownNameError("metric", name, measures)
        return measures[name]

    def intransigence(self, reference: Result) -> Measure:
        """How much worse each evaluation set is learnt than by ``reference``; see `streamlearn.results.reference.intransigence`.

        Args:
            reference: a run on the same evaluation sets that may see more: ``streams.joint(stream)``, or all experiences so far.

        Raises:
            ConfigurationError: the evaluation sets of ``reference`` are others.
        """
        return intransigence(self, reference)

    def accuracy_gap(self, reference: Result) -> Measure:
        """How much lower the final average accuracy is than that of ``reference``; arguments and errors as of `intransigence`."""
        return accuracy_gap(self, reference)

    @property
    def is_complete(self) -> bool:
        """Whether every experience was trained and, unless the run never evaluates, every set was evaluated at the end."""
        measured = reading.final_row_is_measured(self.events, self.experiences, len(self.learnt_after))
        never = (self.description.get("strategy") or {}).get("evaluate") == "never"
        return reading.trained_experiences(self.events) == self.experiences and (measured or never)

    @property
    def title(self) -> str:
        """What was run, in one line."""
        if self.is_complete:
            return title_of(self.description)
        trained = reading.trained_experiences(self.events)
        last = ", the last evaluation is missing" if trained == self.experiences else ""
        return f"{title_of(self.description)}, not complete: {trained} of {self.experiences} experiences trained{last}"

    def table(self) -> str:
        """What was run, the matrix, why entries are undefined, and the metrics: plain text, at most 100 columns wide."""
        metric, learnt = self.main_metric, self.learnt_after
        reasons = [f"undefined: {reason}" for reason in reading.undefined_reasons(self.events, metric)]
        matrix = matrix_table(self.matrix(metric=metric), self.experience_names, metric, learnt=learnt, sets=self.set_names)
        picked = len(learnt) > 1 and not is_square(learnt, self.experiences) and one_after_another(learnt) and self.is_complete
        parts = [self.title, matrix, *reasons, *([_ROWS_TAKEN] if picked else []), metrics_table(self.metrics)]
        return "\n\n".join(fit(part) for part in parts)

    def figure(self) -> Figure:
        """A heat map of the matrix and the curve of each evaluation set over time."""
        metric, learnt = self.main_metric, self.learnt_after
        return matrix_figure(
            self.matrix(metric=metric), self.experience_names, title=self.title, quantity=metric, learnt=learnt, sets=self.set_names
        )

    def to_json(self) -> dict[str, Any]:
        """The content of ``result.json``: plain dicts, lists, numbers and ``None`` (for NaN)."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "complete": self.is_complete,
            **as_json(self.metrics),
            "accuracy_matrix": self.accuracy_matrix.tolist(),
            "stream": self.description["stream"],
            "seed": self.description.get("seed"),
            "strategy": self.description.get("strategy"),
        }
        return dict(plain(content))

    def save(self, path: str | Path) -> None:
        """Write the run folder ``path``; one that the engine has begun for this run is finished.

        It then holds ``run.json`` (the description), ``events.jsonl``, ``times.jsonl``, ``checkpoints/`` (of a run, not of a
        loaded result), ``figure.svg`` and, written last, ``result.json``. Each file is whole or not there.

        Raises:
            RunFolderError: ``path`` holds another run, or cannot be written (a full disk, ...).
        """
        path = Path(path)
        claim(path, self.description)
        self.record.save(path / "events.jsonl")
        self._times.save(path / "times.jsonl")
        if self._save_checkpoint is not None:
            with disk_errors(path):
                self._save_checkpoint(path / "checkpoints")
        write_atomically(path / "figure.svg", to_svg(self.figure()))
        write_atomically(path / "result.json", encode(self.to_json(), indent=2))

    @classmethod
    def load(cls, path: str | Path) -> Result:
        """The result saved in the folder ``path``, complete or not; without the model.

        Raises:
            RunFolderError: ``path`` is no run folder, is damaged, or was written by a newer streamlearn.
        """
        path = Path(path)
        description = read_description(path)
        times = path / "times.jsonl"
        return cls(description, Record.read(path / "events.jsonl"), Record.read(times) if times.exists() else None)

    def __repr__(self) -> str:
        known = (f"{name} {measure.value:.4f}" for name, measure in self.metrics.items() if measure.value is not None)
        return f"Result({'; '.join([self.title, *known])})"
