"""Checks of a plugin beside others: a panel of those that most strategies list."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from streamlearn.core import registry
from streamlearn.core.composition import compose
from streamlearn.core.plugin import SUPERVISED, Plugin
from streamlearn.errors import CompositionError, ConfigurationError
from streamlearn.testing.bits import close, difference
from streamlearn.testing.checks.trained import noting_terms
from streamlearn.testing.report import CheckFailed, Trouble
from streamlearn.testing.running import Place, Trained, Watch
from streamlearn.testing.subject import Subject

__all__ = ["PANEL", "composes", "order_is_declared"]

PANEL: Mapping[str, Mapping[str, Any]] = {
    "replay": {"capacity": 12, "batch_size": 4},
    "multi_head": {},
    "lwf": {"strength": 0.5},
    "pcgrad": {},
    "sam": {},
}
"""Who a plugin must stand beside, or be refused: rows in the batch, heads, a term with a teacher, a combiner, a look-ahead."""


def composes(subject: Subject) -> None:
    """Beside each plugin of the panel, in either order, it trains to finite weights or is refused with a reason, before any training."""
    place, alone = _place(subject), list[str]()
    subject.train(place, watch=noting_terms(subject.name, alone))
    for name in _panel(subject):
        for first in (True, False):
            beside: list[str] = []
            found = _stands_beside(subject, place, name, first, noting_terms(subject.name, beside))
            if found is not None and alone and not beside:
                raise CheckFailed(f"beside {name} it adds no term, alone it does: let it act, or declare info.conflicts")


def _place(subject: Subject) -> Place:
    """Where to meet others: its home, or the supervised stream that most others are made for."""
    home = subject.home
    supervised = [Place(kind) for kind in subject.kinds if kind in SUPERVISED and subject.trains_at(Place(kind))]
    return home if home in supervised or not supervised else supervised[0]


def _panel(subject: Subject) -> list[str]:
    """The names of those that are not there already."""
    there = {word for plugin in [*subject.others(), subject.sample] for word in (plugin.name, plugin.info.name)}
    return [name for name in PANEL if name not in there]


def _listed(subject: Subject, name: str, first: bool) -> list[Plugin]:
    mine, other = subject.make(), registry.create(name, PANEL[name])
    return [*subject.others(), mine, other] if first else [*subject.others(), other, mine]


def _stands_beside(subject: Subject, place: Place, name: str, first: bool, watch: Watch | None = None) -> Trained | None:
    """What the two leave together, ``None`` where they are refused with a reason."""
    updates: list[int] = []

    def progress(event: str, run: Any) -> None:
        if event == "step":
            updates.append(run.clock.update)

    try:
        found = subject.train(place, _listed(subject, name, first), progress=progress, watch=watch)
    except CompositionError as error:
        _check_reason(subject, name, error.problems)
        return None
    except Trouble:
        raise
    except ConfigurationError as error:
        if updates:
            raise CheckFailed(f"beside {name} it is refused when training has begun ({error}): declare info.conflicts") from error
        _check_reason(subject, name, (str(error),))
        return None
    except Exception as error:
        notes = "; ".join(getattr(error, "__notes__", ()))
        raise CheckFailed(
            f"beside {name} it fails: {type(error).__name__}: {error}{f' ({notes})' if notes else ''}; "
            "let it train, or declare info.conflicts"
        ) from error
    if not all(bool(tensor.isfinite().all()) for tensor in found.weights.values()):
        raise CheckFailed(f"beside {name} the weights are not finite: let it train, or declare info.conflicts")
    return found


def _check_reason(subject: Subject, name: str, problems: tuple[str, ...]) -> None:
    names = {subject.name, subject.info.name, name, *subject.info.provides, *subject.info.requires}
    if not problems or not all(len(problem.split()) > 2 for problem in problems) or not any(n in p for p in problems for n in names):
        raise CheckFailed(
            f"beside {name} it is refused without a reason ({'; '.join(problems) or 'none'}): say who cannot stand beside whom"
        )


def order_is_declared(subject: Subject) -> None:
    """Beside each plugin of the panel both orders of the list leave the same weights, unless ``info`` says who comes first.

    Wrappers (``around_`` hooks) nest in the order of the user's list, and to nest them otherwise *is* another method: where both
    implement the same one, the order is the user's to choose.
    """
    subject.need_determinism()
    place = _place(subject)
    for name in _panel(subject):
        results = [_try_beside(subject, place, name, first) for first in (True, False)]
        one, other = results
        if one is None or other is None or _is_resolved(subject, name) or _nest(subject, name):
            continue
        if not close(one.weights, other.weights):
            differing = difference(one.weights, other.weights, "weights")
            raise CheckFailed(
                f"{subject.name} then {name} leaves other weights than {name} then {subject.name} ({differing}): "
                f"say who comes first in info.before or info.after"
            )


def _try_beside(subject: Subject, place: Place, name: str, first: bool) -> Trained | None:
    """As `_stands_beside`; what fails there is the business of `composes`."""
    try:
        return _stands_beside(subject, place, name, first)
    except CheckFailed:
        return None


def _is_resolved(subject: Subject, name: str) -> bool:
    """Whether both lists resolve to one order."""
    orders = [[plugin.name for plugin in compose(_listed(subject, name, first)).plugins] for first in (True, False)]
    return orders[0] == orders[1]


def _nest(subject: Subject, name: str) -> bool:
    other = type(registry.create(name, PANEL[name]))
    marked: Callable[[str], bool] = lambda hook: hasattr(getattr(other, hook, None), "streamlearn_impl")  # noqa: E731
    return any(subject.uses(hook) and marked(hook) for hook in ("around_objective", "around_update"))
