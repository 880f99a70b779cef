"""What every test may use, and what no test may leave behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

# One thread, so that a sum has one order on every machine. torch reads the variable when it is first imported, which
# may be much later, or never: the tests of light parts need not wait for it.
os.environ["OMP_NUM_THREADS"] = "1"
if "torch" in sys.modules:
    sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder with real data sets, as torchvision lays them out; without it the test is skipped."""
    named = os.environ.get("STREAMLEARN_DATA")
    if not named:
        pytest.skip("needs real files: set STREAMLEARN_DATA to a folder laid out as torchvision does")
    folder = Path(named).expanduser().resolve()
    if not folder.is_dir():
        pytest.fail(f"STREAMLEARN_DATA is set, but {folder} is no folder", pytrace=False)
    return folder


def _settings(torch: Any) -> dict[str, tuple[Any, Any, Any]]:
    """torch's global settings: the value that tests start from, the value now, and the function that sets it."""
    cudnn = torch.backends.cudnn
    return {
        "default dtype": (torch.float32, torch.get_default_dtype(), torch.set_default_dtype),
        "default device": (torch.device("cpu"), torch.get_default_device(), torch.set_default_device),
        "number of threads": (1, torch.get_num_threads(), torch.set_num_threads),
        "gradient mode": (True, torch.is_grad_enabled(), torch.set_grad_enabled),
        "deterministic algorithms": (0, torch.get_deterministic_debug_mode(), torch.set_deterministic_debug_mode),
        "cudnn.deterministic": (False, cudnn.deterministic, lambda value: setattr(cudnn, "deterministic", value)),
        "cudnn.benchmark": (False, cudnn.benchmark, lambda value: setattr(cudnn, "benchmark", value)),
    }


@pytest.fixture(autouse=True)
def torch_is_left_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Seed torch as pytest-randomly seeds ``random`` and numpy; fail a test that changes a global setting of torch."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(request.config.getoption("randomly_seed", 0) + crc32(request.node.nodeid.encode()))
    yield
    if not (torch := sys.modules.get("torch")):
        return
    changed = {name: row for name, row in _settings(torch).items() if row[0] != row[1]}
    for usual, _, restore in changed.values():
        restore(usual)
    if changed:
        listed = ", ".join(f"{name} ({usual} became {now})" for name, (usual, now, _) in changed.items())
        pytest.fail(f"this test changed torch for all others: {listed}", pytrace=False)
