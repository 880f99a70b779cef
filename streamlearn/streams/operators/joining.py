"""Everything at once: joint training, the upper bound that continual learning is measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamlearn.streams.data import Data, JoinedData, join
from streamlearn.streams.experience import Experience
from streamlearn.streams.operators.deriving import checked_stream, derived
from streamlearn.streams.operators.identity import Apart
from streamlearn.streams.protocols.instances import data_incremental
from streamlearn.streams.stream import Stream

if TYPE_CHECKING:
    from streamlearn.streams.inputs import SourceLike

__all__ = ["joint"]


def joint(source: Stream | SourceLike, *, seed: int = 0, test: SourceLike | None = None, test_fraction: float = 0.2) -> Stream:
    """All rows of all experiences in a single one.

    Protocol: the one experience holds, role by role, the rows of every experience of a stream, on their tasks and in their domains; the
    evaluation sets stay those of the stream, so average accuracy compares with what was measured on it. Of a source: all training rows,
    and one evaluation set.

    Args:
        source: a stream, or a source as for `data_incremental`.
        seed, test, test_fraction: of a source only, as in `data_incremental`.

    Raises:
        DataError: the stream is endless, or the source is none.

    Source: the usual upper bound, e.g. Li and Hoiem, "Learning without Forgetting", ECCV 2016; multi-task training where the experiences
        have different tasks (Caruana, "Multitask Learning", 1997).

    Example:
        >>> from streamlearn.streams import class_incremental
        >>> stream = joint(class_incremental("digits", 5))
        >>> len(stream), len(stream[0].data["train"]), len(stream.sets)
        (1, 1438, 5)
    """
    if not isinstance(source, Stream):
        found = data_incremental(source, 1, seed=seed, test=test, test_fraction=test_fraction)
        return derived(found, "joint", {}, experience=lambda i: found[i], length=1, argument="source")
    base = checked_stream(source, "joint", finite=True)

    def experience(i: int) -> Experience:
        every, apart = list(base), Apart()
        roles = dict.fromkeys(role for one in every for role in one.data)
        data = {role: join(apart([part for one in every if role in one.data for part in one.data[role].parts()])) for role in roles}
        classes: dict[str, tuple[int, ...]] = {}
        for one in every:
            for task, present in one.classes.items():
                classes[task] = tuple(sorted({*classes.get(task, ()), *present}))
        tasks = tuple({task.name: task for one in every for task in one.tasks}.values())
        return Experience(0, tasks, data, "all at once", classes)

    def truth(i: int) -> Data | JoinedData | None:
        known = [found for place in range(len(base)) if (found := base.truth(place)) is not None]
        return join(known) if known else None

    every_set = tuple(range(len(base.sets)))
    return derived(base, "joint", {}, experience=experience, length=1, sets=lambda i: every_set, truth=truth, argument="source")
