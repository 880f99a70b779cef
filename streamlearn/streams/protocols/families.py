"""What episodes are drawn of: families of small tasks, and the families of functions of one variable."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.data import Source, Target
from streamlearn.streams.episode_data import Episodes
from streamlearn.streams.inputs import whole_number
from streamlearn.streams.sources.tensors import TensorSource
from streamlearn.streams.task import Task

__all__ = ["FUNCTIONS", "Family", "FunctionFamily", "Pools", "Sizes", "Stretch", "function_pools", "names_held_out"]

Floats = NDArray[np.float64]
Curves = Callable[[Floats], Floats]
"""Values of each function at inputs of its own, ``(functions, inputs)`` to the same shape."""


class Stretch(NamedTuple):
    """Which episodes are wanted.

    Args:
        purpose: "train" or "test".
        experience: number of the experience, or of the evaluation set.
        numbers: of the episodes, ``(episodes,)``.
        domain: what precedes each number in the episode's name, such as ``"train/"`` or ``"train/lines/"``.
        seed: at least 0.
    """

    purpose: str
    experience: int
    numbers: Tensor
    domain: str
    seed: int

    def random(self) -> np.random.Generator:
        """A generator of their own, the same whenever the same episodes are wanted."""
        key = hashlib.sha256(f"episodes/{self.domain}{self.seed}/{self.experience}".encode()).digest()[:16]
        return np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))


class Family(Protocol):
    """Small tasks of one kind."""

    @property
    def name(self) -> str:
        """What the episodes' domains call it."""

    def episodes(self, wanted: Stretch) -> Episodes:
        """One episode for each of ``wanted.numbers``."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large episodes are, how many there are, and their seed.

    Raises:
        DataError: one is out of its range.
    """

    shots: int
    queries: int
    train_episodes: int
    test_episodes: int
    seed: int

    def __post_init__(self) -> None:
        for what, least in (("shots", 1), ("queries", 1), ("train_episodes", 1), ("test_episodes", 1), ("seed", 0)):
            object.__setattr__(self, what, whole_number(getattr(self, what), what, least))


@dataclass(frozen=True, slots=True, eq=False)
class Pools:
    """The families of training and of test episodes, and what the stream tells about them; ``several`` puts families into domains."""

    name: str
    task: Task
    train: Sequence[Family]
    test: Sequence[Family]
    several: bool
    input_shape: tuple[int, ...]
    described: dict[str, Any]
    sources: tuple[Source, ...] = ()


def names_held_out(given: Sequence[str] | None, known: Sequence[str], test: object) -> list[str]:
    """The families that are held out, in the order of ``known``.

    Raises:
        UnknownNameError: one is none of ``known``.
        DataError: none is named, or none is left, or ``test`` is given as well.
    """
    if given is None:
        return []
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, (list, tuple)) or not names:
        raise DataError(f"held_out_families is {given!r}: give a list of names of families")
    for name in names:
        if name not in known:
            raise UnknownNameError("family", str(name), known, "held_out_families names families that source lists")
    if test is not None:
        raise DataError("held_out_families and test both say what test episodes are made of: give one of them")
    if set(names) == set(known):
        raise DataError(f"held_out_families holds out all of {', '.join(known)}: leave at least one family to train on")
    return [name for name in known if name in names]


# ---------------------------------------------------------------------------------------------------- functions


def sinusoids(draw: np.random.Generator, count: int) -> Curves:
    """y = A sin(x + φ), with A in [0.1, 5] and φ in [0, π].

    Source: Finn, Abbeel and Levine, "Model-agnostic meta-learning for fast adaptation of deep networks", ICML 2017, section 5.1.
    """
    amplitude, phase = draw.uniform(0.1, 5.0, (count, 1)), draw.uniform(0.0, np.pi, (count, 1))
    return lambda x: amplitude * np.sin(x + phase)


def lines(draw: np.random.Generator, count: int) -> Curves:
    """y = a x + b, with a and b in [-3, 3].

    Source: Finn, Xu and Levine, "Probabilistic model-agnostic meta-learning", NeurIPS 2018.
    """
    slope, intercept = draw.uniform(-3.0, 3.0, (count, 1)), draw.uniform(-3.0, 3.0, (count, 1))
    return lambda x: slope * x + intercept


def harmonics(draw: np.random.Generator, count: int) -> Curves:
    """y = a sin(ω x + φ) + b sin(2 ω x + ψ), with a and b standard normal, ω in [5, 7], φ and ψ in [0, 2π].

    Source: Lacoste et al., "Uncertainty in multitask transfer learning", 2018, arXiv:1806.07528, as in torchmeta's ``Harmonic``; there x is
        normal about a point in [-4, 4].
    """
    frequency, phase = draw.uniform(5.0, 7.0, (count, 1)), draw.uniform(0.0, 2 * np.pi, (2, count, 1))
    radius, angle = draw.uniform(0.0, 1.0, (2, 2, count, 1))
    first, second = np.sqrt(-2 * np.log1p(-radius)) * np.cos(2 * np.pi * angle)  # normal, by Box and Muller
    return lambda x: first * np.sin(frequency * x + phase[0]) + second * np.sin(2 * frequency * x + phase[1])


def quadratics(draw: np.random.Generator, count: int) -> Curves:
    """y = a (x - c)² + b, with a in ±[0.02, 0.15], b and c in [-3, 3].

    Source: Vuorio et al., "Multimodal model-agnostic meta-learning via task-aware modulation", NeurIPS 2019.
    """
    size, sign = draw.uniform(0.02, 0.15, (count, 1)), np.where(draw.uniform(0.0, 1.0, (count, 1)) < 0.5, -1.0, 1.0)
    centre, bias = draw.uniform(-3.0, 3.0, (count, 1)), draw.uniform(-3.0, 3.0, (count, 1))
    return lambda x: sign * size * (x - centre) ** 2 + bias


def steps(draw: np.random.Generator, count: int) -> Curves:
    """y = -1 at the left end, and its sign turns at each of three points in [-2.5, 2.5].

    Source: Harrison, Sharma and Pavone, "Meta-learning priors for efficient online Bayesian regression", WAFR 2018, without its noise.
    """
    switches = draw.uniform(-2.5, 2.5, (3, count, 1))
    return lambda x: np.where((x > switches).sum(0) % 2 == 0, -1.0, 1.0)


FUNCTIONS: dict[str, Callable[[np.random.Generator, int], Curves]] = {
    "harmonics": harmonics,
    "lines": lines,
    "quadratics": quadratics,
    "sinusoids": sinusoids,
    "steps": steps,
}
"""The families of functions: each draws the parameters of some functions, and gives their values."""


@dataclass(frozen=True, slots=True, eq=False)
class FunctionFamily:
    """Functions of one of `FUNCTIONS`; each episode is one of them, asked at points uniform in [-5, 5].

    Args:
        name: of the family.
        task: the regression task of all episodes.
        shots: support rows of an episode, at least 1.
        queries: its query rows, at least 1.

    Example:
        >>> family = FunctionFamily("lines", Task("lines", "regression"), shots=2, queries=3)
        >>> few = family.episodes(Stretch("train", 0, torch.arange(4), "train/", seed=0))
        >>> len(few), few.source
        (4, TensorSource('lines/train/0', 20 rows of (1,), targets y))
    """

    name: str
    task: Task
    shots: int
    queries: int

    def episodes(self, wanted: Stretch) -> Episodes:
        """One function for each of ``wanted.numbers``."""
        draw, count, size = wanted.random(), len(wanted.numbers), self.shots + self.queries
        values = FUNCTIONS[self.name](draw, count)
        x = draw.uniform(-5.0, 5.0, (count, size))
        columns = {"y": _column(values(x))}
        source = TensorSource(_column(x), columns, f"{self.name}/{wanted.purpose}/{wanted.experience}")
        inside: Any = {"support": self.shots, "size": size, "numbers": wanted.numbers}
        return Episodes(source, torch.arange(count * size), (self.task,), {self.task.name: Target("y")}, domain=wanted.domain, **inside)


def _column(values: Floats) -> Tensor:
    return torch.from_numpy(values.reshape(-1, 1).astype(np.float32))


def function_pools(names: Sequence[str], test: object, held_out_families: Sequence[str] | None, sizes: Sizes) -> Pools:
    """What episodes of the functions ``names`` are drawn of.

    Raises:
        UnknownNameError: a family that is to be held out is none of ``names``.
        DataError: the arguments of `streamlearn.streams.episodes` do not fit together.
    """
    twice = next((name for place, name in enumerate(names) if name in names[:place]), None)
    if twice is not None:
        raise DataError(f"source lists {twice!r} twice: give each family once")
    held = names_held_out(held_out_families, names, test)
    if test is not None:
        raise DataError("test is for episodes of classes, and functions are always drawn anew: leave it out, or use held_out_families")
    name = "+".join(names)
    task = Task(name, "regression", 1)
    families = [FunctionFamily(one, task, sizes.shots, sizes.queries) for one in names]
    trained = [family for family in families if family.name not in held]
    asked = [family for family in families if family.name in held] if held else families
    described = {"source": list(names) if len(names) > 1 else names[0], **({"held_out_families": held} if held else {})}
    return Pools(name, task, trained, asked, len(names) > 1, (1,), described)
