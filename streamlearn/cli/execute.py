"""Carrying out a strategy: one run, a run continued, or a run for each of several seeds."""

from __future__ import annotations

import shlex
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamlearn.cli.build import build
from streamlearn.cli.progress import progress
from streamlearn.cli.strategy import Strategy, length, validated
from streamlearn.cli.text import columns, options_text, say
from streamlearn.core.registry import require_installed
from streamlearn.errors import RunFolderError, RunInterrupted
from streamlearn.results import Result
from streamlearn.results.files import encode, read_json, write_atomically

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamlearn.core.engine import Engine
    from streamlearn.streams import Stream

__all__ = ["describe", "resume", "run_once", "run_seeds", "short"]

_MAY_DIFFER = ("device", "checkpoint_every")  # neither makes it another run


def describe(strategy: Strategy) -> str:
    """What runs, in one line."""
    plugins = " + ".join(_named(section.name, section.options) for section in strategy.plugins) or "no plugin"
    stream = " | ".join(_named(link.name, link.options) for link in (strategy.stream, *strategy.stream.then))
    model, optimizer = (_named(s.name, s.options) for s in (strategy.model, strategy.optimizer))
    return f"{stream}; {plugins}; {model}; {optimizer}; {length(strategy)}, batch size {strategy.batch_size}"


def short(result: Result) -> str:
    """Average accuracy and forgetting in a few words; empty when undefined."""
    words = (("average_accuracy", "average accuracy"), ("forgetting", "forgetting"))
    defined = [(word, result.metrics[key].value) for key, word in words]
    return ", ".join(f"{word} {100 * value:.1f} %" for word, value in defined if value is not None)


def run_once(strategy: Strategy, output: Path | None, quiet: bool, table: bool = True) -> Result:
    """Run ``strategy`` into ``output``; says what runs first, and where the result is last."""
    if output is not None:
        _refuse_taken(output)
    head = f"running: {describe(strategy)}, seed {strategy.seed}{'' if output is None else f'; into {output}'}"
    return _train(strategy, output, quiet, table, head, lambda engine, stream: engine.run(stream, output, origin=strategy.to_json()))


def resume(folder: Path, quiet: bool, table: bool = True) -> Result:
    """Continue the run in ``folder`` to its end.

    Raises:
        RunFolderError: there is no run in it, or one that a script started.
        CheckpointError: the distribution of one of its plugins is not installed any more.
    """
    strategy = _origin(folder)
    if _is_finished(folder):
        result = Result.load(folder)
        if not quiet and table:
            say(f"{folder} holds a run that has ended: nothing is left to do\n\n{result.table()}\n")
        say(_where(result, folder))
        return result
    require_installed(read_json(folder / "run.json").get("versions", {}).get("plugins", {}), folder)
    head = f"resuming: {describe(strategy)}, seed {strategy.seed}; in {folder}"
    return _train(strategy, folder, quiet, table, head, lambda engine, stream: engine.resume(folder, stream))


def run_seeds(strategy: Strategy, seeds: int, output: Path | None, quiet: bool) -> dict[int, Result]:
    """Run ``strategy`` with the seeds 0 to ``seeds - 1``; what ``output`` holds of them already is not done again."""
    results: dict[int, Result] = {}
    for seed in range(seeds):
        seeded = strategy.model_copy(update={"seed": seed})
        folder = None if output is None else output / f"seed-{seed}"
        try:
            results[seed] = _run_or_continue(seeded, folder, quiet)
        except RunInterrupted as error:
            error.add_note("or repeat the command, which goes on where it was and does the remaining seeds too")
            raise
    summary = _summary(results)
    if not quiet:
        rows = [[key.replace("_", " "), _percent(row["mean"]), _percent(row["standard_deviation"])] for key, row in summary.items()]
        say("\n" + columns([f"{seeds} seeds, in %", "mean", "standard deviation"], rows) + "\n")
    if output is None:
        say("done; nothing was saved: add --output DIR to keep results and to be able to resume")
    else:
        write_atomically(output / "summary.json", encode({"seeds": list(results), "metrics": summary}, indent=2))
        say(f"results: {output}/seed-0 to seed-{seeds - 1}, and {output}/summary.json")
    return results


def _run_or_continue(strategy: Strategy, folder: Path | None, quiet: bool) -> Result:
    if folder is None or not (folder / "run.json").exists():
        return run_once(strategy, folder, quiet=quiet, table=False)
    _check_same(folder, strategy)
    if not _has_checkpoint(folder):  # it was killed before it had anything to save
        for name in ("events.jsonl", "times.jsonl", "run.json"):
            (folder / name).unlink(missing_ok=True)
        return run_once(strategy, folder, quiet=quiet, table=False)
    if not _is_finished(folder):
        return resume(folder, quiet, table=False)
    result = Result.load(folder)
    if not quiet:
        say(f"seed {strategy.seed} is done already: {short(result)} ({folder})")
    return result


def _train(strategy: Strategy, folder: Path | None, quiet: bool, table: bool, head: str, act: Callable[[Engine, Stream], Result]) -> Result:
    with progress(quiet) as tell:
        engine, stream = build(strategy, tell)
        if not quiet:
            say(head)
        try:
            result = act(engine, stream)
        except BaseException as error:
            _tell_how_to_go_on(error, folder)
            raise
    if not quiet and table:
        say(f"\n{result.table()}\n")
    if table:
        say(_where(result, folder))
    elif not quiet:
        say(f"done: {short(result)}")
    return result


def _tell_how_to_go_on(error: BaseException, folder: Path | None) -> None:
    """The engine tells scripts how to resume; here a command does."""
    if isinstance(error, RunInterrupted):
        return
    error.__notes__ = [note for note in getattr(error, "__notes__", []) if "engine.resume(" not in note]
    if folder is None and isinstance(error, KeyboardInterrupt):
        error.add_note("nothing was saved: add --output DIR to be able to resume")
    elif folder is not None and _has_checkpoint(folder):
        error.add_note(f"what was measured is kept; resume with: streamlearn run --resume {shlex.quote(str(folder))}")


def _where(result: Result, folder: Path | None) -> str:
    place = "not saved (add --output DIR to keep it)" if folder is None else f"{folder} (result.json, events.jsonl, figure.svg)"
    numbers = short(result)
    return f"result: {place}{f'; {numbers}' if numbers else ''}"


def _origin(folder: Path) -> Strategy:
    """The strategy that ``run.json`` keeps.

    Raises:
        RunFolderError: there is none.
    """
    if not (folder / "run.json").is_file():
        inside = sorted(folder.glob("seed-*/run.json"))
        cure = f"; it holds one for each seed: resume {inside[0].parent}, or repeat the command with --seeds" if inside else ""
        raise RunFolderError(f"{folder} holds no run: there is no run.json in it{cure or '; give the folder that was passed as --output'}")
    origin = read_json(folder / "run.json").get("origin")
    if not isinstance(origin, Mapping):
        raise RunFolderError(f"the run in {folder} was started by a script: resume it there, with engine.resume({str(folder)!r})")
    return validated(origin, str(folder / "run.json"))


def _check_same(folder: Path, strategy: Strategy) -> None:
    """Refuse to take the result of another strategy for one of this.

    Raises:
        RunFolderError: the folder holds another run; the first difference is named.
    """
    saved, wanted = _origin(folder).to_json(), strategy.to_json()
    for key, value in wanted.items():
        if key not in _MAY_DIFFER and saved.get(key) != value:
            raise RunFolderError(f"{folder} holds another run: its {key} is {saved.get(key)!r}, not {value!r}; choose another --output")


def _refuse_taken(folder: Path) -> None:
    """Tell before any data are loaded what the engine would tell after it.

    Raises:
        RunFolderError: there is a run in the folder.
    """
    if (folder / "run.json").exists():
        state = "a run that has ended" if _is_finished(folder) else f"a run that was stopped (go on with it: --resume {folder})"
        raise RunFolderError(f"{folder} holds {state}: choose another --output, or remove that one")


def _has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("checkpoints/*/*"))


def _is_finished(folder: Path) -> bool:
    return (folder / "result.json").exists() and Result.load(folder).is_complete


def _summary(results: Mapping[int, Result]) -> dict[str, dict[str, Any]]:
    """Every metric that is defined for all seeds: its values, mean, and standard deviation (of a sample, n - 1)."""
    summary = {}
    for key in next(iter(results.values())).metrics:
        values = [result.metrics[key].value for result in results.values()]
        known = [value for value in values if value is not None]
        if len(known) == len(values):
            spread = statistics.stdev(known) if len(known) > 1 else None
            summary[key] = {"mean": statistics.fmean(known), "standard_deviation": spread, "values": known}
    return summary


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _named(name: str, options: Mapping[str, Any]) -> str:
    return f"{name}({options_text(options)})" if options else name
