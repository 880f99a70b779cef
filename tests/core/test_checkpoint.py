from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from streamlearn import Engine
from streamlearn.core import checkpoint
from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint, write_checkpoint
from streamlearn.errors import CheckpointError, RunFolderError
from streamlearn.plugins import EWC
from tests.core.support import Stop, class_stream, net, same, sgd, stop_at

STATE: dict[str, Any] = {
    "number": 3, "float": 0.1, "none": None, "true": True, "text": "é/ü", "empty": {}, "list": [1, [2.5, "x"], {}], "big": 2**60,
    "tensors": {
        "f32": torch.tensor([0.1, float("nan"), float("inf")]), "f64": torch.full((2, 3), 0.1, dtype=torch.float64),
        "i64": torch.tensor([[2**62]]), "bool": torch.tensor([True, False]), "scalar": torch.tensor(1.5),
        "nothing": torch.zeros(0, 3), "half": torch.ones(2, dtype=torch.bfloat16),
    },
    "view": torch.arange(12.0).reshape(3, 4).T[1:], "a/b": torch.zeros(1), "a": {"b": torch.ones(1)},
}  # fmt: skip


def equal(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return bool(a == b)


def test_nested_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, 7, STATE)
    assert path.name == "step-00000007"
    assert equal(read_checkpoint(path), STATE)
    shared = torch.rand(4)
    found = read_checkpoint(write_checkpoint(tmp_path, 8, {"one": shared, "two": shared, "part": shared[1:]}))
    assert torch.equal(found["one"], found["two"])
    assert torch.equal(found["part"], shared[1:])


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"a": [{"b": object()}]}, "'a/0/b' is a object"),
        ({"a": {1, 2}}, "'a' is a set"),
        ({"a": {"c": lambda: 1}}, "'a/c' is a function"),
        ({"a": {3: 1}}, "'a' has keys that are not strings: \\[3\\]"),
        ({"a": {"$tensor": "x"}}, "'a'.*tensor"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_its_path(tree: Any, told: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 1, {"x": 1})
    with pytest.raises(CheckpointError, match=told):
        write_checkpoint(tmp_path, 2, tree)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000001"]


def two(folder: Path) -> tuple[Path, Path]:
    return write_checkpoint(folder, 3, {"x": torch.tensor([3.0])}), write_checkpoint(folder, 5, {"x": torch.tensor([5.0])})


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("harm", ["truncated", "flipped", "gone", "empty"])
def test_a_damaged_file_is_refused_by_name_and_the_one_before_is_used(name: str, harm: str, tmp_path: Path) -> None:
    old, new = two(tmp_path)
    data = bytearray((new / name).read_bytes())
    if harm == "gone":
        (new / name).unlink()
    else:
        data[len(data) // 2] ^= 4
        (new / name).write_bytes({"truncated": data[:-1], "flipped": data, "empty": b""}[harm])
    found, refused = latest_checkpoint(tmp_path)
    assert found == old
    assert len(refused) == 1
    assert str(new / name) in refused[0]
    words = {"truncated": "truncated", "empty": "truncated", "flipped": "damaged", "gone": "missing"}
    assert words[harm] in refused[0]
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(new)


def test_no_flip_of_a_bit_in_the_manifest_is_misread(tmp_path: Path) -> None:
    old, new = two(tmp_path)
    whole = (new / "MANIFEST.json").read_bytes()
    refusals = 0
    for place in range(len(whole)):
        harmed = bytearray(whole)
        harmed[place] ^= 1 << (place % 7)
        (new / "MANIFEST.json").write_bytes(harmed)
        found, refused = latest_checkpoint(tmp_path)
        assert (found, len(refused)) in ((old, 1), (new, 0)), place
        refusals += len(refused)
        if not refused:
            assert float(read_checkpoint(new)["x"]) == 5.0
    assert refusals > 200


def test_a_missing_manifest_a_newer_format_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    old, new = two(tmp_path)
    manifest = json.loads((new / "MANIFEST.json").read_text())
    (new / "MANIFEST.json").write_text(json.dumps(manifest | {"format": 2}))
    assert latest_checkpoint(tmp_path) == (old, [f"{new} has format 2, this streamlearn reads up to 1: upgrade streamlearn"])
    (new / "MANIFEST.json").unlink()
    found, (told,) = latest_checkpoint(tmp_path)
    assert found == old
    assert told == f"{new / 'MANIFEST.json'} is missing: the checkpoint was not finished"
    (old / "MANIFEST.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"there is no usable checkpoint.*not finished.*damaged.*start the run again"):
        latest_checkpoint(tmp_path)
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match="there is no usable checkpoint"):
        latest_checkpoint(tmp_path / "none")


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for update in (1, 2, 3):
        write_checkpoint(tmp_path, update, {"x": update})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000003"]


def test_a_second_checkpoint_at_the_same_update_never_replaces_the_first(tmp_path: Path) -> None:
    for value in (1, 2, 3):
        write_checkpoint(tmp_path, 7, {"x": value})
        assert read_checkpoint(latest_checkpoint(tmp_path)[0]) == {"x": value}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000007-01", "step-00000007-02"]


@pytest.mark.parametrize("where", ["save_file", "fsync", "rename"])
@pytest.mark.parametrize(
    ("code", "told"), [(errno.ENOSPC, "the disk is full: free some space"), (errno.EACCES, "choose a folder that can be written")]
)
def test_a_write_that_fails_midway_leaves_the_old_ones(
    where: str, code: int, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = two(tmp_path)

    def fail(*given: Any, **named: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        if where == "save_file":
            patch.setattr(checkpoint, "save_file", fail)
        elif where == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(Path, "rename", fail)
        with pytest.raises(RunFolderError, match=f"the checkpoint of update 9 could not be written.*{told}"):
            write_checkpoint(tmp_path, 9, {"x": 1})
    assert sorted(tmp_path.iterdir()) == [old, new]
    assert latest_checkpoint(tmp_path) == (new, [])


def test_a_full_disk_ends_the_run_which_can_be_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = class_stream()
    straight = Engine(net(), sgd(), [EWC(strength=2)], batch_size=10).run(stream, output=tmp_path / "straight")
    real, writes = checkpoint.save_file, []

    def fail_third(*given: Any) -> None:
        writes.append(1)
        if len(writes) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(*given)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", fail_third)
        with pytest.raises(RunFolderError, match="the disk is full"):
            Engine(net(), sgd(), [EWC(strength=2)], batch_size=10).run(stream, output=tmp_path / "full")
    found = Engine(net(), sgd(), [EWC(strength=2)], batch_size=10).resume(tmp_path / "full", stream)
    assert same(found.model.state_dict(), straight.model.state_dict())
    assert found.events == straight.events


def test_a_damaged_newest_checkpoint_costs_some_steps_and_nothing_else(tmp_path: Path) -> None:
    stream = class_stream()

    def engine(**options: Any) -> Engine:
        return Engine(net(), sgd(), [EWC(strength=2)], batch_size=5, checkpoint_every=2, **options)

    straight = engine().run(stream, output=tmp_path / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(7)).run(stream, output=tmp_path / "hurt")
    newest = latest_checkpoint(tmp_path / "hurt" / "checkpoints")[0]
    assert newest.name == "step-00000006"
    (newest / "state.json").write_text("{}")
    with pytest.warns(RuntimeWarning, match=r"a damaged checkpoint was passed over: .*state\.json.*resuming from step-00000004"):
        found = engine().resume(tmp_path / "hurt", stream)
    assert same(found.model.state_dict(), straight.model.state_dict())
    assert found.events == straight.events


def test_a_process_killed_while_it_writes_leaves_no_half_checkpoint(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, torch\nfrom pathlib import Path\nfrom streamlearn.core import checkpoint\n"
        "folder = Path(sys.argv[1])\ncheckpoint.write_checkpoint(folder, 1, {'x': torch.ones(2)})\n"
        "real = checkpoint._fsync\n"
        "def kill(path):\n    real(path)\n    if path.name == sys.argv[2]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "checkpoint._fsync = kill\ncheckpoint.write_checkpoint(folder, 2, {'x': torch.zeros(2)})\n"
    )
    for number, at in enumerate(("state.json", "MANIFEST.json")):
        folder = tmp_path / str(number)
        done = subprocess.run([sys.executable, "-c", code, str(folder), at], check=False, capture_output=True, text=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
        found, refused = latest_checkpoint(folder)
        assert (found.name, refused) == ("step-00000001", [])
        assert float(read_checkpoint(found)["x"].sum()) == 2.0
        assert len(list(folder.iterdir())) == 2, "the half one lies under another name"
        write_checkpoint(folder, 3, {"x": 1})
        assert sorted(p.name for p in folder.iterdir()) == ["step-00000001", "step-00000003"]
