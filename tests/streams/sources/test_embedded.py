from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, models, streams
from streamlearn.errors import DataError
from streamlearn.streams.sources import TensorSource, named_source
from streamlearn.streams.sources.embedded import embedded


class Counting(nn.Module):
    """An encoder with statistics and dropout, which counts the rows that pass."""

    def __init__(self, seed: int = 0, scale: float = 1.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5), nn.Dropout(0.5))
        self.scale, self.rows = scale, 0

    def forward(self, x: Tensor) -> Tensor:
        self.rows += len(x)
        return self.layers(x) * self.scale

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


def test_the_rows_are_the_outputs_in_evaluation_mode_and_all_else_stays() -> None:
    encoder, (train, test) = Counting(), named_source("digits")
    encoder.layers[0].eval()
    state = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    before, modes = torch.get_rng_state(), [module.training for module in encoder.modules()]
    for made, rows in ((embedded("digits", encoder, batch_size=100), train), (embedded("digits", encoder, test=True), test)):
        everything = torch.arange(len(rows))
        taken = made.take(everything)
        assert (made.name, len(made), made.input_shape, made.class_names) == (rows.name, len(rows), (5,), rows.class_names)
        assert torch.equal(taken.targets["y"], rows.targets["y"])
        assert not taken.x.requires_grad
        expected = Counting().eval().layers(rows.take(everything).x).detach()
        torch.testing.assert_close(taken.x, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), before)
    assert [module.training for module in encoder.modules()] == modes
    assert all(torch.equal(tensor, state[name]) for name, tensor in encoder.state_dict().items())


def test_a_stream_is_built_and_trained_on_it() -> None:
    encoder = Counting()
    train, test = embedded("digits", encoder), embedded("digits", encoder, test=True)
    stream = streams.class_incremental(train, 5, test=test)
    assert stream.input_shape == (5,)
    assert [task.name for task in stream.tasks] == ["digits"]
    Engine(models.mlp(stream, ()), lambda p: torch.optim.SGD(p, lr=0.1)).run(stream)
    assert encoder.rows == len(train) + len(test)


def test_features_are_kept_and_found_again_by_what_they_depend_on(tmp_path: Path) -> None:
    first = Counting()
    made = embedded("digits", first, cache=tmp_path / "features")
    again = Counting()
    found = embedded("digits", again, cache=tmp_path / "features")
    assert (first.rows, again.rows) == (len(made), 0)
    assert found.fingerprint() == made.fingerprint()
    assert found.class_names == made.class_names
    other_rows = TensorSource(torch.rand(9, 64), {"y": torch.arange(9) % 3}, "digits")
    changed = Counting()
    with torch.no_grad():
        changed.layers[2].running_mean += 1.0
    for source, encoder in (("digits", Counting(seed=1)), ("digits", Counting(scale=2.0)), ("digits", changed), (other_rows, Counting())):
        embedded(source, encoder, cache=tmp_path / "features")
        assert encoder.rows
    kept = sorted(path.name for path in (tmp_path / "features").iterdir())
    assert len(kept) == 5
    assert all(name.startswith("digits-") and name.endswith(".safetensors") for name in kept)


@pytest.mark.parametrize("content", [b"", b"rubbish", None])
def test_a_damaged_file_is_written_anew(content: bytes | None, tmp_path: Path) -> None:
    made = embedded("digits", Counting(), cache=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(whole[:-100] if content is None else content)
    encoder = Counting()
    assert embedded("digits", encoder, cache=tmp_path).fingerprint() == made.fingerprint()
    assert encoder.rows
    assert path.read_bytes() == whole
    assert list(tmp_path.iterdir()) == [path]


def test_arrays_and_maps_of_features_are_welcome() -> None:
    x = torch.rand(7, 2, 4, 4)
    made = embedded((x, [0, 1, 2, 0, 1, 2, 0]), nn.MaxPool2d(2), batch_size=3)
    assert made.input_shape == (8,)
    assert torch.equal(made.take(torch.arange(7)).x, nn.functional.max_pool2d(x, 2).flatten(1))


class Wrong(nn.Module):
    def __init__(self, give: Any) -> None:
        super().__init__()
        self.give = give

    def forward(self, x: Tensor) -> Any:
        return self.give(x)


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda x: x.sum(), r"the encoder gives torch.float32 of shape \(\) for 6 rows of 'data'"),
        (lambda x: x[:2], r"the encoder gives torch.float32 of shape \(2, 3\) for 6 rows"),
        (lambda x: x.long(), "the encoder gives torch.int64"),
        (lambda x: [x], "the encoder gives list"),
        (lambda x: x / 0, "row 0 of x of source 'data' holds (infinity|NaN)"),
    ],
)
def test_what_is_no_row_of_features_is_refused(give: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        embedded((torch.ones(6, 3), [0, 1, 2, 0, 1, 2]), Wrong(give))


def test_bad_arguments_are_refused(tmp_path: Path) -> None:
    pair = (torch.ones(6, 3), [0, 1, 2, 0, 1, 2])
    with pytest.raises(DataError, match="batch_size is 0: give at least 1"):
        embedded(pair, nn.Identity(), batch_size=0)
    with pytest.raises(DataError, match="test=True asks for the test rows of a named source"):
        embedded(pair, nn.Identity(), test=True)
    with pytest.raises(DataError, match="'iris' has no test rows of its own" if named_source("iris")[1] is None else "never"):
        embedded("iris", nn.Identity(), test=True)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DataError, match="the features cannot be kept in"):
        embedded(pair, nn.Identity(), cache=tmp_path / "file")
