"""Small models for a stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import nn

from streamlearn.errors import ConfigurationError
from streamlearn.models.initialization import mark_untouched
from streamlearn.models.model import Heads, Model

if TYPE_CHECKING:
    from streamlearn.streams import Stream

__all__ = ["mlp"]


def mlp(stream: Stream, hidden: Sequence[int] = (100,), *, dropout: float = 0.0) -> Model:
    """A multi-layer perceptron with ReLU and a linear head for every task of ``stream``.

    Its initial weights are torch's defaults. An `Engine` draws them anew from its own seed, unless they have been changed
    since (loaded, trained, copied): then they are kept.

    Args:
        stream: tells the shape of inputs, which are flattened, and the tasks.
        hidden: widths of the hidden layers, each at least 1; empty gives a linear model.
        dropout: probability of dropout after each hidden layer, in [0, 1).

    Raises:
        ConfigurationError: a width below 1, or a probability outside [0, 1).

    Example:
        >>> from streamlearn import streams
        >>> mlp(streams.class_incremental("digits"), hidden=(100,)).heads.sizes()
        {'digits': 10}
    """
    if any(width < 1 for width in hidden):
        raise ConfigurationError(f"hidden widths must be at least 1, got {tuple(hidden)}: remove the zero or negative ones")
    if not 0 <= dropout < 1:
        raise ConfigurationError(f"dropout must lie in [0, 1), got {dropout}")
    width = math.prod(stream.input_shape)
    layers: list[nn.Module] = [nn.Flatten()] if len(stream.input_shape) != 1 else []
    for size in hidden:
        layers += [nn.Linear(width, size), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        width = size
    return mark_untouched(Model(nn.Sequential(*layers), Heads(width, stream.tasks)))
