"""Adaptation at test time: a trained model meets unlabelled test rows whose distribution shifts, in various orders."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.corruptions import KINDS, checked_severity, hashed_uniforms
from streamlearn.streams.data import Data, JoinedData, Transform, classes_in, join
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.inputs import Inputs, plain_number, real_number, resolve, whole_number
from streamlearn.streams.partition import RowsByClass, permutation
from streamlearn.streams.stream import ENDLESS, Stream
from streamlearn.streams.transforms import Domain, described_transforms, listed_transforms, transformed_shape

if TYPE_CHECKING:
    from streamlearn.streams.inputs import SourceLike

__all__ = ["ORDERS", "test_time"]

ORDERS = ("continual", "gradual", "mixed", "correlated", "mixed_correlated")
_LEVELS = (1, 2, 3, 4, 5, 4, 3, 2, 1)


def test_time(
    source: SourceLike = "digits",
    shifts: str | Sequence[str | Transform] | None = None,
    *,
    severity: float = 3,
    order: str = "continual",
    rows: int | None = None,
    passes: int | str = 1,
    concentration: float = 0.1,
    seed: int = 0,
    train: bool = True,
    test: SourceLike | None = None,
    test_fraction: float = 0.2,
) -> Stream:
    """Labelled clean rows to train on, then test rows without labels, corrupted, on which predictions are scored as they come.

    Protocol: experience 0 (if ``train``) holds all training rows (role ``train``). Then comes one *run* after another, each of which
    holds every test row once in every domain that it has (role ``target``):

    - "continual": a run for each shift, in the order of ``shifts``.
    - "gradual": for each shift nine runs, at severities 1, 2, 3, 4, 5, 4, 3, 2, 1.
    - "mixed": one run, which has all shifts; its rows are shuffled.
    - "correlated": as "continual", but in each run rows of one class tend to come together: of each class, a share drawn from a
      symmetric Dirichlet distribution with ``concentration`` goes to each of ``max(classes, 100)`` slots (of few test rows only as many
      as leave each slot ``rows`` rows); the slots come one after another, and within a slot the classes do, in a random order.
    - "mixed_correlated": as "mixed", with rows correlated in the same way.

    A run is cut into experiences of ``rows`` rows (the last may be shorter), because an engine shuffles the rows of an experience but
    never the experiences; without ``rows`` a run is one experience, but 64 rows in the correlated orders. All runs come ``passes``
    times, each time with their rows in another order; the same row is always corrupted in the same way.

    Target rows *are* the test rows: training meets their inputs, that is the setting, and never their labels. What is predicted for
    them before each update is scored (`Stream.truth`). Evaluation set 0 holds the clean test rows (if ``train``), followed by one for
    each domain (shift and severity) with all test rows so changed; an experience of a mixed order belongs to those of all domains.

    Args:
        source: a name ("digits", "mnist", "fashion-mnist"), ``(x, y)`` arrays, a map-style torch data set, or a `Source`, of classes.
        shifts: names, such as "gaussian_noise", "contrast/5", "rotation/30" and "identity", or callables that keep the shape of
            ``(rows, ...)``; ``None`` for every kind of `Corruption`, of images in [0, 1]. "gradual" takes kinds of corruption only.
        severity: from 1 to 5; of corruptions that name none; unused by "gradual".
        order: one of the above.
        rows: of each experience, at least 1.
        passes: how often all runs come, at least 1, or "endless".
        concentration: above 0, of the correlated orders; the smaller, the more the classes come one by one.
        seed: at least 0; of the order of rows, of noise, of permutations and of the test split.
        train: whether the stream begins with the training rows; without them the model must have been trained before.
        test, test_fraction: the test rows, as in `class_incremental`.

    Raises:
        DataError: an argument is out of its range, or inputs cannot be shifted so.
        UnknownNameError: no source, or no order, has this name.

    Source: continual and gradual: Wang et al., "Continual test-time domain adaptation" (CoTTA), CVPR 2022; mixed: Marsden, Döbler and
        Yang, "Universal test-time adaptation through weight ensembling, diversity weighting, and prior correction" (ROID), WACV 2024;
        correlated: Yuan, Xie and Li, "Robust test-time adaptation in dynamic scenarios" (RoTTA), CVPR 2023.

    Example:
        >>> stream = test_time("digits", ["contrast", "rotation/30"])
        >>> [(experience.name, list(experience.data)) for experience in stream]
        [('clean', ['train']), ('contrast/3', ['target']), ('rotation/30', ['target'])]
        >>> len(test_time("digits", ["contrast"], order="gradual")), len(test_time("digits", ["contrast"], rows=100, passes=2))
        (10, 9)
    """
    inputs = resolve(source, test, test_fraction, seed)
    if order not in ORDERS:
        raise UnknownNameError("order", str(order), ORDERS)
    severity = checked_severity(plain_number(severity))
    size = None if rows is None else whole_number(rows, "rows", 1)
    times = None if passes == ENDLESS else whole_number(passes, "passes", 1)
    if not 0 < real_number(concentration) < float("inf"):
        raise DataError(f"concentration is {concentration!r}: give a number above 0")
    listed = _checked_shifts(shifts, order)
    domains, runs = _runs(inputs, listed, order, severity)
    plan = _Plan(inputs, domains, runs, order, size or (64 if "correlated" in order else None), float(concentration))
    options = {
        "shifts": None if shifts is None else described_transforms(listed, domains if order != "gradual" else [(n, None) for n in listed]),
        "severity": severity, "order": order, "rows": size, "passes": passes if times is None else times,
        "concentration": float(concentration), "train": bool(train),
    }  # fmt: skip
    shape = transformed_shape([*domains, ("clean", None)] if train else domains, inputs.train.source)
    return _stream(plan, times, bool(train), shape, {"builder": "test_time", **inputs.described, **options})


test_time.__test__ = False  # type: ignore[attr-defined]  # its name makes pytest take it for a test


def _checked_shifts(shifts: object, order: str) -> list[Any]:
    if shifts is None:
        return list(KINDS)
    listed = [shifts] if isinstance(shifts, str) else list(shifts) if isinstance(shifts, Sequence) else []
    if not listed:
        raise DataError(f"shifts is {shifts!r}: give a list of names, such as ['gaussian_noise', 'contrast'], or of callables")
    strange = next((item for item in listed if order == "gradual" and item not in KINDS), None)
    if strange is not None:
        raise DataError(f"order 'gradual' takes a corruption through all severities, and shifts has {strange!r}: give its kind alone")
    return listed


def _runs(inputs: Inputs, listed: list[Any], order: str, severity: float) -> tuple[tuple[Domain, ...], list[tuple[int, ...]]]:
    """The domains, and the numbers of those that each run has."""
    levels = sorted(set(_LEVELS)) if order == "gradual" else [0]
    named = [f"{item}/{level}" if level else item for item in listed for level in levels]
    domains = listed_transforms(named, inputs.test.source, "shift", seed=inputs.seed, severity=severity)
    names = [name for name, _ in domains]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise DataError(f"shifts has {twice!r} twice: name each shift once, passes repeats all of them")
    if "mixed" in order:
        return domains, [tuple(range(len(domains)))]
    if order == "gradual":
        return domains, [(shift * len(levels) + level - 1,) for shift in range(len(listed)) for level in _LEVELS]
    return domains, [(number,) for number in range(len(domains))]


@dataclass(frozen=True, slots=True, eq=False)
class _Plan:
    """Which test rows come in which domain, target experience by target experience."""

    inputs: Inputs
    domains: Sequence[Domain]
    runs: Sequence[tuple[int, ...]]
    order: str
    rows: int | None
    concentration: float

    @property
    def size(self) -> int:
        """Rows of each run."""
        return len(self.inputs.test.indices) * len(self.runs[0])

    @property
    def pieces(self) -> int:
        """Into how many experiences each run is cut."""
        return 1 if self.rows is None else -(-self.size // self.rows)

    def domains_of(self, number: int) -> tuple[int, ...]:
        """The domains of target experience ``number``."""
        return self.runs[number // self.pieces % len(self.runs)]

    def ordered(self, run: int) -> Tensor:
        """The rows of run ``run``, counted through all passes, in their order: ``domain * test rows + row``, domains from 0 in the run."""
        shuffled = permutation(self.size, seed=self.inputs.seed, purpose="test-time rows", number=run)
        if "correlated" not in self.order:
            return shuffled
        labels = self.inputs.test.labels[shuffled % len(self.inputs.test.indices)]
        return shuffled[_correlated(labels, self.inputs.classes, self.concentration, self.size // (self.rows or 1), self.inputs.seed, run)]

    def known(self, number: int, ordered: Callable[[int], Tensor]) -> Data | JoinedData:
        """The labelled rows of target experience ``number``."""
        run, piece = divmod(number, self.pieces)
        chosen = ordered(run) if self.rows is None else ordered(run)[piece * self.rows : (piece + 1) * self.rows]
        test = len(self.inputs.test.indices)
        mine = [(domain, chosen[chosen // test == place] % test) for place, domain in enumerate(self.domains_of(number))]
        return join([self.all_rows(domain).subset(rows) for domain, rows in mine if len(rows)])

    def all_rows(self, domain: int | None) -> Data:
        """All test rows in one domain, or clean."""
        name, change = ("clean", None) if domain is None else self.domains[domain]
        return self.inputs.test.data(slice(None), self.inputs.task, None, change, name)


def _stream(plan: _Plan, times: int | None, train: bool, shape: tuple[int, ...], description: dict[str, Any]) -> Stream:
    inputs, task, head = plan.inputs, plan.inputs.task, 1 if train else 0
    labelled = inputs.train.data(slice(None), task, domain="clean")
    ordered = functools.lru_cache(maxsize=1)(plan.ordered)  # the pieces of one run are asked for one after another

    def known(i: int) -> Data | JoinedData | None:
        return None if i < head else plan.known(i - head, ordered)

    def experience(i: int) -> Experience:
        rows = known(i)
        if rows is None:
            return Experience(i, (task,), {"train": labelled}, "clean", classes_in(labelled))
        name = ", ".join(plan.domains[domain][0] for domain in plan.domains_of(i - head))
        return Experience(i, (task,), {"target": join([part.without_labels() for part in rows.parts()])}, name)

    def evaluation(j: int) -> EvaluationSet:
        found = plan.all_rows(None if j < head else j - head)
        return EvaluationSet(j, found, found.domain)

    return Stream(
        f"{inputs.name}/test_time",
        None if times is None else head + times * len(plan.runs) * plan.pieces,
        experience,
        evaluation,
        tasks=(task,),
        input_shape=shape,
        description=description,
        fingerprints=inputs.fingerprints,
        sets=lambda i: (0,) if i < head else tuple(head + domain for domain in plan.domains_of(i - head)),
        truth=known,
    )


def _correlated(labels: Tensor, classes: int, concentration: float, most: int, seed: int, run: int) -> Tensor:
    """An order of rows in which classes come in bursts: their shares of each slot are drawn from a Dirichlet distribution."""
    slots = max(1, min(max(classes, 100), most))
    shares = _dirichlet(classes, slots, concentration, f"test-time shares/{seed}/{run}")
    rows, found = RowsByClass(labels, classes), list[tuple[Tensor, ...]]()
    for number, size in enumerate(rows.counts.tolist()):
        stops = (np.cumsum(shares[number])[:-1] * size).astype(np.int64).tolist()
        found.append(rows.of([number]).tensor_split(stops))
    turns = [permutation(classes, seed=seed, purpose=f"test-time classes {run}", number=slot).tolist() for slot in range(slots)]
    return torch.cat([found[number][slot] for slot, turn in enumerate(turns) for number in turn])


def _dirichlet(draws: int, size: int, concentration: float, key: str) -> Any:
    """Draws from a symmetric Dirichlet distribution, ``(draws, size)``: the same on every platform.

    A gamma variable of shape a is one of shape a + 1 times a uniform one to the power 1 / a; in logarithms, where nothing vanishes.
    """
    from scipy.special import gammaincinv

    first, second = hashed_uniforms(key, torch.arange(draws), 2 * size).numpy().reshape(draws, 2, size).transpose(1, 0, 2)
    logs = np.log(gammaincinv(concentration + 1, first)) + np.log(second) / concentration
    shares = np.exp(logs - logs.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)
