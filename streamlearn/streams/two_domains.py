"""Domain adaptation: a labelled source domain and an unlabelled target domain, which evaluation alone knows the labels of."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any

import numpy as np
import torch

from streamlearn.errors import DataError
from streamlearn.streams.data import Data, Source, Target, Transform
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.inputs import whole_number
from streamlearn.streams.sources import TensorSource, named_source
from streamlearn.streams.sources.labels import class_labels
from streamlearn.streams.stream import Stream
from streamlearn.streams.task import Task
from streamlearn.streams.transforms import Resize

__all__ = ["adaptation"]


def adaptation(
    source: str | tuple[Any, Any] = "moons",
    target: str | tuple[Any, Any] | None = None,
    *,
    seed: int = 0,
    rows: int = 150,
    noise: float = 0.05,
    degrees: float = 35.0,
    centred: bool = True,
    source_free: bool = False,
) -> Stream:
    """One experience: labelled rows of a source domain (role ``train``), unlabelled ones of a target domain (role ``target``).

    Protocol: with ``source="moons"`` the target domain is the source's rows turned by ``degrees`` (Ganin et al. 2016, section 5.1.1);
    else both domains are given, with the same classes and input shape. The evaluation set holds the target rows with their labels.

    Args:
        source: ``"moons"``, or a pair ``(x, y)``, or the name of a source.
        target: a pair ``(x, y)`` or the name of a source; ``None`` with ``"moons"``. Images of another size than the source's, with as
            many channels, are brought to its size (`Resize`): ``adaptation("digits", "usps")``.
        seed: at least 0; of the moons.
        rows: rows of each domain of the moons, at least 4.
        noise: standard deviation of the moons, at least 0.
        degrees: by which the target's moons are turned, counterclockwise.
        centred: of the moons: subtract the source's mean from both domains, and double them.
        source_free: a first experience with the source alone, a second with the target alone (adaptation at test time, scored
            prequentially).

    Raises:
        DataError: an argument is out of its range, or the domains do not fit together.

    Source: Ganin et al., "Domain-adversarial training of neural networks", JMLR 2016.

    Example:
        >>> stream = adaptation("moons", rows=150)
        >>> {role: len(data) for role, data in stream[0].data.items()}, stream[0].data["target"].targets
        ({'train': 150, 'target': 150}, {})
    """
    whole_number(seed, "seed", 0)
    if isinstance(source, str) and source == "moons":
        if target is not None:
            raise DataError("the moons make their own target domain: leave target out, or give both domains")
        for value, what, least in ((noise, "noise", 0.0), (degrees, "degrees", -math.inf)):
            if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < least:
                raise DataError(f"{what} is {value!r}: give a number{' of at least 0' if what == 'noise' else ''}")
        here, there, name = *_moons(whole_number(rows, "rows", 4), noise, degrees, centred, seed), "moons"
        described: dict[str, Any] = {"source": "moons", "rows": rows, "noise": noise, "degrees": degrees, "centred": centred}
    else:
        if target is None:
            raise DataError("adaptation needs a target domain: give target=(x, y) or the name of a source")
        here, there = _domain(source, "source"), _domain(target, "target")
        name = f"{here.name} to {there.name}"
        described = {"source": _told(source, here), "target": _told(target, there)}
    (column, labels), (other_column, other) = class_labels(here), class_labels(there)
    classes = int(labels.max()) + 1
    if int(other.max()) >= classes:
        raise DataError(f"target domain {there.name!r} has label {int(other.max())}, but the source has the classes 0 to {classes - 1}")
    change = _to_shape(here, there)
    task = Task(name, "classification", classes)
    train = Data(here, torch.arange(len(here)), (task,), {name: Target(column)}, domain="source")
    truth = Data(there, torch.arange(len(there)), (task,), {name: Target(other_column)}, change, "target")
    present = {name: tuple(range(classes))}
    hidden = truth.without_labels()

    def experience(i: int) -> Experience:
        if not source_free:
            return Experience(i, (task,), {"train": train, "target": hidden}, name, present)
        return Experience(i, (task,), {"target": hidden} if i else {"train": train}, "target" if i else "source", {} if i else present)

    return Stream(
        f"{name}/adaptation",
        2 if source_free else 1,
        experience,
        lambda i: EvaluationSet(i, truth if i or not source_free else train, "target" if i or not source_free else "source"),
        tasks=(task,),
        input_shape=here.input_shape,
        description={"builder": "adaptation", **described, "seed": seed, "source_free": source_free},
        fingerprints=lambda: (here.fingerprint(), there.fingerprint()),
    )


def _to_shape(here: Source, there: Source) -> Transform | None:
    """What brings inputs of ``there`` to the shape of ``here``: nothing, or another size of images."""
    wanted, found = here.input_shape, there.input_shape
    if wanted == found:
        return None
    if len(wanted) == len(found) == 3 and wanted[0] == found[0]:
        return Resize(*wanted[1:])
    raise DataError(f"inputs of {here.name!r} have shape {wanted}, of {there.name!r} {found}: make them equal")


def _moons(rows: int, noise: float, degrees: float, centred: bool, seed: int) -> tuple[TensorSource, TensorSource]:
    from sklearn.datasets import make_moons

    x, y = make_moons(rows, noise=noise, random_state=seed)
    if centred:
        x = 2 * (x - x.mean(0))
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return TensorSource.from_arrays(x, y, "moons/source"), TensorSource.from_arrays(x @ turn, y, "moons/target")


def _domain(given: str | tuple[Any, Any], role: str) -> TensorSource | Any:
    if isinstance(given, str):
        return named_source(given)[0]
    if isinstance(given, tuple) and len(given) == 2:
        return TensorSource.from_arrays(*given, role)
    raise DataError(f"a {type(given).__name__} is no {role} domain: give the name of a source or a pair (x, y)")


def _told(given: object, source: Any) -> Any:
    return given if isinstance(given, str) else {"given by the user": True, "name": source.name, "rows": len(source)}
