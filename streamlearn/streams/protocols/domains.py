"""The same task seen differently in every experience: domain-incremental streams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.corruptions import KINDS, checked_severity
from streamlearn.streams.data import Transform
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.inputs import Inputs, count_experiences, count_or_endless, plain_number, real_number, resolve
from streamlearn.streams.protocols.building import stream_over
from streamlearn.streams.protocols.incremental import same_outputs
from streamlearn.streams.stream import ENDLESS, Stream
from streamlearn.streams.transforms import (
    EXAMPLES,
    Domain,
    Rotation,
    check_images,
    described_transforms,
    family_permutation,
    listed_transforms,
    named_transform,
    transformed_shape,
)

if TYPE_CHECKING:
    from streamlearn.streams.inputs import SourceLike

__all__ = ["domain_incremental"]


class Domains(NamedTuple):
    """The domains of a stream: how many (``None``: without end), each by its number, and those that stand for all when shapes are tried."""

    length: int | None
    at: Callable[[int], Domain]
    typical: Sequence[Domain]


def domain_incremental(
    source: SourceLike,
    experiences: int | str | None = None,
    *,
    transform: str | Sequence[str | Transform] = "permutation",
    seed: int = 0,
    degrees: float = 180.0,
    severity: float = 3,
    first_identity: bool = True,
    test: SourceLike | None = None,
    test_fraction: float = 0.2,
) -> Stream:
    """The same task on the same rows in every experience, seen differently each time.

    Protocol: experience ``i`` trains on ``(t_i(x), y)`` for all training rows, and evaluation set ``i`` holds ``(t_i(x), y)``
    for all test rows. "permutation": ``t_i(x) = x[π_i]`` with random ``π_i``; "rotation": ``t_i`` turns images by
    ``i * degrees / experiences`` degrees; "corruption": ``t_i`` corrupts images in [0, 1] by the ``i``-th kind of `Corruption`; a list:
    ``t_i`` is its ``i``-th item. "classes": the domains are groups of classes, shuffled by ``seed`` and cut as by `class_incremental`;
    the label is the place of the row's class in its group (split MNIST, domain-incremental: is the digit the first or the second?).

    Args:
        source: a name ("digits", "mnist", "fashion-mnist"), ``(x, y)`` arrays, a map-style torch data set, or a `Source`; targets may
            be classes or, for regression, floats.
        experiences: at least 1, or "endless" for permutations, which never run out; by default 5, all kinds of corruption (9, which is
            also the most), or as many as ``transform`` lists; for "classes" at most as many as there are.
        transform: "permutation", "rotation", "corruption", "classes", or a list with one item per experience: a callable that maps
            ``(rows, ...)`` to ``(rows, ...)``, or a name: "identity", "rotation/DEGREES", "permutation/NUMBER", or a kind of corruption,
            such as "contrast" or "contrast/SEVERITY".
        seed: at least 0; of the permutations, of noise and of the test split.
        degrees: in (0, 360]; of "rotation" only.
        severity: from 1 to 5; of corruptions that do not name their own.
        first_identity: whether the first experience sees ``x`` as it is; of "permutation" only (the first angle is 0 anyway).
        test, test_fraction: what to evaluate on, as in `class_incremental`.

    Raises:
        DataError: an argument is out of its range, inputs are no images where they must be, or the labels are not class
            numbers 0 to n-1 without gaps.
        UnknownNameError: no source, or no transform, has this name.

    Source: permuted MNIST: Goodfellow et al., 2013, arXiv:1312.6211, and Kirkpatrick et al., "EWC", PNAS 2017; rotated MNIST:
        Lopez-Paz and Ranzato, "GEM", NeurIPS 2017; corruptions: Hendrycks and Dietterich, "Benchmarking neural network robustness to
        common corruptions and perturbations", ICLR 2019; classes: van de Ven et al., "Three types of incremental learning", Nature Machine
        Intelligence 4, 2022.

    Example:
        >>> stream = domain_incremental("digits", 3, transform="rotation", degrees=90)
        >>> [experience.data["train"].domain for experience in stream]
        ['rotation/0', 'rotation/30', 'rotation/60']
        >>> domain_incremental("digits", "endless")[99].name
        'permutation/99'
        >>> [experience.name for experience in domain_incremental("digits", transform=["identity", "contrast/2", "rotation/90"])]
        ['identity', 'contrast/2', 'rotation/90']
        >>> domain_incremental("digits", 5, transform="classes").tasks[0].size
        2
    """
    severity = plain_number(severity)
    if isinstance(transform, str) and transform == "classes":
        return same_outputs(resolve(source, test, test_fraction, seed), count_experiences(experiences, 5))
    inputs = resolve(source, test, test_fraction, seed, regression=True)
    domains = _domains(transform, experiences, inputs, degrees=degrees, first_identity=first_identity, severity=severity)
    task, everything = inputs.task, slice(None)
    classes = {task.name: tuple(range(task.size))} if task.kind == "classification" else {}

    def experience(i: int) -> Experience:
        domain, change = domains.at(i)
        data = inputs.train.data(everything, task, None, change, domain)
        return Experience(i, (task,), {"train": data}, domain, classes)

    def evaluation(i: int) -> EvaluationSet:
        domain, change = domains.at(i)
        return EvaluationSet(i, inputs.test.data(everything, task, None, change, domain), domain)

    options = {
        "experiences": ENDLESS if domains.length is None else domains.length,
        "transform": transform if isinstance(transform, str) else described_transforms(transform, domains.typical),
        "degrees": float(degrees),
        "severity": severity,
        "first_identity": bool(first_identity),
    }
    shape = transformed_shape(domains.typical, inputs.train.source)
    return stream_over(
        inputs, "domain_incremental", (task,), experience=experience, evaluation=evaluation, options=options, input_shape=shape
    )


def _domains(
    transform: str | Sequence[str | Transform],
    experiences: int | str | None,
    inputs: Inputs,
    *,
    degrees: float,
    first_identity: bool,
    severity: float = 3,
) -> Domains:
    """The domain of each experience, as `domain_incremental` documents them."""
    if not 0 < real_number(degrees) <= 360:
        raise DataError(f"degrees is {degrees!r}: give a number above 0, at most 360")
    degrees = real_number(degrees)
    checked_severity(severity)
    if transform == "permutation":
        kept, seed = 1 if first_identity else 0, inputs.seed
        count = count_or_endless(experiences, 5)
        return Domains(count, lambda i: (f"permutation/{i}", None if i < kept else family_permutation(seed, i)), [("permutation", None)])
    if experiences == ENDLESS:
        raise DataError(
            f"experiences is 'endless' and transform is {transform!r}: give a number, or transform='permutation', which never ends"
        )
    if not isinstance(transform, str):
        found = _given(transform, experiences, inputs, severity)
    elif transform == "corruption":
        found = _corruptions(count_experiences(experiences, len(KINDS)), inputs, severity)
    elif transform == "rotation":
        count = count_experiences(experiences, 5)
        check_images(inputs.train.source, "rotation")
        angles = [degrees * i / count for i in range(count)]
        found = tuple((f"rotation/{angle:g}", Rotation(angle) if angle else None) for angle in angles)
    else:
        raise UnknownNameError(
            "transform", transform, ["classes", "corruption", "permutation", "rotation"], f"or list names, such as {EXAMPLES}"
        )
    return Domains(len(found), found.__getitem__, found)


def _corruptions(count: int, inputs: Inputs, severity: float) -> tuple[Domain, ...]:
    if count > len(KINDS):
        raise DataError(f"there are {len(KINDS)} kinds of corruption, fewer than {count} experiences: ask for at most {len(KINDS)}")
    check_images(inputs.train.source, "corruption", channels=(1, 3))
    return tuple(named_transform(kind, seed=inputs.seed, severity=severity) for kind in KINDS[:count])


def _given(transforms: Sequence[str | Transform], experiences: int | str | None, inputs: Inputs, severity: float) -> tuple[Domain, ...]:
    if not isinstance(transforms, Sequence) or not transforms:
        raise DataError(
            f"transform is {transforms!r}: give 'permutation', 'rotation' or a list of callables, one for each experience, in which names "
            f"such as {EXAMPLES} may stand, too; or 'corruption'"
        )
    count = count_experiences(experiences, len(transforms))
    if len(transforms) != count:
        kind = "callables" if all(map(callable, transforms)) else "transforms"
        raise DataError(f"transform lists {len(transforms)} {kind} but {count} experiences are asked for: leave experiences out")
    return listed_transforms(transforms, inputs.train.source, "transform", seed=inputs.seed, severity=severity)
