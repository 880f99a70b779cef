"""Every measured value as a line of a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.errors import ConfigurationError, RunFolderError
from streamlearn.results.files import disk_errors, write_atomically

if TYPE_CHECKING:
    from streamlearn.core.evaluation import Evaluation
    from streamlearn.core.run import Run

__all__ = ["COLUMNS", "CSVTracker", "csv_lines"]

COLUMNS = ("trained", "update", "within", "set", "set_name", "task", "metric", "value", "count", "loss", "reason")
"""The columns, in their order; `CSVTracker` tells what they hold."""


def csv_lines(events: Iterable[Mapping[str, Any]], *, header: bool = False) -> bytes:
    r"""The evaluations among ``events`` of a record as CSV, one line each; floats are written so that they are read back bit for bit.

    Example:
        >>> csv_lines([{"event": "evaluation", "trained": 1, "set": 0, "metric": "accuracy", "value": 0.1, "loss": None}])
        b'1,,,0,,,accuracy,0.1,,,\n'
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerows(event for event in events if event["event"] == "evaluation")
    return text.getvalue().encode()


class CSVTracker(Plugin):
    """Writes what is measured on evaluation sets into a CSV file (UTF-8, one header line), as soon as an evaluation is done.

    One line for each evaluation, set, task and metric; a value that is undefined is an empty cell:

    ============  ==================================================================================
    ``trained``   how many experiences have been finished
    ``update``    updates done by then
    ``within``    the experience being trained, where the evaluation was taken inside it; else empty
    ``set``       number of the evaluation set
    ``set_name``  its name
    ``task``      name of the task; empty for a metric of a plugin, which is of the whole set
    ``metric``    ``accuracy``, ``mean_squared_error``, or ``<plugin>/<its name>``
    ``value``     the measured value
    ``count``     rows that it was measured on
    ``loss``      mean loss over them
    ``reason``    why the value is undefined
    ============  ==================================================================================

    The file is a copy of the evaluations in the run's record. It is made anew from there, whole or not at all, at the first evaluation
    of a run or of a resume and again at its end, also when it fails; in between lines are added. So a run that was stopped or killed
    and resumed has every line once.

    Args:
        path: the file, relative to the working folder; folders above it are made. One that another run's tracker wrote is replaced;
            a run of its own needs a path of its own.

    Raises:
        ConfigurationError: ``path`` is a folder, or a file that holds something else; nothing in it is touched.
        RunFolderError: it cannot be written.

    Cost: a write per evaluation. Memory: none.

    Reference: none; the form is that of a tidy table (Wickham 2014, Journal of Statistical Software 59(10)).

    Example:
        >>> from streamlearn.plugins import CSVTracker
        >>> CSVTracker(path="results/run.csv").config.path.name
        'run.csv'
    """

    info = PluginInfo(
        name="csv_tracker",
        family="tracking",
        summary="Writes every measured value as a line of a CSV file.",
        reference="none; tidy data: Wickham 2014, Journal of Statistical Software 59(10)",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `CSVTracker`."""

        path: Path

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._seen: int | None = None  # events of the record that are in the file; not saved, so that a resume writes it anew

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Refuse a file of someone else before anything is trained."""
        _refuse_foreign(self.config.path, self.name)

    @hookimpl
    def after_evaluation(self, evaluation: Evaluation) -> None:
        """Add what was measured."""
        events = evaluation.run.record.events
        path: Path = self.config.path
        if self._seen is None or not path.exists():
            self._write(evaluation.run)
            return
        lines = csv_lines(events[self._seen :])
        with disk_errors(path.parent), path.open("ab") as file:
            file.write(lines)
        self._seen = len(events)

    @hookimpl
    def after_run(self, run: Run) -> None:
        """Write the file a last time, with what a failed run has measured."""
        try:
            if self._seen is not None or any(event["event"] == "evaluation" for event in run.record.events):
                self._write(run)
        except (ConfigurationError, RunFolderError) as error:
            if run.error is None:
                raise
            run.error.add_note(str(error))  # why the run failed matters more

    def _write(self, run: Run) -> None:
        events, path = run.record.events, self.config.path
        if self._seen is None:
            _refuse_foreign(path, self.name)
        write_atomically(path, csv_lines(events, header=True))
        self._seen = len(events)


def _refuse_foreign(path: Path, name: str) -> None:
    """A file that does not begin as this one would is not to be overwritten."""
    header = csv_lines((), header=True)
    if path.is_dir():
        raise ConfigurationError(f"plugin {name}: path {str(path)!r} is a folder: give the name of a file")
    if path.exists():
        with disk_errors(path.parent), path.open("rb") as file:
            first = file.read(len(header))
        if first and first != header:
            raise ConfigurationError(f"plugin {name}: {str(path)!r} holds something else than evaluations of a run: choose another file")
