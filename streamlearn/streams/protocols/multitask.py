"""Several tasks in one experience: on the same rows, on rows of several data sets, or on two images laid over one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from streamlearn.errors import DataError
from streamlearn.streams.data import Data, Target, Transform, classes_in, join
from streamlearn.streams.experience import EvaluationSet, Experience
from streamlearn.streams.inputs import Inputs, Rows, as_source, real_number, resolve, whole_number
from streamlearn.streams.partition import permutation
from streamlearn.streams.protocols.columns import Pool, columns_pool, has_columns
from streamlearn.streams.protocols.overlaid import overlaid
from streamlearn.streams.protocols.several import checked_names, dtype_of_inputs, listed, naming, told_together
from streamlearn.streams.sources.named import canonical_name, named_source, parts_of
from streamlearn.streams.stream import Stream
from streamlearn.streams.transforms import Resize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike
    from torch import Tensor

    from streamlearn.streams.inputs import SourceLike

    Columns = tuple[ArrayLike | Tensor, Mapping[str, ArrayLike | Tensor]]

__all__ = ["multitask"]


def multitask(
    source: SourceLike | Columns | Sequence[SourceLike] = "digits",
    experiences: int = 1,
    *,
    shift: int = 2,
    validation: float = 0.0,
    target_domain: bool = False,
    tasks: Sequence[str] | None = None,
    seed: int = 0,
    test: SourceLike | Columns | Sequence[SourceLike | None] | None = None,
    test_fraction: float = 0.2,
) -> Stream:
    """Several tasks at once in every experience: those of several target columns, of several data sets, or of overlaid images.

    Protocol, by what ``source`` is:

    - *Several target columns* (a source that has them, such as ``"linnerud"``, or ``(x, {"a": ya, "b": yb})``): a task for each column,
      named after it, and every row is asked on all tasks. Integers are class numbers, max + 1 classes; floats are values to regress,
      ``(rows,)`` or ``(rows, size)``. A label may be missing: -1 among class numbers, NaN among values (in any of a row's). The row is
      then not labelled for this task, and contributes nothing to its loss and its measure. Test rows are split off at random, in the
      same proportion from all rows that miss the same labels.
    - *A list of sources*: a task for each, named after it (``"data/i"`` if source i has no name), and each row is asked on the task of
      its own source only. Sizes may differ. Each is classification or regression, as for `data_incremental`; images of another size than
      the first source's, with as many channels, are brought to its size (`Resize`). The name of a source that consists of several, such
      as ``"school"``, stands for the list of them.
    - *One source of single-channel images with one target column*: MultiMNIST. Row i of the stream is the pixelwise maximum of two rows of
      the source, one at the upper left of a canvas wider by ``shift`` pixels, one at its lower right, and the tasks ``"left"`` and
      ``"right"`` ask which class is where. Training pairs come from training rows, test pairs from test rows.

    The training rows of each source, in a random order, are spread over the experiences; its shares differ by at most one row, and where
    there are several sources so do the experiences. Every experience is measured on all test rows: of overlays in an evaluation set of its
    own, else in one that all share.

    Args:
        source: as above; names, pairs ``(x, y)``, map-style torch data sets, or `Source`.
        experiences: at least 1, at most as many as there are training rows.
        shift: of overlays only: pixels by which the canvas is larger, at least 0.
        validation: in [0, 1): the fraction of each experience's rows (of each source) that is kept from training, in role ``validation``,
            rounded. Of each source at least one row stays in training; overlays refuse a fraction that would leave none.
        target_domain: of overlays only: also give each experience unlabelled rows of role ``target``: other overlays, washed out: half way
            to white. The evaluation set then holds overlays of test rows that are made in the same way, labelled, in domain ``target``.
        tasks: other names for the tasks, one for each, in their order.
        seed: at least 0; of the order, the overlaid pairs and the test split.
        test: what to evaluate on, given like ``source``: for a list a list as long, of which some may be ``None``. A named source has its
            own test rows.
        test_fraction: in (0, 1): how much is held out (of every class, where there is one task) when there are no test rows.

    Raises:
        DataError: an argument is out of its range, targets are neither class numbers nor values, inputs of several sources do not fit
            together, or overlays are asked of what is no image of one channel.
        UnknownNameError: no source has this name.

    Source: Caruana, "Multitask learning", 1997; overlays: Sabour, Frosst and Hinton, "Dynamic routing between capsules", NeurIPS 2017, and
        Sener and Koltun, "Multi-task learning as multi-objective optimization", NeurIPS 2018; data sets of unequal sizes: Argyriou,
        Evgeniou and Pontil, "Convex multi-task feature learning", 2008; missing labels: Li, Liu and Bilen, "Learning multiple dense
        prediction tasks from partially annotated data", CVPR 2022.

    Example:
        >>> stream = multitask("digits", 2)
        >>> [task.name for task in stream[1].tasks], len(stream[0].data["train"])
        (['left', 'right'], 719)
        >>> [(task.name, task.kind, task.size) for task in multitask("linnerud").tasks]
        [('weight', 'regression', 1), ('waist', 'regression', 1), ('pulse', 'regression', 1)]
        >>> stream = multitask(["iris", ([[0.0] * 4] * 8, [0, 1] * 4)], tasks=["species", "coin"])
        >>> [(part.tasks[0].name, len(part)) for part in stream[0].data["train"].parts()]
        [('species', 120), ('coin', 6)]
    """
    seed = whole_number(seed, "seed", 0)
    experiences, shift = whole_number(experiences, "the number of experiences", 1), whole_number(shift, "shift", 0)
    if not 0 <= real_number(validation) < 1:
        raise DataError(f"validation is {validation!r}: give a fraction in [0, 1)")
    if not 0 < real_number(test_fraction) < 1:
        raise DataError(f"test_fraction is {test_fraction!r}: give a number between 0 and 1, or the test rows themselves as test=")
    parts = parts_of(source) if isinstance(source, str) else ()
    several = list[object](parts) if parts else listed(source)
    if several is None and not has_columns(source):
        left, right = ("left", "right") if tasks is None else checked_names(tasks, 2, "tasks", "side")
        found = resolve(cast("Any", source), cast("Any", test), test_fraction, seed)  # neither several nor one with columns
        return overlaid(found, experiences, shift, float(validation), target_domain, (left, right))
    if shift != 2 or target_domain:
        asked = "target_domain" if target_domain else f"shift {shift}"
        raise DataError(f"{asked} is asked of a source with several tasks: it belongs to overlays of one source of images, leave it out")
    if several is None:
        pool = columns_pool(source, test, test_fraction, seed, tasks)
    else:
        pool = _sources_pool(several, test, test_fraction, seed, tasks)
    if parts and isinstance(source, str):
        pool = replace(pool, name=named_source(source)[0].name, described={**pool.described, "source": canonical_name(source)})
    return _spread(pool, experiences, float(validation), seed, {} if tasks is None else {"tasks": list(tasks)})


def _spread(pool: Pool, experiences: int, validation: float, seed: int, options: Mapping[str, Any]) -> Stream:
    """The stream over ``pool``, whose rows are spread over the experiences at random."""
    rows = sum(map(len, pool.train))
    if rows < experiences:
        raise DataError(f"{pool.name} has {rows} training rows, fewer than {experiences} experiences: ask for at most {rows}")
    orders = [permutation(len(piece), seed=seed, purpose="rows", number=number) for number, piece in enumerate(pool.train)]
    starts = [0]  # a source begins where the longer shares of those before it end, so that experiences stay as even as its own shares
    for piece in pool.train:
        starts.append((starts[-1] + len(piece)) % experiences)

    def share(number: int, i: int) -> tuple[int, int]:
        """From where to where in its order source ``number`` gives rows to experience ``i``."""
        size, longer = divmod(len(orders[number]), experiences)
        first = starts[number]
        wrapped = first + longer - experiences  # longer shares lie from `first` on, and again from 0 on
        before = i * size + max(0, min(i, first + longer) - first) + max(0, min(i, wrapped))
        return before, before + size + ((i - first) % experiences < longer)

    def experience(i: int) -> Experience:
        trained, kept = [], []
        for number, piece in enumerate(pool.train):
            start, stop = share(number, i)
            if start < stop:
                cut = start + min(round(validation * (stop - start)), stop - start - 1)
                kept += [piece.subset(orders[number][start:cut].sort().values)] if cut > start else []
                trained.append(piece.subset(orders[number][cut:stop].sort().values))
        data = {"train": join(trained), **({"validation": join(kept)} if kept else {})}
        present = tuple({task.name: task for piece in trained for task in piece.tasks}.values())
        return Experience(i, present, data, f"rows {i}", classes_in(data["train"]))

    return Stream(
        f"{pool.name}/multitask",
        experiences,
        experience,
        lambda i: EvaluationSet(i, join(pool.test), "all test rows"),
        tasks=pool.tasks,
        input_shape=pool.input_shape,
        description={"builder": "multitask", **pool.described, "experiences": experiences, "validation": validation, **options},
        fingerprints=pool.fingerprints,
        sets=lambda i: (0,),
    )


def _sources_pool(given: list[Any], test: Any, test_fraction: float, seed: int, names: object) -> Pool:
    """The rows of several sources, each asked on the task of its source."""
    if not given:
        raise DataError("source is an empty list: give at least one source")
    tests: list[Any] | None = [None] * len(given) if test is None else listed(test)
    if tests is None or len(tests) != len(given):
        told = f"{len(tests)} sources" if tests is not None else "one source"
        raise DataError(
            f"test is {told} and source is a list of {len(given)}: give a list as long, with None where rows are to be split off"
        )
    every: list[Inputs] = []
    for i, (one, own_test) in enumerate(zip(given, tests, strict=True)):
        with naming(f"source {i}"):
            found = one if isinstance(one, str) else as_source(one, f"data/{i}")
            every.append(resolve(found, own_test, test_fraction, seed, regression=True))
    called = checked_names([inputs.name for inputs in every] if names is None else names, len(every), "tasks", "source")
    changes = _fitted(every)
    train, tested = [], []
    for inputs, name, change in zip(every, called, changes, strict=True):
        task = replace(inputs.task, name=name)
        train.append(_asked(inputs.train, task, change))
        tested.append(_asked(inputs.test, task, change))
    described = {
        "source": told_together([i.described["source"] for i in every]),
        "test": told_together([i.described["test"] for i in every]),
    }
    return Pool(
        "+".join(called),
        tuple(train),
        tuple(tested),
        every[0].train.source.input_shape,
        {**described, "seed": seed, "test_fraction": float(test_fraction)},
        lambda: [fingerprint for inputs in every for fingerprint in inputs.fingerprints()],
    )


def _asked(rows: Rows, task: Any, change: Transform | None) -> Data:
    return Data(rows.source, rows.indices, (task,), {task.name: Target(rows.column)}, change)


def _fitted(every: Sequence[Inputs]) -> list[Transform | None]:
    """What brings the inputs of each source to the shape of the first's: nothing, or another size of images."""
    first = every[0].train.source
    wanted, kind = first.input_shape, dtype_of_inputs(first)
    changes: list[Transform | None] = []
    for i, inputs in enumerate(every):
        shape, own = inputs.train.source.input_shape, dtype_of_inputs(inputs.train.source)
        if own != kind:
            one, other = (str(dtype).removeprefix("torch.") for dtype in (own, kind))
            raise DataError(f"source {i} ({inputs.name!r}) has {one} inputs, source 0 ({first.name!r}) {other}: bring all to one type")
        images = len(shape) == len(wanted) == 3 and shape[0] == wanted[0] and kind.is_floating_point
        if shape != wanted and not images:
            raise DataError(
                f"source {i} ({inputs.name!r}) has inputs of shape {shape}, source 0 ({first.name!r}) of {wanted}: bring all to one shape "
                "(images with as many channels are resized)"
            )
        changes.append(None if shape == wanted else Resize(*wanted[1:]))
    return changes
