"""Taking rows away from training: long-tailed streams, and rows kept for validation."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.data import Data, JoinedData
from streamlearn.streams.experience import Experience
from streamlearn.streams.inputs import whole_number
from streamlearn.streams.operators.deriving import checked_fraction, checked_stream, classes_in, derived
from streamlearn.streams.partition import permutation
from streamlearn.streams.protocols.episodes import Episodes
from streamlearn.streams.stream import Stream

__all__ = ["Class", "imbalanced", "rows_by_class", "validation"]

Class = tuple[str, int]
"""A class: the name of its task, and its number there."""

NO_CLASS: Class = ("", -1)
"""Where `rows_by_class` puts rows of regression, rows without a label, and episodes."""


def imbalanced(stream: Stream, factor: float = 0.01, *, shape: str = "exponential", order: str = "shuffled", seed: int = 0) -> Stream:
    """Long-tailed training rows: few classes have many rows, many have few.

    Protocol: with n the number of training rows of the largest class of the whole stream, the class of rank k (k = 0, ..., C-1) keeps
    n * factor^(k / (C-1)) rows, rounded down, ("exponential"), or n if k < C/2 and n * factor otherwise ("step"); at least 1, at most
    all that it has. Where rows of a class are spread over several experiences, each keeps its share; which rows stay is drawn. Classes of
    different tasks are different classes. Evaluation is untouched.

    Args:
        stream: a finite stream of classification, each row labelled for one task. Roles other than ``train`` stay as they are.
        factor: in (0, 1]: the number of rows of the smallest class over that of the largest.
        shape: "exponential" or "step".
        order: "shuffled" draws the ranks; "ordered" gives them to the classes as they arrive, those of one experience by their number.
        seed: at least 0; of the ranks and of the rows that stay.

    Raises:
        DataError: an argument is out of its range, the stream is endless or no such classification, or an experience would have no
            training row left.
        UnknownNameError: there is no such shape or order.

    Source: Cui et al., "Class-balanced loss based on effective number of samples", CVPR 2019 (the profile); Liu et al., "Long-tailed
        class incremental learning", ECCV 2022 (shuffled and ordered); Buda et al., "A systematic study of the class imbalance problem",
        2018 (step).

    Example:
        >>> from streamlearn.streams import class_incremental
        >>> stream = imbalanced(class_incremental("digits", 5, shuffle=False), 0.1, order="ordered")
        >>> [len(experience.data["train"]) for experience in stream]
        [255, 154, 92, 55, 32]
    """
    base = checked_stream(stream, "imbalanced", finite=True)
    factor = checked_fraction(factor, "factor", one=True)
    for value, what, known in ((shape, "shape", ("exponential", "step")), (order, "order", ("shuffled", "ordered"))):
        if value not in known:
            raise UnknownNameError(what, str(value), known)
    seed = whole_number(seed, "seed", 0)
    counts = [_checked_counts(base, i) for i in range(len(base))]
    arrived = list(dict.fromkeys(key for found in counts for key in sorted(found)))
    if not arrived:
        raise DataError(f"no experience of stream {base.name!r} has rows of role 'train', and imbalanced takes away no others")
    drawn = permutation(len(arrived), seed=seed, purpose="imbalanced ranks").tolist() if order == "shuffled" else range(len(arrived))
    quotas = _quotas(counts, [arrived[place] for place in drawn], factor, shape)
    kept = _shares(counts, quotas)
    empty = next((i for i, found in enumerate(kept) if found and not sum(found.values())), None)
    if empty is not None:
        raise DataError(f"factor is {factor}, which leaves experience {empty} of stream {base.name!r} no training row: give a larger one")

    def experience(i: int) -> Experience:
        known = base[i]
        if "train" not in known.data:
            return known
        rows = rows_by_class(known.data["train"])
        chosen = [
            rows[key][permutation(len(rows[key]), seed=seed, purpose=f"imbalanced {key[0]} {key[1]}", number=i)[:count]]
            for key, count in kept[i].items()
        ]
        return _with_train(known, known.data["train"].subset(torch.cat(chosen).sort().values))

    options = {"factor": factor, "shape": shape, "order": order, "seed": int(seed)}
    return derived(base, "imbalanced", options, experience=experience, length=len(base))


def _checked_counts(base: Stream, i: int) -> dict[Class, int]:
    """How many training rows each class has in experience ``i``."""
    data = base[i].data.get("train")
    if data is None:
        return {}
    several = next((part for part in data.parts() if sum(task.kind == "classification" for task in part.tasks) > 1), None)
    if several is not None:
        tasks = ", ".join(task.name for task in several.tasks)
        raise DataError(
            f"training rows of experience {i} of stream {base.name!r} have several tasks ({tasks}): imbalanced needs one class of each row"
        )
    found = {key: len(rows) for key, rows in rows_by_class(data).items()}
    if NO_CLASS in found:
        raise DataError(
            f"{found[NO_CLASS]} training rows of experience {i} of stream {base.name!r} have no class: imbalanced needs classification "
            "without episodes, and every label; put it before what hides labels"
        )
    return found


def _quotas(counts: list[dict[Class, int]], ranked: list[Class], factor: float, shape: str) -> dict[Class, int]:
    """How many rows each class keeps, of all that it has."""
    total = {key: sum(found.get(key, 0) for found in counts) for key in ranked}
    largest, last = max(total.values()), max(len(ranked) - 1, 1)
    quotas = {}
    for rank, key in enumerate(ranked):
        step = 1.0 if 2 * rank < len(ranked) else factor
        share = factor ** (rank / last) if shape == "exponential" else step
        # a millionth of a row: powers may be off by a last bit, which must not decide what rounding down gives
        quotas[key] = min(total[key], max(1, int(largest * share + 1e-6)))
    return quotas


def _shares(counts: list[dict[Class, int]], quotas: dict[Class, int]) -> list[dict[Class, int]]:
    """How many rows of each class each experience keeps: of every class the same share, up to rounding, which loses no row."""
    total = {key: sum(found.get(key, 0) for found in counts) for key in quotas}
    seen = dict.fromkeys(quotas, 0)
    kept = []
    for found in counts:
        mine = {}
        for key, count in found.items():
            before, after = (place * quotas[key] // total[key] for place in (seen[key], seen[key] + count))
            mine[key] = after - before
            seen[key] += count
        kept.append(mine)
    return kept


def validation(stream: Stream, fraction: float = 0.1, *, seed: int = 0) -> Stream:
    """Some training rows of every experience are kept from training, in role ``validation``, on which plugins may measure.

    Protocol: of the n training rows of each class of an experience round(fraction * n) are drawn, but never all. Rows without a label, of
    regression, and episodes are drawn as if they were of one class. An experience without role ``train`` stays as it is, and so does one
    whose classes are too small to give a row.

    Args:
        stream: any stream, endless ones too.
        fraction: in (0, 1).
        seed: at least 0; of the rows that are drawn.

    Raises:
        DataError: an argument is out of its range, or an experience has validation rows already.

    Source: Masana et al., "Class-incremental learning: survey and performance evaluation on image classification", TPAMI 2022 (FACIL,
        which keeps a tenth of every class); Avalanche's ``benchmark_with_validation_stream``.

    Example:
        >>> from streamlearn.streams import class_incremental
        >>> stream = validation(class_incremental("digits", 5), 0.25)
        >>> {role: len(data) for role, data in stream[0].data.items()}
        {'train': 217, 'validation': 72}
    """
    base = checked_stream(stream, "validation")
    fraction = checked_fraction(fraction, "fraction")
    seed = whole_number(seed, "seed", 0)

    def experience(i: int) -> Experience:
        known = base[i]
        if "validation" in known.data:
            raise DataError(
                f"experience {i} of stream {base.name!r} has rows of role 'validation' already: leave validation out, or build the stream "
                "without them"
            )
        if "train" not in known.data:
            return known
        train = known.data["train"]
        chosen = [torch.zeros(0, dtype=torch.int64)]
        for (task, number), rows in rows_by_class(train).items():
            drawn = permutation(len(rows), seed=seed, purpose=f"validation {task} {number}", number=i)
            chosen.append(rows[drawn[: min(round(fraction * len(rows)), len(rows) - 1)]])
        apart = torch.zeros(len(train), dtype=torch.bool)
        apart[torch.cat(chosen)] = True
        if not bool(apart.any()):
            return known
        held_out = train.subset(apart.nonzero().flatten())
        changed = _with_train(known, train.subset((~apart).nonzero().flatten()))
        return replace(changed, data={**changed.data, "validation": held_out})

    experience(0)  # what is wrong with the stream shows at once
    length = None if base.endless else len(base)
    return derived(base, "validation", {"fraction": fraction, "seed": int(seed)}, experience=experience, length=length)


def _with_train(known: Experience, train: Data | JoinedData) -> Experience:
    """The experience with other training rows of its own, and the classes that these have."""
    return replace(known, data={**known.data, "train": train}, classes={**dict.fromkeys(known.classes, ()), **classes_in(train)})


def rows_by_class(data: Data | JoinedData) -> dict[Class, Tensor]:
    """The positions of the rows of each class, ascending; a row of several tasks is of its class of the first classification.

    Example:
        >>> from streamlearn.streams import class_incremental
        >>> {key: len(rows) for key, rows in rows_by_class(class_incremental("digits", 5, shuffle=False)[0].data["train"]).items()}
        {('digits', 0): 142, ('digits', 1): 146}
    """
    found: dict[Class, list[Tensor]] = {}
    start = 0
    for part in data.parts():
        task, column = _classes_of(part)
        order = column.argsort(stable=True)
        numbers, counts = torch.unique_consecutive(column[order], return_counts=True)
        for number, rows in zip(numbers.tolist(), order.split(counts.tolist()), strict=True):  # type: ignore[no-untyped-call]
            found.setdefault((task, number) if number >= 0 else NO_CLASS, []).append(rows + start)
        start += len(part)
    return {key: torch.cat(found[key]) for key in sorted(found)}


def _classes_of(part: Data) -> tuple[str, Tensor]:
    """A task, and the class of each row (or episode); -1 where it has none that may be looked at."""
    nothing = torch.full((len(part),), -1)
    if isinstance(part, Episodes):
        return "", nothing
    for task in part.tasks:
        column = part.column(task.name) if task.kind == "classification" else None
        if column is not None:
            return task.name, torch.where(part.labelled[task.name], column, nothing) if task.name in part.labelled else column
    return "", nothing
