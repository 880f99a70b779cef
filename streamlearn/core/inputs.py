"""Inputs that a model cannot read: told in terms of the stream, because torch speaks of matrices."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import nn

from streamlearn.errors import DataError

if TYPE_CHECKING:
    from streamlearn.streams import Batch

__all__ = ["InputForm", "readable"]


class InputForm:
    """The type and shape of the inputs of a run, which the first batch sets and every other must have.

    Asked once for each phase and evaluation set, not for each batch: within one, a source keeps its own form.
    """

    def __init__(self) -> None:
        self._known: tuple[torch.dtype, tuple[int, ...], str] | None = None

    def check(self, batch: Batch, where: str) -> None:
        """Compare ``batch``, which belongs to ``where``, with the first.

        Raises:
            DataError: it has another type or shape.
        """
        form = batch.x.dtype, tuple(batch.x.shape[1:])
        if self._known is None:
            self._known = *form, where
        if form != self._known[:2]:
            dtype, shape, first = self._known
            raise DataError(
                f"inputs of {where} are {_type(form[0])} of shape {form[1]}, but those of {first} are {_type(dtype)} of shape {shape}: "
                "bring all to one type and shape"
            )


@contextmanager
def readable(batch: Batch, model: nn.Module) -> Iterator[None]:
    """Tell an error within it as one of the inputs, where their type or shape is what a model like this one cannot read.

    Raises:
        DataError: in place of torch's own error, which is its cause.
    """
    try:
        yield
    except (RuntimeError, TypeError, IndexError) as error:
        x = batch.x
        weights = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        embeds = any(isinstance(module, (nn.Embedding, nn.EmbeddingBag)) for module in model.modules())
        wrong_type = x.dtype != weights and not (embeds and not x.is_floating_point())
        if isinstance(error, DataError) or hasattr(error, "__notes__") or not (wrong_type or x.dim() < 2):
            raise
        source = batch.segments[0].source if batch.segments else ""
        cure = f"convert them, for example with x.to(torch.{_type(weights)})" if wrong_type else "give every row a shape, x.unsqueeze(1)"
        raise DataError(
            f"the model cannot read the inputs of source {source!r}, {_type(x.dtype)} of shape {tuple(x.shape[1:])}, with weights of type "
            f"{_type(weights)}: {cure}, or give a model that reads them ({type(error).__name__}: {str(error).splitlines()[0]})"
        ) from error


def _type(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
