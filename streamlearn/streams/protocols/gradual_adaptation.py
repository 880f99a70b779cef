"""A labelled source domain, then unlabelled rows of domains that move away from it step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.corruptions import KINDS, Corruption, checked_severity
from streamlearn.streams.data import Data, Target, classes_in
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.hiding import with_targets
from streamlearn.streams.inputs import Inputs, count_experiences, plain_number, real_number, resolve
from streamlearn.streams.partition import chunk_edges, permutation
from streamlearn.streams.stream import Stream
from streamlearn.streams.transforms import Domain, Rotation, check_images

if TYPE_CHECKING:
    from torch import Tensor

    from streamlearn.streams.inputs import SourceLike

__all__ = ["gradual_adaptation"]


def gradual_adaptation(
    source: SourceLike = "digits",
    shift: str = "rotation",
    *,
    amount: float | None = None,
    experiences: int | None = None,
    split: bool = True,
    seed: int = 0,
    test: SourceLike | None = None,
    test_fraction: float = 0.2,
) -> Stream:
    """Labelled rows of a source domain first, then, without labels, rows of domains that shift away from it gradually.

    Protocol: of ``n`` experiences, the first holds labelled rows as they are (role ``train``); experience ``i`` from 1 to ``n - 1`` holds
    unlabelled rows (role ``target``) shifted by ``s_i``: turned by ``s_i = amount * i / (n - 1)`` degrees, or corrupted at a severity that
    rises evenly from 1 to ``amount``. The training rows are spread over the experiences at random, as evenly as possible, so that none
    comes twice; with ``split=False`` each experience holds all of them. Evaluation set ``i`` holds all test rows in the domain of
    experience ``i``. Target rows are scored prequentially; their labels are out of training's reach (with ``split=False`` those of the
    first experience are known, and are of the same images).

    Args:
        source: a name ("digits", "mnist", "fashion-mnist"), ``(x, y)`` arrays, a map-style torch data set, or a `Source`, of images;
            targets may be classes or, for regression, floats.
        shift: "rotation", or a kind of `Corruption`, such as "gaussian_noise", which needs images in [0, 1].
        amount: of the last experience: degrees from -360 to 360 but not 0, by default 60; or a severity from 1 to 5, by default 5.
        experiences: at least 2, by default 6.
        split: whether the training rows are spread over the experiences.
        seed: at least 0; of the spreading, of noise and of the test split.
        test, test_fraction: what to evaluate on, as in `class_incremental`.

    Raises:
        DataError: an argument is out of its range, inputs are no images, or there are fewer training rows than experiences.
        UnknownNameError: no source, or no shift, has this name.

    Source: Kumar, Ma and Liang, "Understanding self-training for gradual domain adaptation", ICML 2020 (images turned by up to 60
        degrees).

    Example:
        >>> stream = gradual_adaptation("digits", experiences=4)
        >>> [(experience.name, list(experience.data)) for experience in stream]
        [('rotation/0', ['train']), ('rotation/20', ['target']), ('rotation/40', ['target']), ('rotation/60', ['target'])]
    """
    if not isinstance(shift, str):
        hint = f"; for the number of experiences write experiences={shift}" if hasattr(shift, "__index__") else ""
        raise DataError(f"shift is {shift!r}: give 'rotation' or a kind of corruption, such as 'gaussian_noise'{hint}")
    inputs = resolve(source, test, test_fraction, seed, regression=True)
    count, task, rows = count_experiences(experiences, 6), inputs.task, inputs.train
    domains, size = _domains(inputs, shift, amount, count), len(inputs.train.indices)
    if split and size < count:
        raise DataError(f"source {inputs.name!r} has {size} training rows, fewer than {count} experiences: ask for at most {size}")
    order, edges = permutation(size, seed=inputs.seed, purpose="gradual rows"), chunk_edges(size, count)

    def positions(i: int) -> Tensor:
        return order[slice(*edges[i])].sort().values if split else torch.arange(size)

    def known(i: int) -> Data:
        return rows.data(positions(i), task, None, domains[i][1], domains[i][0])

    column = torch.zeros(len(rows.source), *rows.labels.shape[1:], dtype=rows.labels.dtype)
    column[rows.indices[positions(0)]] = rows.labels[positions(0)]
    labelled = Data(
        with_targets(rows.source, {rows.column: column}), rows.indices[positions(0)], (task,), {task.name: Target(rows.column)},
        domain=domains[0][0],
    )  # fmt: skip
    present = classes_in(labelled)

    def experience(i: int) -> Experience:
        if i == 0:
            return Experience(i, (task,), {"train": labelled}, domains[i][0], present)
        return Experience(i, (task,), {"target": known(i).without_labels()}, domains[i][0])

    def evaluation(i: int) -> EvaluationSet:
        return EvaluationSet(i, inputs.test.data(slice(None), task, None, domains[i][1], domains[i][0]), domains[i][0])

    return Stream(
        f"{inputs.name}/gradual_adaptation",
        count,
        experience,
        evaluation,
        tasks=(task,),
        input_shape=rows.source.input_shape,
        description={
            "builder": "gradual_adaptation", **inputs.described, "shift": shift, "amount": _amount(shift, amount), "experiences": count,
            "split": bool(split),
        },
        fingerprints=inputs.fingerprints,
        truth=lambda i: known(i) if i else None,
    )  # fmt: skip


def _domains(inputs: Inputs, shift: str, amount: float | None, count: int) -> tuple[Domain, ...]:
    most = _amount(shift, amount)
    if count < 2:
        raise DataError(f"the number of experiences is {count}: give at least 2, a source domain and one that is shifted")
    check_images(inputs.train.source, shift, channels=None if shift == "rotation" else (1, 3))
    if shift == "rotation":
        angles = [most * i / (count - 1) for i in range(count)]
        return tuple((f"rotation/{angle:g}", Rotation(angle) if i else None) for i, angle in enumerate(angles))
    severities = [1 + (most - 1) * i / (count - 2) for i in range(count - 1)] if count > 2 else [most]
    return (("clean", None), *((f"{shift}/{severity:g}", Corruption(shift, severity, inputs.seed)) for severity in severities))


def _amount(shift: object, amount: float | None) -> float:
    if shift in KINDS:
        return float(checked_severity(5.0 if amount is None else plain_number(amount)))
    if shift != "rotation":
        raise UnknownNameError("shift", str(shift), [*KINDS, "rotation"])
    number = 60.0 if amount is None else real_number(amount)
    if not 0 < abs(number) <= 360:
        raise DataError(f"amount is {amount!r}: give the degrees of the last domain, from -360 to 360 but not 0")
    return float(number)
