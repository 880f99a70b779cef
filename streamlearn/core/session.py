"""A run and its folder: starting, saving, stopping, resuming.

folder/
  run.json            what was run: stream, strategy, seed, versions
  events.jsonl        every measurement as it was made
  times.jsonl         how long things took, kept apart because no two runs agree on it
  checkpoints/        the newest whole checkpoints
  result.json, figure.svg     when the run has ended
"""

from __future__ import annotations

import contextlib
import fcntl
import signal
import threading
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint, to_device, write_checkpoint
from streamlearn.core.randomness import forked
from streamlearn.core.registry import require_installed
from streamlearn.core.run import Run
from streamlearn.core.training import Walk, enter_experience
from streamlearn.errors import CheckpointError, DivergenceError, RunFolderError, RunInterrupted
from streamlearn.results.files import disk_errors, plain
from streamlearn.results.folder import claim, read_description

if TYPE_CHECKING:
    from streamlearn.core.engine import Progress

__all__ = ["Session", "check_same", "claim_folder", "locked", "never_saved", "restore"]

_COMPARED = ("stream", "strategy", "seed")


class Session:
    """Decides, between steps, whether to save and whether to stop.

    Args:
        run: the run.
        folder: where to save; ``None`` saves nothing.
        progress: told what happened.
    """

    def __init__(self, run: Run, folder: Path | None, progress: Progress | None) -> None:
        self.run, self.folder, self.progress = run, folder, progress
        self.walk: Walk | None = None
        self._stop = False
        self._seen = 0

    def between_steps(self, event: str) -> None:
        """After every update (``"step"``), experience, and at the start."""
        if self.folder is not None:
            every = self.run.options.checkpoint_every
            update, seen = self.run.clock.update, self._seen
            self._seen = update
            due = event != "step" or (every is not None and update // every > seen // every)  # a batch may make several updates
            if due or self._stop:
                self.save()
            if self._stop:
                raise RunInterrupted(self.folder, command_line=read_description(self.folder).get("origin") is not None)
        if self.progress is not None:
            self.progress(event, self.run)

    def save(self) -> None:
        """Write a checkpoint of the present place."""
        if self.folder is not None:
            self._refuse_not_finite()
            state = self.run.state_dict()
            self.run.record.sync()  # a checkpoint says how long the record was: it must not reach the disk first
            self.run.times.sync()
            state["walk"] = {} if self.walk is None else self.walk.state_dict()
            write_checkpoint(self.folder / "checkpoints", self.run.clock.update, state)

    def _refuse_not_finite(self) -> None:
        """A finite loss may still have a gradient that is not; the last good checkpoint must outlive it."""
        for name, parameter in self.run.parameters().items():
            if not bool(parameter.isfinite().all()):
                raise DivergenceError(
                    f"parameter {name!r} is not finite at {self.run.clock}, though every loss was: the last checkpoint is kept; "
                    "start again, in another folder, with clipped gradients or a lower learning rate"
                )

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Turn the first SIGINT or SIGTERM into "finish the step, save, stop"; the second ends the process as usual."""
        if self.folder is None or threading.current_thread() is not threading.main_thread():
            yield
            return
        previous: dict[signal.Signals, Any] = {}

        def handler(number: int, frame: object) -> None:
            self._stop = True
            for known, before in previous.items():
                signal.signal(known, before)

        for wanted in (signal.SIGINT, signal.SIGTERM):
            previous[wanted] = signal.signal(wanted, handler)
        try:
            yield
        finally:
            for wanted, before in previous.items():
                signal.signal(wanted, before)


@contextlib.contextmanager
def locked(folder: Path | None) -> Iterator[None]:
    """Keep a second process out of ``folder``."""
    if folder is None:
        yield
        return
    with disk_errors(folder):
        handle = (folder / ".lock").open("w")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunFolderError(f"another process is running in {folder}: wait for it, or choose another folder") from None
        yield


def claim_folder(folder: Path, description: Mapping[str, Any]) -> None:
    """Make ``folder`` the home of a new run.

    Raises:
        RunFolderError: it holds another run, or cannot be written.
    """
    if (folder / "run.json").exists():
        raise RunFolderError(
            f"{folder} already holds a run: resume it ('streamlearn run --resume {folder}' or engine.resume({str(folder)!r})), "
            "or choose another folder"
        )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        claim(folder, description)


def check_same(folder: Path, description: Mapping[str, Any]) -> None:
    """Refuse to resume a run of another strategy, stream or seed; warn when versions differ.

    Raises:
        RunFolderError: the folder holds no run, or a damaged one.
        CheckpointError: it holds another run, of which the first difference is named; or the distribution of a plugin is missing.
    """
    saved, fresh = read_description(folder), plain(description)
    require_installed(saved.get("versions", {}).get("plugins", {}), folder)
    for key in _COMPARED:
        difference = _first_difference(saved.get(key), fresh.get(key), key)
        if difference is not None:
            raise CheckpointError(
                f"{folder} holds another run: {difference}; resume it with the strategy, stream and seed it was started with"
            )
    difference = _first_difference(saved.get("versions"), fresh.get("versions"), "versions")
    if difference is not None:
        warnings.warn(
            f"resuming {folder} under other versions: {difference}; results may differ in the last bits", RuntimeWarning, stacklevel=3
        )


def _first_difference(saved: Any, fresh: Any, path: str) -> str | None:
    if isinstance(saved, dict) and isinstance(fresh, dict):
        for key in sorted({*saved, *fresh}, key=lambda key: (isinstance(saved.get(key), (dict, list)), key)):  # what is plain first
            found = _first_difference(saved.get(key), fresh.get(key), f"{path}.{key}")
            if found is not None:
                return found
        return None
    if isinstance(saved, list) and isinstance(fresh, list) and len(saved) == len(fresh):
        found_in = (_first_difference(a, b, f"{path}[{n}]") for n, (a, b) in enumerate(zip(saved, fresh, strict=True)))
        return next((found for found in found_in if found is not None), None)
    return None if saved == fresh else f"{path} was {saved!r} and is {fresh!r} now"


def never_saved(run: Run, folder: Path) -> bool:
    """Whether the run was stopped before its first checkpoint, in the measurement before any training: then it starts again."""
    if any((folder / "checkpoints").glob("step-*")) or any(e["event"] != "evaluation" or e["update"] for e in run.record.events):
        return False
    run.record.truncate(0)
    run.times.truncate(0)
    return True


def restore(run: Run, folder: Path) -> dict[str, Any] | None:
    """Bring ``run`` to the place of the newest whole checkpoint; returns the state of the walk saved there.

    ``run`` must have its model, freshly built, and nothing trained.

    Raises:
        CheckpointError: there is no whole checkpoint.
    """
    path, refused = latest_checkpoint(folder / "checkpoints")
    for reason in refused:
        warnings.warn(f"a damaged checkpoint was passed over: {reason}; resuming from {path.name}", RuntimeWarning, stacklevel=3)
    state = to_device(read_checkpoint(path), run.device)
    for name, value in state["clock"].items():
        setattr(run.clock, name, value)
    with forked(run.device):
        _restore(run, state)
    run.record.truncate(state["record"])
    run.times.truncate(min(state["times"], run.times.position))  # no result depends on them
    return state["walk"]  # type: ignore[no-any-return]


def _restore(run: Run, state: Mapping[str, Any]) -> None:
    run.model.restore_structure(state["model"]["structure"])
    run.model.to(run.device)
    run.optimization.refresh()
    run.notice_growth()
    place = run.clock.experience
    for number in range(place + run.clock.inside):  # all of them: a plugin may have brought a module in any
        run.clock.experience = number
        enter_experience(run, run.stream[number])
    run.clock.experience = place
    if not run.clock.inside:
        run.experience = None
    run.load_state_dict(state)
