"""One run of the kit: tiny stream, tiny network, some plugins; what came out, and who is to blame when nothing did."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from streamlearn.core.engine import Engine
from streamlearn.core.plugin import Plugin
from streamlearn.core.randomness import forked
from streamlearn.errors import CheckpointError
from streamlearn.streams import Stream
from streamlearn.testing.bits import copied
from streamlearn.testing.doubles import network, optimizer, tiny_stream
from streamlearn.testing.isolation import undisturbed
from streamlearn.testing.report import Trouble

__all__ = ["Place", "Stop", "Trained", "Watch", "engine_for", "finish", "intercept", "train"]

NORMALIZED = frozenset({"adaptation", "test_time"})
"""Kinds whose network has BatchNorm: adapting it is what some methods do."""

_ROWS, _EPOCHS, _SEED = 6, 2, 1
_GLOBAL_SEED = 860_113


class Place(NamedTuple):
    """A kind of stream and a kind of network."""

    kind: str
    network: str = "heads"

    def __str__(self) -> str:
        return self.kind if self.network == "heads" else f"{self.kind} with a plain network"


class Stop(Exception):  # noqa: N818 - it is no error but the end of a run's time
    """Raised between two steps to stop a run there."""


class BadTermError(Exception):
    """A plugin gave a term that the engine cannot add to an objective."""


@dataclass
class Trained:
    """What a run left.

    Attributes:
        weights: of the model, with its buffers.
        events: the record.
        states: by plugin, what `state_dict` gave at the end.
        memories: the replay memories.
        updates: how many were made.
        terms: how many terms were given, of all plugins.
    """

    weights: dict[str, Tensor] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    states: dict[str, Any] = field(default_factory=dict)
    memories: Any = None
    updates: int = 0
    terms: int = 0

    @property
    def measured(self) -> list[dict[str, Any]]:
        """The events that say how good the model is, without losses, which a weighting changes in name only."""
        return [event for event in self.events if event["event"] in ("evaluation", "prequential")]


Watch = Callable[[str, str, Callable[..., Any], tuple[str, ...]], Callable[..., Any]]
"""``watch(plugin, hook, function, arguments)`` gives the function to call in place of ``function``, with the same arguments."""


def intercept(engine: Engine, watch: Watch) -> None:
    """Put ``watch`` around every hook of every plugin of ``engine``."""
    for hook, found in engine.composition.table.items():
        found[:] = [part._replace(function=watch(part.plugin, hook, part.function, part.arguments)) for part in found]


def engine_for(place: Place, stream: Stream, plugins: Sequence[Plugin], **options: Any) -> Engine:
    """An engine of the kit: two epochs in batches of six rows, and a network drawn from the seed."""
    settings = {"epochs": _EPOCHS, "batch_size": _ROWS, "seed": _SEED, **options}
    return Engine(lambda: network(stream, place.network, normalized=place.kind in NORMALIZED), optimizer, plugins, **settings)


def train(
    place: Place,
    plugins: Sequence[Plugin],
    *,
    stream: Stream | None = None,
    watch: Watch | None = None,
    progress: Callable[[str, Any], None] | None = None,
    folder: Path | None = None,
    resume: bool = False,
    **options: Any,
) -> Trained:
    """Run ``plugins`` at ``place`` and tell what came of it.

    Raises:
        Trouble: what the plugins do stops every run, and one check is about it.
        Stop: ``progress`` raised it.
    """
    found = Trained()
    stream = tiny_stream(place.kind) if stream is None else stream

    def between(event: str, run: Any) -> None:
        found.memories = run.memories.state_dict()
        if progress is not None:
            progress(event, run)

    engine = engine_for(place, stream, plugins, progress=between, **options)
    intercept(engine, _checking_terms(found))
    if watch is not None:
        intercept(engine, watch)
    return finish(engine, stream, found, folder, resume)


def finish(engine: Engine, stream: Stream, found: Trained, folder: Path | None = None, resume: bool = False) -> Trained:
    """Let ``engine`` run, from the same global random state each time, and fill ``found``."""
    with forked(torch.device("cpu")), undisturbed():
        # states that no plugin would set: who seeds with 0 or 42 moves them
        torch.default_generator.manual_seed(_GLOBAL_SEED)
        random.seed(_GLOBAL_SEED)
        np.random.seed(_GLOBAL_SEED)  # noqa: NPY002 - the global one is meant
        try:
            result = engine.resume(folder, stream) if resume and folder is not None else engine.run(stream, folder)
        except BadTermError as error:
            raise Trouble("terms", str(error)) from error
        except CheckpointError as error:
            if "'plugins/" not in str(error):
                raise
            raise Trouble("state_is_plain", str(error)) from error
    model: Any = result.model
    found.weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    found.events = result.events
    found.states = {plugin.name: copied(plugin.state_dict()) for plugin in engine.plugins}
    found.updates = sum(event["updates"] for event in found.events if event["event"] == "experience")
    return found


def _checking_terms(found: Trained) -> Watch:
    """Look at every term before the engine does, so that what is wrong with it is told by the check of terms alone."""

    def watch(plugin: str, hook: str, function: Callable[..., Any], arguments: tuple[str, ...]) -> Callable[..., Any]:
        if hook != "collect_terms":
            return function

        def collect(*given: Any) -> Any:
            answer = function(*given)
            named = answer if isinstance(answer, Mapping) else {} if answer is None else {"": answer}
            for name, term in named.items():
                _check_term(f"the term {f'{plugin}/{name}' if name else plugin!r}", term)
            found.terms += len(named)
            return answer

        return collect

    return watch


def _check_term(what: str, term: Any) -> None:
    if not isinstance(term, Tensor):
        raise BadTermError(f"{what} is a {type(term).__name__}: return a scalar tensor")
    if term.ndim:
        raise BadTermError(f"{what} has the shape {tuple(term.shape)}: return a scalar, for example its .mean()")
    if not term.is_floating_point():
        raise BadTermError(f"{what} is of {term.dtype}: return a number with a fraction")
    if term.device.type != "cpu":
        raise BadTermError(f"{what} lies on {term.device}, the model on the CPU: make it from step.parameters or step.outputs")
    if not bool(term.isfinite()):
        raise BadTermError(f"{what} is {float(term.detach())}: it must be finite")
