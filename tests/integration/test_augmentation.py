"""A data set that augments at random draws for an update what it would draw for it in any run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from streamlearn import Engine, streams
from streamlearn.plugins import EWC, Replay
from tests.core.support import Stop, same, sgd, stop_at
from tests.integration.test_resume import everything


class Noisy(Dataset[Any]):
    """Rows with fresh noise from torch's global generator each time."""

    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(1)
        self.x, self.targets = torch.randn(48, 4, generator=draw), torch.arange(48) % 3

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.x[i] + 0.5 * torch.randn(4), int(self.targets[i])


def stream() -> streams.Stream:
    return streams.data_incremental(Noisy(), 2, test=(torch.randn(9, 4, generator=torch.Generator().manual_seed(2)), torch.arange(9) % 3))


def engine(**options: Any) -> Engine:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))

    return Engine(model, sgd(), [Replay(capacity=8), EWC(strength=2.0)], batch_size=8, checkpoint_every=1, **options)


def test_two_runs_are_equal_whatever_the_user_has_drawn() -> None:
    torch.manual_seed(3)
    first = dict(engine().run(stream()).model.state_dict())  # type: ignore[attr-defined]
    torch.manual_seed(4)
    assert same(first, dict(engine().run(stream()).model.state_dict()))  # type: ignore[attr-defined]


@pytest.mark.parametrize("place", [1, 4])
def test_a_resumed_run_equals_the_straight_one(tmp_path: Path, place: int) -> None:
    engine().run(stream(), output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(place)).run(stream(), output=tmp_path / "broken")
    torch.manual_seed(5)
    engine().resume(tmp_path / "broken", stream())
    assert same(everything(tmp_path / "straight"), everything(tmp_path / "broken"))
