"""Scalarizers: equal to TorchJD called by hand, with what they keep belonging to rows and not to places."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from streamlearn.errors import ConfigurationError, UnknownNameError
from torch import Tensor
from torchjd.scalarization import DWA, FAMO

from streamlearn_torchjd import TorchJDScalarizer
from streamlearn_torchjd.memory import Averages, Logits
from streamlearn_torchjd.recipe import scalarizers

OPTIONS: dict[str, dict[str, Any]] = {
    "constant": {"weights": {"a": 0.2, "b": 0.3, "c": 0.5}},
    "cosmos": {"lambda_": 0.5, "weights": {"a": 0.2, "b": 0.3, "c": 0.5}},
    "pbi": {"theta": 1.0, "weights": {"a": 0.2, "b": 0.3, "c": 0.5}},
    "stch": {"mu": 0.5},
}
ROWS = ("a", "b", "c")
LEARNED = {"a": 0.3, "b": -0.2, "c": 0.1}


def losses(values: Sequence[float] = (1.0, 2.0, 0.5), rows: Sequence[str] = ROWS) -> dict[str, Tensor]:
    return {row: torch.tensor(value, requires_grad=True) for row, value in zip(rows, values, strict=True)}


def step(after: dict[str, Tensor] | None = None, **facts: Any) -> Any:
    """As much of a step as a weighting reads; what is learned for task t is ``LEARNED[t]``."""
    run = SimpleNamespace(
        generator=lambda plugin, purpose="": torch.Generator().manual_seed(7), tasks=dict.fromkeys("abc"), device=torch.device("cpu")
    )
    module = lambda name: lambda: torch.tensor(LEARNED[name.split("/")[1]])  # noqa: E731
    return SimpleNamespace(run=run, module=module, supervision=(), updated=True, at=lambda: SimpleNamespace(losses=after), **facts)


def by_hand(method: str) -> Any:
    options = {
        key: torch.tensor([value[row] for row in ROWS]) if isinstance(value, dict) else value
        for key, value in OPTIONS.get(method, {}).items()
    }
    cls = scalarizers()[method]
    module = cls(**options, **({"shape": 3} if "shape" in inspect.signature(cls).parameters else {}))
    for name in ("log_var", "log_scale"):
        if hasattr(module, name):
            getattr(module, name).data = torch.tensor(list(LEARNED.values()))
    return module


def weights(total: Tensor, given: dict[str, Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(total, list(given.values())))


def test_every_scalarizer_that_torchjd_exports_is_offered() -> None:
    import torchjd.scalarization as theirs

    assert {cls.__name__ for cls in scalarizers().values()} == set(theirs.__all__) - {"Scalarizer"}
    assert len(scalarizers()) == 12


@pytest.mark.parametrize("method", sorted(scalarizers()))
def test_it_is_torchjd_on_the_losses_with_its_weights(method: str) -> None:
    plugin, mine, theirs = TorchJDScalarizer(method=method, **OPTIONS.get(method, {})), losses(), losses()
    found = plugin.provide_weighting(mine, step())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = by_hand(method)(torch.stack(list(theirs.values())))
    assert found.shape == ()
    assert torch.equal(found, expected)
    assert weights(found, mine) == weights(expected, theirs)
    assert torch.equal(plugin.provide_weighting(mine, step()), found), "asking twice changes nothing"


def test_dwa_weighs_by_the_two_last_epochs_as_torchjd_does() -> None:
    plugin, oracle = TorchJDScalarizer(method="dwa", temperature=1.5), DWA(temperature=1.5)
    draws = torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(1)) + 0.1
    for epoch in draws:
        for values in epoch:
            mine, theirs = losses(values.tolist()), losses(values.tolist())
            found, expected = plugin.provide_weighting(mine, step()), oracle(torch.stack(list(theirs.values())))
            assert torch.equal(found, expected)
            plugin.after_step(step(losses=mine))
        plugin.after_epoch(None)  # type: ignore[arg-type]
        oracle.step()
    assert len(set(map(float, weights(found, mine)))) == 3


def test_dwa_knows_rows_by_name_and_waits_for_those_that_are_new() -> None:
    averages = Averages()
    for values in ({"a": 4.0, "b": 1.0}, {"a": 2.0, "b": 3.0}):
        averages.add({row: torch.tensor(value) for row, value in values.items()})
        averages.roll()
    older, newer = averages.of(("c", "b", "a"), torch.zeros(3))
    assert (older.tolist(), newer.tolist()) == ([1.0, 1.0, 4.0], [1.0, 3.0, 2.0])


@pytest.mark.parametrize("options", [{}, {"lr": 0.1, "weight_decay": 0.01, "min_losses": {"a": 0.1, "b": 0.0, "c": 0.2}}])
def test_famo_learns_what_torchjd_learns(options: dict[str, Any]) -> None:
    plugin = TorchJDScalarizer(method="famo", **options)
    least = options.get("min_losses")
    theirs = {**options, **({"min_losses": torch.tensor(list(least.values()))} if least else {})}
    oracle = FAMO(3, **theirs)
    draws = torch.rand(6, 2, 3, generator=torch.Generator().manual_seed(2)) + 0.5
    for before, after in draws:
        mine = losses(before.tolist())
        torch.testing.assert_close(plugin.provide_weighting(mine, step()), oracle(before))
        plugin.after_step(step(losses=mine, after=losses(after.tolist())))
        oracle.update(after)
    logits = torch.stack(list(plugin.state_dict()["logits"].values()))
    torch.testing.assert_close(logits, oracle._w.detach())
    assert bool(logits.any())


def test_famo_does_not_move_a_row_that_is_absent() -> None:
    logits = Logits({})
    logits.learn(*({row: torch.tensor(v) for row, v in pair.items()} for pair in ({"a": 2.0, "b": 1.0}, {"a": 1.0, "b": 1.0})))
    before = logits.state_dict()["logits"]["b"]
    logits.learn(*({row: torch.tensor(v) for row, v in pair.items()} for pair in ({"c": 2.0, "a": 1.0}, {"c": 1.0, "a": 1.0})))
    kept = logits.state_dict()
    assert torch.equal(kept["logits"]["b"], before)
    assert [float(kept["adam"][row]["step"]) for row in "abc"] == [2.0, 1.0, 1.0]


@pytest.mark.parametrize("method", ["dwa", "famo"])
def test_a_resume_goes_on_bit_for_bit(method: str) -> None:
    def go(plugin: TorchJDScalarizer, updates: Iterable[int]) -> list[Tensor]:
        found = []
        for update in updates:
            mine = losses([1.0 / (update + 1), 2.0, 0.5 + update])
            found.append(plugin.provide_weighting(mine, step()))
            plugin.after_step(step(losses=mine, after=losses([1.0 / (update + 2), 1.9, 0.4 + update])))
            if update % 2:
                plugin.after_epoch(None)  # type: ignore[arg-type]
        return found

    straight, stopped, resumed = (TorchJDScalarizer(method=method) for _ in range(3))
    expected = go(straight, range(9))[5:]
    go(stopped, range(5))
    resumed.load_state_dict(stopped.state_dict())
    assert all(torch.equal(one, two) for one, two in zip(go(resumed, range(5, 9)), expected, strict=True))


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"method": "famoo"}, UnknownNameError, "unknown method of TorchJD 'famoo': did you mean 'famo'"),
        ({"method": "stch"}, ConfigurationError, "method 'stch' of TorchJD needs the option 'mu': give it a value"),
        ({"method": "stch", "mu": -1.0}, ConfigurationError, r"refuses \(mu=-1.0\): .*strictly positive"),
        ({"learning_rate": 0.0}, ConfigurationError, "option 'learning_rate' is 0.0"),
    ],
)
def test_what_is_wrong_is_told_when_it_is_made(options: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        TorchJDScalarizer(**options)


def test_losses_that_it_refuses_are_told_by_their_names() -> None:
    with pytest.raises(ConfigurationError, match=r"'geometric_mean' of TorchJD refuses the losses of a, b: .*non-negative"):
        TorchJDScalarizer(method="geometric_mean").provide_weighting(losses([1.0, -1.0], "ab"), step())


def test_a_row_that_is_part_of_a_task_shares_what_is_learned_for_it() -> None:
    plugin = TorchJDScalarizer(method="uw")
    whole = plugin.provide_weighting(losses([2.0], ["a"]), step())
    assert torch.equal(plugin.provide_weighting(losses([2.0], ["a@photo"]), step()), whole)
    with pytest.raises(ConfigurationError, match="row 'z' belongs to none of the tasks a, b, c"):
        plugin.provide_weighting(losses([2.0], ["z"]), step())
