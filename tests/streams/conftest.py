from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from streamlearn.streams.data import Columns
from streamlearn.streams.sources import TensorSource


class CountingSource(TensorSource):
    """Counts how many rows were ever asked for."""

    rows_taken = 0

    def take(self, index: Tensor) -> Columns:
        self.rows_taken += len(index)
        return super().take(index)


@pytest.fixture
def toy() -> Callable[..., TensorSource]:
    """Makes a source whose row i has the value i everywhere, and labels in turn."""

    def make(rows: int = 12, classes: int = 3, name: str = "toy", kind: type[TensorSource] = TensorSource) -> TensorSource:
        x = torch.arange(rows, dtype=torch.float32).reshape(-1, 1).repeat(1, 4)
        return kind(x, {"y": torch.arange(rows) % classes}, name)

    return make


@pytest.fixture
def counting() -> type[CountingSource]:
    return CountingSource
