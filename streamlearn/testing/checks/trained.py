"""Checks of what a run leaves: does it train, always alike, and does the plugin do anything?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from streamlearn.streams import Stream
from streamlearn.testing.bits import difference
from streamlearn.testing.doubles import growing_stream, stream_without_a_task, tiny_stream
from streamlearn.testing.report import CheckFailed, NotApplicable, Trouble
from streamlearn.testing.running import Place, Trained
from streamlearn.testing.subject import Subject

__all__ = [
    "deterministic", "has_effect", "heads_grow", "last_batch_of_one_row", "missing_task", "neutral_at_zero", "terms", "trains",
]  # fmt: skip


def trains(subject: Subject, kind: str) -> None:
    """On a stream of this kind, if it is made for it, every weight stays finite and batches are met."""
    if kind not in subject.kinds:
        raise NotApplicable(f"it is made for other streams: {', '.join(subject.kinds)}")
    _check_finite(subject.trained(Place(kind)), f"on a {kind} stream")


def _check_finite(found: Trained, where: str) -> None:
    for name, tensor in found.weights.items():
        if not bool(tensor.isfinite().all()):
            raise CheckFailed(f"{name!r} of the model is not finite after a run {where}")
    if not found.updates:
        raise CheckFailed(f"a run {where} met no batch: transform_phases, or transform_stream, left nothing to train on")


def deterministic(subject: Subject) -> None:
    """Two equal runs leave equal weights, records and states, bit for bit."""
    if subject.unlike is not None:
        raise CheckFailed(
            f"two runs with the same seed differ: {subject.unlike}; draw from run.generator(self), and use neither time, id nor set order"
        )


def neutral_at_zero(subject: Subject) -> None:
    """With the option ``info.strength`` at 0 a run equals one without the plugin, bit for bit, and no term is added."""
    strength = subject.info.strength
    if strength is None:
        raise NotApplicable("info.strength names no option that switches it off at 0")
    subject.need_determinism()
    trained_on = [place for place in subject.places() if place.network == "heads" and subject.trains_at(place)]
    for place in trained_on:
        given: list[str] = []
        zero = subject.train(place, [*subject.others(), subject.make(**{strength: 0})], watch=noting_terms(subject.name, given))
        if given:
            raise CheckFailed(f"with {strength}=0 it still adds a term ({given[0]}) on a {place} stream: return None from collect_terms")
        bare = subject.bare(place)
        found = difference(zero.weights, bare.weights, "weights") or difference(zero.measured, bare.measured, "measurements")
        if found is not None:
            raise CheckFailed(f"with {strength}=0 a run on a {place} stream differs from one without the plugin: {found}")


def noting_terms(name: str, given: list[str]) -> Callable[..., Any]:
    def watch(plugin: str, hook: str, function: Callable[..., Any], arguments: tuple[str, ...]) -> Callable[..., Any]:
        if hook != "collect_terms" or plugin != name:
            return function

        def collect(*parts: Any) -> Any:
            answer = function(*parts)
            if isinstance(answer, Mapping):
                given.extend(answer)
            elif answer is not None:
                given.append(f"{float(answer.detach()):g}")
            return answer

        return collect

    return watch


def has_effect(subject: Subject) -> None:
    """Somewhere its weights, measurements, predictions, replay memories or files differ from those of a run without it.

    Losses and terms that are only reported do not count: a penalty that is always 0 is reported too.
    """
    home = subject.home
    if subject.effect(home) is None and subject.trained(home).terms:
        raise NotApplicable("it has terms, which move nothing: see the check terms")
    if subject.effect(home) is None and not _writes_files(subject, home):
        raise CheckFailed(
            f"it changes nothing: on {', '.join(subject.kinds)} weights, measurements and memories equal, bit for bit, those of a run "
            "without it; give it options under which it acts, or name its kinds of streams in info.streams"
        )


def _writes_files(subject: Subject, place: Place) -> bool:
    """Whether a file that an option names is there after a run, and was not before."""
    plugin = subject.make()
    paths = [value for value in plugin.config.model_dump().values() if isinstance(value, Path)]
    for path in paths:
        path.unlink(missing_ok=True)
    subject.train(place, [*subject.others(), plugin])
    return any(path.is_file() and path.stat().st_size for path in paths)


def terms(subject: Subject) -> None:
    """Each term is a finite scalar of floating point on the model's device, and somewhere moves a parameter."""
    if not subject.uses("collect_terms"):
        raise NotApplicable("it has no term (collect_terms)")
    _ = subject.home
    met, moved = set[str](), set[str]()
    for place in subject.places():
        if subject.trains_at(place):
            subject.train(place, watch=_differentiating(subject.name, met, moved))
        if met and met <= moved:
            return
    if not met:
        raise CheckFailed(f"collect_terms gave no term in any run on {', '.join(subject.kinds)}: give it options under which it has one")
    dead = ", ".join(repr(name) for name in sorted(met - moved) if name)
    raise CheckFailed(
        f"its {f'term {dead}' if dead else 'term'} has no gradient at any parameter: make it from step.parameters, step.outputs or "
        "step.tap, undetached"
    )


def _differentiating(name: str, names: set[str], moved: set[str]) -> Callable[..., Any]:
    """Note every term of plugin ``name``, and those that have a gradient that is not 0."""

    def watch(plugin: str, hook: str, function: Callable[..., Any], arguments: tuple[str, ...]) -> Callable[..., Any]:
        if hook != "collect_terms" or plugin != name or "step" not in arguments:
            return function

        def collect(*given: Any) -> Any:
            answer = function(*given)
            step = given[arguments.index("step")]
            for term_name, term in (answer if isinstance(answer, Mapping) else {} if answer is None else {"": answer}).items():
                names.add(term_name)
                if term_name not in moved and _moves(term, step.parameters):
                    moved.add(term_name)
                    _check_follows(term_name or name, term, function(*_elsewhere(given, step)))
            return answer

        return collect

    return watch


def _elsewhere(given: tuple[Any, ...], step: Any) -> list[Any]:
    """The arguments of a hook, with the step at other parameters."""
    moved = {name: 1.5 * p.detach() + 0.05 for name, p in step.parameters.items() if p.requires_grad}
    return [step.at(moved) if value is step else value for value in given]


def _check_follows(name: str, here: Tensor, there: Any) -> None:
    """A term is read where the step looks: at the fast weights of a look-ahead, for example."""
    values = there.values() if isinstance(there, Mapping) else () if there is None else (there,)
    if any(torch.equal(value, here) for value in values):
        raise Trouble(
            "terms",
            f"the term {name!r} is the same at other parameters (step.at): read step.parameters, step.outputs or step.tap, not the model",
        )


def _moves(term: Tensor, parameters: Mapping[str, Tensor]) -> bool:
    wanted = [parameter for parameter in parameters.values() if parameter.requires_grad]
    if not term.requires_grad or not wanted:
        return False
    gradients = torch.autograd.grad(term, wanted, retain_graph=True, allow_unused=True)
    return any(gradient is not None and bool(gradient.ne(0).any()) for gradient in gradients)


# ---------------------------------------------------------------------- what streams do


def heads_grow(subject: Subject) -> None:
    """It trains while a task gets more classes, and while tasks come up that nobody knew of."""
    _ = subject.home
    wanted = [kind for kind in ("class_incremental", "task_incremental") if kind in subject.kinds]
    if not wanted:
        raise NotApplicable("it is made for no stream whose heads grow")
    for kind in wanted:
        if subject.trains_at(Place(kind)):
            _survives(subject, Place(kind), growing_stream(kind), "while heads grow between experiences")


def missing_task(subject: Subject) -> None:
    """It trains where an experience lacks one of the tasks."""
    home = subject.home
    if "multitask" not in subject.kinds or not subject.trains_at(Place("multitask")):
        raise NotApplicable(f"it is made for no stream of several tasks at once, but for {home.kind}")
    _survives(subject, Place("multitask"), stream_without_a_task(), "while a task is absent from an experience")


def last_batch_of_one_row(subject: Subject) -> None:
    """It trains where the last batch of an experience has one row."""
    _ = subject.home
    place = next((p for p in subject.places() if p.kind not in ("adaptation", "test_time", "episodes") and subject.trains_at(p)), None)
    if place is None:
        raise NotApplicable("it is made for streams whose batches never have one row")
    stream = tiny_stream(place.kind)
    sizes = {len(experience.data[experience.main_role]) for experience in stream}
    for rows in sorted(sizes):  # in each experience: what a method does in the first is often nothing
        _survives(subject, place, stream, "with a last batch of one row", batch_size=rows - 1)


def _survives(subject: Subject, place: Place, stream: Stream, when: str, **options: Any) -> None:
    """Run on ``stream``, and say when it was that an error came up."""
    try:
        found = subject.train(place, stream=stream, **options)
    except Trouble:
        raise
    except Exception as error:
        raise CheckFailed(f"it fails {when}: {type(error).__name__}: {error}{_notes(error)}") from error
    _check_finite(found, when)


def _notes(error: Exception) -> str:
    notes = "; ".join(getattr(error, "__notes__", ()))
    return f" ({notes})" if notes else ""
