"""Domain adaptation: labelled source domains and an unlabelled target domain, which evaluation alone knows the labels of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from streamlearn.errors import DataError
from streamlearn.streams.data import Data, JoinedData, Source, Target, Transform, classes_in, join
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.hiding import hide_rows
from streamlearn.streams.inputs import as_source, count_classes, given_by_user, plain_number, real_number, same_rows, whole_number
from streamlearn.streams.partition import RowsByClass, permutation
from streamlearn.streams.sources import TensorSource, canonical_name, named_source
from streamlearn.streams.sources.labels import class_labels
from streamlearn.streams.stream import Stream
from streamlearn.streams.task import Task
from streamlearn.streams.transforms import Resize

if TYPE_CHECKING:
    from streamlearn.streams.inputs import SourceLike

__all__ = ["adaptation"]


def adaptation(
    source: SourceLike | list[Any] = "moons",
    target: SourceLike | None = None,
    *,
    seed: int = 0,
    rows: int = 150,
    noise: float = 0.05,
    degrees: float = 35.0,
    centred: bool = True,
    source_free: bool = False,
    labelled_target: int = 0,
) -> Stream:
    """One experience: labelled rows of one or several source domains (role ``train``), unlabelled ones of a target (role ``target``).

    Protocol: with ``source="moons"`` the target domain is the source's rows turned by ``degrees`` (Ganin et al. 2016, section 5.1.1); else
    all domains are given. The sources have together the classes 0 to n-1 without gaps. The target's classes are among the sources' and may
    be fewer (partial adaptation). The evaluation set holds the target rows with their labels. Of each class of the target,
    ``labelled_target`` rows drawn by ``seed`` are shown with their labels: they have role ``train`` and domain "target", and are neither
    among the unlabelled rows nor in the evaluation set.

    Args:
        source: ``"moons"``, or the name of a source, a pair ``(x, y)``, a data set, or a `Source`; a list of these gives several source
            domains, which are named after their sources. The only one of a stream is called "source".
        target: one of these, not a list; ``None`` with ``"moons"``. Images of another size than the first source's are brought to its
            size, and grey ones to its number of channels (`Resize`): ``adaptation("digits", "usps")``. So are further sources.
        seed: at least 0; of the moons and of the labelled rows of the target.
        rows: rows of each domain of the moons, at least 4.
        noise: standard deviation of the moons, at least 0.
        degrees: by which the target's moons are turned, counterclockwise.
        centred: of the moons: subtract the source's mean from both domains, and double them.
        source_free: a first experience with the sources alone, a second with the target alone (adaptation at test time, scored
            prequentially); labelled rows of the target then belong to the second.
        labelled_target: how many rows of each class of the target are labelled, at least 0 (semi-supervised adaptation); every class of
            the target must have more.

    Raises:
        DataError: an argument is out of its range, the domains do not fit together, or the target has the rows of a source.

    Source: Ganin et al., "Domain-adversarial training of neural networks", JMLR 2016; several sources: Zhao et al., "Adversarial
        multiple source domain adaptation", NeurIPS 2018, and Peng et al., "Moment matching for multi-source domain adaptation", ICCV
        2019; partial: Cao et al., "Partial adversarial domain adaptation", ECCV 2018; labelled rows: Saito et al., "Semi-supervised domain
        adaptation via minimax entropy", ICCV 2019.

    Example:
        >>> stream = adaptation("moons", rows=150)
        >>> {role: len(data) for role, data in stream[0].data.items()}, stream[0].data["target"].targets
        ({'train': 150, 'target': 150}, {})
        >>> stream = adaptation("moons", rows=150, labelled_target=3)
        >>> {role: len(data) for role, data in stream[0].data.items()}, len(stream.evaluation(0).data)
        ({'train': 156, 'target': 144}, 144)
    """
    seed = whole_number(seed, "seed", 0)
    shown = whole_number(labelled_target, "labelled_target", 0)
    if isinstance(source, str) and source == "moons":
        noise, degrees = plain_number(noise), plain_number(degrees)
        described = _checked_moons(target, rows, noise, degrees, centred)
        sources, there = _moons(rows, noise, degrees, centred, seed)
        name = "moons"
    else:
        if target is None:
            raise DataError("adaptation needs a target domain: give target=(x, y) or the name of a source")
        sources, there = _sources(source), _domain(target, "target")
        name = f"{' + '.join(found.name for found in sources.values())} to {there.name}"
        described = {"source": _told_sources(source, list(sources.values())), "target": _told(target, there)}
    domains = _Domains.of(sources, there, name, shown, seed)
    if name != "moons":
        _refuse_known_labels(sources, there)
    options = {"seed": seed, "source_free": source_free, "labelled_target": shown}
    return _stream(domains, source_free, {"builder": "adaptation", **described, **options})


@dataclass(frozen=True, slots=True, eq=False)
class _Domains:
    """The rows of a stream: those of the sources, labelled ones of the target, and the rest of the target with its labels."""

    task: Task
    labelled: Data | JoinedData
    shown: Data | None
    truth: Data
    sources: tuple[Source, ...]

    @classmethod
    def of(cls, sources: dict[str, Source], there: Source, name: str, shown: int, seed: int) -> _Domains:
        columns = {domain: class_labels(here) for domain, here in sources.items()}
        every = torch.cat([labels for _, labels in columns.values()])
        classes = count_classes(every, " + ".join(here.name for here in sources.values()))
        column, labels = class_labels(there)
        if int(labels.max()) >= classes:
            whose = "the source has" if len(sources) == 1 else "the sources have"
            raise DataError(f"target domain {there.name!r} has label {int(labels.max())}, but {whose} the classes 0 to {classes - 1}")
        task, first = Task(name, "classification", classes), next(iter(sources.values()))
        pieces = [
            Data(here, torch.arange(len(here)), (task,), {name: Target(columns[domain][0])}, _to_shape(first, here), domain)
            for domain, here in sources.items()
        ]
        change, asked = _to_shape(first, there), {name: Target(column)}
        chosen = _labelled_rows(labels, shown, seed, there.name)
        rest = torch.ones(len(there), dtype=torch.bool).index_fill(0, chosen, False).nonzero().flatten()
        few = Data(hide_rows(there, {column: labels}, chosen), chosen, (task,), asked, change, "target") if shown else None
        return cls(task, join(pieces), few, Data(there, rest, (task,), asked, change, "target"), (*sources.values(), there))


def _stream(domains: _Domains, source_free: bool, description: dict[str, Any]) -> Stream:
    task, labelled, shown, truth = domains.task, domains.labelled, domains.shown, domains.truth
    hidden = truth.without_labels()
    own: dict[str, Data | JoinedData] = {} if shown is None else {"train": shown}
    if source_free:
        parts: list[dict[str, Data | JoinedData]] = [{"train": labelled}, {**own, "target": hidden}]
    else:
        parts = [{"train": join([labelled, *own.values()]), "target": hidden}]
    present = [classes_in(part["train"]) if "train" in part else {} for part in parts]
    names = ["source", "target"] if source_free else [task.name]

    def experience(i: int) -> Experience:
        return Experience(i, (task,), parts[i], names[i], present[i])

    return Stream(
        f"{task.name}/adaptation",
        len(parts),
        experience,
        lambda i: EvaluationSet(i, truth, "target"),
        tasks=(task,),
        input_shape=domains.sources[0].input_shape,
        description=description,
        fingerprints=lambda: [source.fingerprint() for source in domains.sources],
        sets=lambda i: (0,),
        truth=lambda i: truth if source_free and i else None,
    )


def _labelled_rows(labels: Tensor, count: int, seed: int, name: str) -> Tensor:
    """``count`` rows of every class, ascending."""
    if not count:
        return torch.empty(0, dtype=torch.int64)
    rows, chosen = RowsByClass(labels, int(labels.max()) + 1), []
    for number, size in enumerate(rows.counts.tolist()):
        if 0 < size <= count:
            raise DataError(f"class {number} of target domain {name!r} has {size} rows, and labelled_target is {count}: leave at least one")
        if size:
            chosen.append(rows.of([number])[permutation(size, seed=seed, purpose="labelled target rows", number=number)[:count]])
    return torch.cat(chosen).sort().values


def _to_shape(here: Source, there: Source) -> Transform | None:
    """What brings inputs of ``there`` to the shape of ``here``: nothing, or another size of images, or more channels."""
    wanted, found = here.input_shape, there.input_shape
    if wanted == found:
        return None
    if len(wanted) == len(found) == 3 and found[0] in (1, wanted[0]):
        return Resize(*wanted[1:], channels=None if wanted[0] == found[0] else wanted[0])
    raise DataError(f"inputs of {here.name!r} have shape {wanted}, of {there.name!r} {found}: make them equal")


def _checked_moons(target: object, rows: int, noise: float, degrees: float, centred: bool) -> dict[str, Any]:
    if target is not None:
        raise DataError("the moons make their own target domain: leave target out, or give both domains")
    for value, what, least in ((noise, "noise", 0.0), (degrees, "degrees", -math.inf)):
        if not math.isfinite(number := real_number(value)) or number < least:
            raise DataError(f"{what} is {value!r}: give a number{' of at least 0' if what == 'noise' else ''}")
    return {"source": "moons", "rows": whole_number(rows, "rows", 4), "noise": noise, "degrees": degrees, "centred": centred}


def _moons(rows: int, noise: float, degrees: float, centred: bool, seed: int) -> tuple[dict[str, Source], Source]:
    from sklearn.datasets import make_moons

    x, y = make_moons(rows, noise=noise, random_state=seed)
    if centred:
        x = 2 * (x - x.mean(0))
    angle = math.radians(degrees)
    turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return {"source": TensorSource.from_arrays(x, y, "moons/source")}, TensorSource.from_arrays(x @ turn, y, "moons/target")


def _sources(given: SourceLike | list[Any]) -> dict[str, Source]:
    """The source domains by name."""
    if not isinstance(given, list):
        return {"source": _domain(given, "source")}
    if not given:
        raise DataError("source is an empty list: give at least one source domain")
    found = [_domain(item, "source" if len(given) == 1 else f"source {i}") for i, item in enumerate(given)]
    if len(found) == 1:
        return {"source": found[0]}
    names = [source.name for source in found]
    twice = next((name for i, name in enumerate(names) if name in names[:i] or name == "target"), None)
    if twice is not None:
        raise DataError(f"two domains are called {twice!r}: give sources of different names")
    return dict(zip(names, found, strict=True))


def _refuse_known_labels(sources: dict[str, Source], there: Source) -> None:
    known = next((here for here in sources.values() if same_rows(here, there)), None)
    if known is not None:
        raise DataError(
            f"target domain {there.name!r} has the rows of source domain {known.name!r}, whose labels are trained on: give other rows as "
            "target"
        )


def _domain(given: object, role: str) -> Source:
    if isinstance(given, str):
        return named_source(given)[0]
    try:
        return as_source(given, role)
    except DataError as error:
        if isinstance(given, tuple) and len(given) == 2:
            raise
        raise DataError(
            f"a {type(given).__name__} is no {role} domain: give the name of a source or a pair (x, y), a data set, or a Source"
        ) from error


def _told(given: object, source: Source) -> Any:
    return canonical_name(given) if isinstance(given, str) else given_by_user(source)


def _told_sources(given: object, sources: Sequence[Source]) -> Any:
    items: list[Any] = given if isinstance(given, list) else [given]
    strange = next((source for item, source in zip(items, sources, strict=True) if not isinstance(item, str)), None)
    if strange is not None:
        return given_by_user(strange)
    return [canonical_name(item) for item in items] if isinstance(given, list) else canonical_name(items[0])
