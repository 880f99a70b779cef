"""Black-box search for the numbers of a strategy, on the first experiences of a stream and nothing else.

Every trial is a run of its own over `beginning(stream, experiences)`, an object that leads to no later experience, and is measured
after each of them: an unpromising trial is pruned along the stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from streamlearn.core.plugin import Tunable
from streamlearn.core.randomness import subseed
from streamlearn.core.tuning.beginnings import beginning, length_of_beginning
from streamlearn.core.tuning.optuna_study import check_same, installed_optuna, pruner_of, quiet, storage_of
from streamlearn.core.tuning.tuned_engine import Ranges, as_it_is, ranges_of, with_values
from streamlearn.errors import ConfigurationError, DivergenceError
from streamlearn.results.matrix import entries_of, main_metric

if TYPE_CHECKING:
    from streamlearn.core.engine import Engine
    from streamlearn.core.run import Run
    from streamlearn.streams import Stream

__all__ = ["Trial", "Tuning", "tune"]

_ENDED = ("complete", "pruned")


@dataclass(frozen=True, slots=True)
class Trial:
    """One trial: the values that were tried, and how it went.

    Args:
        values: by name of the number.
        state: ``"complete"``, ``"pruned"`` (stopped along the stream, or diverged) or another word of Optuna's for one that has not ended.
        scores: the score after each experience, as far as it came.
    """

    values: Mapping[str, float]
    state: str
    scores: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a search has found.

    Args:
        values: the best numbers, by name; see `with_values`.
        score: theirs, after the last experience that the search had.
        trials: all of them, in order.
        study: Optuna's own object, for its plots and statistics.
    """

    values: Mapping[str, float]
    score: float
    trials: tuple[Trial, ...]
    study: Any


class _Pruned(Exception):  # noqa: N818 - no error: a trial has been stopped
    """Unwinds the run of a trial that is not worth going on with."""


def tune(
    make_engine: Callable[[], Engine],
    stream: Stream,
    *,
    experiences: float,
    numbers: Ranges = None,
    trials: int = 20,
    metric: str | None = None,
    direction: Literal["maximize", "minimize"] | None = None,
    on: Literal["validation", "evaluation"] = "validation",
    fraction: float = 0.1,
    storage: str | Path | None = None,
    study: str = "streamlearn",
    pruner: Any = "median",
    seed: int = 0,
) -> Tuning:
    """Search for the numbers of a strategy by Optuna's tree-structured Parzen estimator, on the beginning of a stream.

    The first trial takes the numbers as they are. The score of a trial after an experience is the mean of ``metric`` over the sets met so
    far. A trial that diverges counts as pruned. The same call gives the same trials, also when it was stopped and goes on from ``storage``.

    Args:
        make_engine: builds the engine; the numbers are exchanged in what it returns.
        stream: the whole stream; runs get its beginning only.
        experiences: how much of it: a whole number of experiences, at least 1, or a share above 0 and up to 1.0.
        numbers: names, ``"<plugin>.<option>"``, ``"learning_rate"`` or ``"weight_decay"`` of the optimiser, or ranges by name; default
            all that the plugins declare tunable, in the ranges they declare.
        trials: how many in all, at least 1, those that ``storage`` holds already included.
        metric: of those that the run measures; default accuracy, or the first of other tasks'.
        direction: default ``"maximize"`` for accuracy; must be given for others.
        on: ``"validation"``: measured on validation rows of each experience, kept from training where the stream has none, so that no
            evaluation set is used up; or ``"evaluation"``: on the evaluation sets of these experiences, which are no test any more.
        fraction: of the training rows of each class that are kept for that, in [0, 1).
        storage: file of an SQLite database, or the address of a database (``"sqlite:///..."``), in which trials are kept; ``None``
            keeps them in memory.
        study: under which name.
        pruner: ``"median"``, ``"halving"``, one of Optuna's, or ``None``.
        seed: of the search. The runs have the seed of the engine, the same in every trial.

    Raises:
        MissingExtraError: Optuna is not installed.
        ConfigurationError: an argument is not as described, or ``storage`` holds another search under this name.

    Reference: Akiba et al., Optuna: A next-generation hyperparameter optimization framework, KDD 2019; tuning on the first tasks of a
    stream: Chaudhry et al., Efficient lifelong learning with A-GEM, ICLR 2019, section 4.
    """
    optuna = installed_optuna()
    if not callable(make_engine):
        raise ConfigurationError(
            f"tune: make_engine is a {type(make_engine).__name__}: give a function that builds one, as in lambda: Engine(...)"
        )
    part = beginning(stream, length_of_beginning(stream, experiences), on=on, fraction=fraction)
    engine = make_engine()
    ranges = ranges_of(numbers, engine)
    if isinstance(trials, bool) or trials < 1:
        raise ConfigurationError(f"tune: trials is {trials!r}, but it must be a whole number of at least 1")
    if metric not in (None, "accuracy") and direction is None:
        raise ConfigurationError(f"tune: metric is {metric!r}: say with direction whether to 'maximize' or to 'minimize' it")
    said = {
        "stream": part.hash,
        "numbers": {name: [mark.low, mark.high, mark.log] for name, mark in ranges.items()},
        "metric": metric,
        "direction": direction or "maximize",
        "seed": seed,
        "engine": [*map(repr, engine.plugins), {name: value for name, value in asdict(engine.options).items() if name != "device"}],
    }
    with quiet(optuna):
        search = optuna.create_study(
            storage=storage_of(storage, optuna),
            study_name=study,
            direction=said["direction"],
            pruner=pruner_of(pruner, optuna),
            load_if_exists=True,
        )
        check_same(search, said)
        while (done := sum(trial.state.name.lower() in _ENDED for trial in search.trials)) < trials:
            # seeded by what has ended, and blind to a trial that a kill left unfinished: a search that goes on is one that went through
            search.sampler = optuna.samplers.TPESampler(seed=subseed(seed, "trial", done) % 2**32, constant_liar=False)
            if done == 0 and not any(trial.state.name == "WAITING" for trial in search.trials):
                search.enqueue_trial(as_it_is(ranges, engine))
            _one_trial(search, make_engine, part, ranges, metric, direction, optuna)
        ended = [t for t in search.trials if t.state == optuna.trial.TrialState.COMPLETE]
        if not ended:
            raise ConfigurationError(f"tune: none of {trials} trials came to its end: all diverged; take narrower ranges or more trials")
        best = search.best_trial
    return Tuning(dict(best.params), float(best.value), tuple(_told(trial) for trial in search.trials), search)


# ------------------------------------------------------------------------------------------------ one trial


def _one_trial(
    search: Any,
    make_engine: Callable[[], Engine],
    part: Stream,
    ranges: Mapping[str, Tunable],
    metric: str | None,
    direction: str | None,
    optuna: Any,
) -> None:
    engine = make_engine()
    kinds = {f"{plugin.name}.{option}": value for plugin in engine.plugins for option, value in plugin.config}
    trial = search.ask()
    values = {name: _suggested(trial, name, mark, kinds.get(name)) for name, mark in ranges.items()}
    engine = with_values(engine, values)
    engine.options = replace(engine.options, evaluate="experience", evaluate_every=None)
    told, scores = engine._progress, list[float]()

    def progress(event: str, run: Run) -> None:
        if told is not None:
            told(event, run)
        if event == "experience":
            scores.append(_score(run, metric, direction))
            trial.report(scores[-1], len(scores))
            if len(scores) < len(part) and trial.should_prune():
                raise _Pruned

    engine._progress = progress
    try:
        engine.run(part)
    except (_Pruned, DivergenceError):
        search.tell(trial, state=optuna.trial.TrialState.PRUNED)
    else:
        search.tell(trial, scores[-1])


def _score(run: Run, metric: str | None, direction: str | None) -> float:
    """The mean over the sets met so far, after the last experience."""
    events, done, stream = run.record.events, run.clock.experience, run.stream
    name = metric or main_metric(events)
    if name != "accuracy" and direction is None:
        raise ConfigurationError(f"tune: the run measures {name}: say with direction whether to 'maximize' or to 'minimize' it")
    met = {j for i in range(done) for j in stream.sets_of(i)}
    found = [
        value for (row, column), value in entries_of(events, len(stream), len(stream.sets), name).items() if row == done and column in met
    ]
    score = sum(found) / len(found) if found else math.nan
    if not math.isfinite(score):
        raise ConfigurationError(f"tune: {name} is undefined after experience {done - 1}: name another metric, or measure on other rows")
    return score


def _suggested(trial: Any, name: str, mark: Tunable, present: Any) -> float:
    if isinstance(present, int) and not isinstance(present, bool):
        return int(trial.suggest_int(name, int(mark.low), int(mark.high), log=mark.log))
    return float(trial.suggest_float(name, mark.low, mark.high, log=mark.log))


def _told(trial: Any) -> Trial:
    scores = tuple(value for _, value in sorted(trial.intermediate_values.items()))
    return Trial(dict(trial.params), trial.state.name.lower(), scores)
