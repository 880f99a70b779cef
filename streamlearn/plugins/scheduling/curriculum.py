"""Curriculum: meet the experiences of a stream from easy to hard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import model_validator

from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.streams import Experience, Stream

__all__ = ["Curriculum", "order_by"]


def order_by(difficulty: Sequence[float], *, descending: bool = False) -> list[int]:
    """The places of ``difficulty`` from the smallest to the largest, or the other way round; equal ones keep their order.

    Example:
        >>> order_by([3, 1, 3, 2]), order_by([3, 1, 3, 2], descending=True)
        ([1, 3, 0, 2], [0, 2, 3, 1])
    """
    return sorted(range(len(difficulty)), key=lambda place: -difficulty[place] if descending else difficulty[place])


class Curriculum(Plugin):
    """A curriculum: the experiences of the stream come in another order, each with its evaluation set.

    Either the order is given outright, or experiences are sorted by how many rows or classes they have. Everything that counts
    experiences counts them in the new order: the record, the accuracy matrix, other plugins. A pure function of the stream and the
    options, so a resume finds the same order.

    Beside `Joint`, which trains each experience together with all before it, the training set grows from easy to hard, as in the
    paper.

    Args:
        order: numbers of the experiences of the given stream, from 0, each once, the first to be met first.
        by: what sorts them when no order is given: ``"classes"``, the classes present, summed over the tasks, or ``"rows"``, the rows
            trained on. Equal ones keep the order of the stream.
        descending: the most first (an anti-curriculum, where the most is the hardest).

    Raises:
        ConfigurationError: ``order`` does not name every experience of the stream once.

    Cost: sorting builds every experience once, before the run. Memory: none.

    Reference: Bengio et al., Curriculum learning, ICML 2009; anti-curriculum: McCann et al., arXiv 1806.08730. Deviation: the paper's
    distributions add harder examples to the easy ones within one training set; here whole experiences change places.

    Example:
        >>> from streamlearn import streams
        >>> from streamlearn.plugins import Curriculum
        >>> stream = streams.class_incremental("digits", classes=[[0, 1, 2], [3], [4, 5]])
        >>> [len(e.classes["digits"]) for e in Curriculum(by="classes").transform_stream(stream)]
        [1, 2, 3]
    """

    info = PluginInfo(
        name="curriculum",
        family="scheduling",
        summary="Reorders the experiences of the stream, from easy to hard.",
        reference="Bengio et al. 2009, ICML; anti-curriculum: McCann et al. 2018, arXiv 1806.08730",
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `Curriculum`."""

        order: tuple[int, ...] | None = None
        by: Literal["classes", "rows"] = "classes"
        descending: bool = False

        @model_validator(mode="after")
        def _one_rule(self) -> Any:
            if self.order is not None and {"by", "descending"} & self.model_fields_set:
                raise ValueError("order says everything: leave by and descending out, or order")
            return self

    @hookimpl
    def transform_stream(self, stream: Stream) -> Stream:
        """Change the order."""
        order = self._given(stream) if self.config.order is not None else self._sorted(stream)
        numbers = stream.describe()["part"] or range(len(stream))  # a slice counts in numbers of the whole
        return stream.reordered([numbers[place] for place in order])

    def _given(self, stream: Stream) -> list[int]:
        order = list(self.config.order)
        if sorted(order) != list(range(len(stream))):
            raise ConfigurationError(
                f"plugin {self.name}: order is {order}, but stream {stream.name!r} has the experiences 0 to {len(stream) - 1}: "
                "name each of them once"
            )
        return order

    def _sorted(self, stream: Stream) -> list[int]:
        measure = _classes if self.config.by == "classes" else _rows
        return order_by([measure(experience) for experience in stream], descending=self.config.descending)


def _classes(experience: Experience) -> int:
    return sum(len(classes) for classes in experience.classes.values())


def _rows(experience: Experience) -> int:
    return len(experience.data[experience.main_role])
