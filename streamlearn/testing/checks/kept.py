"""Checks of what a plugin keeps: does it survive a restart, is it plain, is it as large as promised, is it its own?"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from streamlearn.core.checkpoint import pack, unpack
from streamlearn.core.plugin import Plugin
from streamlearn.testing.bits import copied, difference, leaves, size_in_bytes
from streamlearn.testing.doubles import tiny_stream
from streamlearn.testing.isolation import isolated
from streamlearn.testing.memory import allowance
from streamlearn.testing.report import CheckFailed, NotApplicable, Trouble
from streamlearn.testing.running import Place, Stop, Trained, train
from streamlearn.testing.subject import Subject, difference_of

__all__ = ["engines_share_nothing", "resumes", "state_is_plain", "state_stays_within_memory"]


def resumes(subject: Subject) -> None:
    """A run that is stopped in the middle of experience 2 and resumed, twice, equals one that was never stopped, bit for bit."""
    subject.need_determinism()
    whole = subject.trained(subject.home)
    stops = _places_to_stop(whole)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "run"
        for number, update in enumerate(stops):
            try:
                _part(subject, folder, resume=number > 0, progress=_stopping_at(update))
            except Stop:
                continue
            raise CheckFailed(f"a run of {whole.updates} updates did not come by update {update} again when it was resumed")
        try:
            resumed = _part(subject, folder, resume=True)
        except Trouble:
            raise
        except Exception as error:
            raise CheckFailed(f"it fails after a resume: {type(error).__name__}: {error}") from error
    found = difference_of(whole, resumed)
    if found is not None:
        raise CheckFailed(
            f"a run stopped after updates {' and '.join(map(str, stops))} and resumed differs from one that was not: {found}; "
            "put everything that lasts beyond a step into state_dict, and draw from run.generator(self)"
        )


def _part(subject: Subject, folder: Path, **options: Any) -> Trained:
    return subject.train(subject.home, folder=folder, checkpoint_every=1, **options)


def _places_to_stop(whole: Trained) -> tuple[int, ...]:
    """Two updates in the middle of experience 2, or of the only one."""
    updates = [event["updates"] for event in whole.events if event["event"] == "experience"]
    before, inside = (updates[0], updates[1]) if len(updates) > 1 else (0, updates[0])
    if inside < 2:
        return (before + 1,)
    middle = before + inside // 2
    return (middle, middle + 1) if inside > 2 else (middle,)


def _stopping_at(update: int) -> Callable[[str, Any], None]:
    def progress(event: str, run: Any) -> None:
        if event == "step" and run.clock.update >= update:
            raise Stop

    return progress


# ---------------------------------------------------------------------- the form of a state

_PLAIN = (Tensor, bool, int, float, str)


def state_is_plain(subject: Subject) -> None:
    """What ``state_dict`` gives, throughout a run, survives JSON and safetensors, and a fresh instance that loads it gives it again."""
    home, seen = subject.home, list[Any]()
    subject.train(home, plugins := [*subject.others(), subject.make()], progress=lambda event, run: seen.append(_state(plugins[-1])))
    for state in [*seen[:2], *seen[-2:]]:
        _check_plain(state)
        kept = _through_files(state)
        fresh = subject.make()
        try:
            fresh.load_state_dict(kept)
        except Exception as error:
            raise CheckFailed(f"load_state_dict refuses what state_dict gave: {type(error).__name__}: {error}") from error
        found = difference(_state(fresh), kept, "state")
        if found is not None:
            raise CheckFailed(f"a fresh instance that loaded a state gives another one: {found}; load everything that state_dict gives")


def _state(plugin: Plugin) -> Any:
    return copied(plugin.state_dict())


def _check_plain(state: Any) -> None:
    if not isinstance(state, dict):
        raise CheckFailed(f"state_dict gave a {type(state).__name__}: return a dict")
    for path, leaf in leaves(state):
        if leaf is not None and type(leaf) not in _PLAIN and not isinstance(leaf, Tensor):
            raise CheckFailed(
                f"the state at {path!r} is a {type(leaf).__module__}.{type(leaf).__name__}: keep tensors, numbers, strings, bools, None, "
                "lists and dicts with string keys"
            )


def _through_files(state: Any) -> Any:
    """The state as a checkpoint gives it back."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(pack(state, tensors))
    return unpack(json.loads(text), load(save(tensors)))


# ---------------------------------------------------------------------- its size


def state_stays_within_memory(subject: Subject) -> None:
    """After 3 and after 6 experiences the state is no larger than ``info.memory`` says; see `streamlearn.testing.memory`."""
    kind = subject.home.kind
    if kind == "adaptation":
        raise NotApplicable("a stream of one experience does not tell whether its state grows")
    told = subject.info.memory
    stream, sizes, parameters = tiny_stream(kind, 6), list[int](), list[int]()
    plugins = [*subject.others(), subject.make()]

    def measure(event: str, run: Any) -> None:
        if event == "experience":
            sizes.append(_kept_bytes(plugins[-1], run))
            parameters.append(sum(p.nbytes for p in run.model.parameters()))

    if allowance(told, 0, 0, subject.sample.config) is None:
        raise NotApplicable(f"info.memory is {told!r}, which the kit cannot measure")
    subject.train(subject.home, plugins, stream=stream, progress=measure)
    for number in (3, 6):
        if len(sizes) < number:
            continue
        allowed = allowance(told, parameters[number - 1], number, subject.sample.config)
        if allowed is not None and sizes[number - 1] > allowed:
            raise CheckFailed(
                f"its state takes {sizes[number - 1]} bytes after {number} experiences ({sizes[0]} after the first), but info.memory says "
                f"{told!r}, which here is at most {allowed}: keep less, or say what it costs"
            )


def _kept_bytes(plugin: Plugin, run: Any) -> int:
    """Its state and its trainable helpers."""
    modules = [
        tensor for name, module in run.modules.items() if name.startswith(f"{plugin.name}/") for tensor in module.state_dict().values()
    ]
    return size_in_bytes(plugin.state_dict()) + size_in_bytes(modules)


# ---------------------------------------------------------------------- whose it is


def engines_share_nothing(subject: Subject) -> None:
    """Two engines that run in turns, or one after another, leave what each would leave alone."""
    subject.need_determinism()
    place = subject.home
    alone = {seed: subject.trained(place) if seed == 1 else subject.train(place, seed=seed) for seed in (1, 2)}
    with isolated(subject.cls):
        inner: list[Trained] = []

        def run_another(event: str, run: Any) -> None:
            if event == "step" and not inner:
                inner.append(_plain_run(subject, place, seed=2))

        outer = _plain_run(subject, place, progress=run_another)
        later = _plain_run(subject, place)
    for what, found, expected in (
        ("an engine in whose midst another ran", outer, alone[1]),
        ("an engine that ran in the midst of another", inner[0] if inner else alone[2], alone[2]),
        ("an engine that ran after another", later, alone[1]),
    ):
        differing = difference_of(expected, found)
        if differing is not None:
            raise CheckFailed(f"{what} left something else than one that ran alone: {differing}; keep state in self, never in the class")


def _plain_run(subject: Subject, place: Place, **options: Any) -> Trained:
    return train(place, [*subject.others(), subject.make()], **{**subject.options, **options})
