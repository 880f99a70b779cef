"""Aggregators: equal to TorchJD called by hand, with a state that belongs to rows and not to places."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from streamlearn.core.gradients import TaskRows
from streamlearn.errors import ConfigurationError, MissingExtraError, UnknownNameError
from torch import Tensor
from torchjd.aggregation import PCD, ExcessMTL, GradVac

from streamlearn_torchjd import TorchJDAggregator
from streamlearn_torchjd.recipe import Recipe, aggregators
from streamlearn_torchjd.state import STATEFUL, is_stateful

OPTIONS: dict[str, dict[str, Any]] = {
    "cagrad": {"c": 0.5},
    "constant": {"weights": {"a": 0.2, "b": 0.3, "c": 0.5, "d": 1.0}},
    "fairgrad": {"alpha": 1.0},
    "graddrop": {"leak": {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.0}},
    "krum": {"n_byzantine": 1},
    "trimmed_mean": {"trim_number": 1},
}
NEEDS = {"cagrad": ["cvxpy"], "nash_mtl": ["cvxpy", "ecos"], "upgrad": ["quadprog", "qpsolvers"], "dualproj": ["quadprog", "qpsolvers"]}
ROWS = ("a", "b", "c", "d")


def needed(method: str) -> None:
    missing = [package for package in NEEDS.get(method, []) if find_spec(package) is None]
    if missing:
        pytest.skip(f"{method} needs {missing[0]}, which is not installed")


def step(update: int = 0) -> Any:
    """As much of a step as a combiner reads."""
    return SimpleNamespace(run=SimpleNamespace(generator=lambda plugin, purpose="": torch.Generator().manual_seed(100 + update)))


def jacobian(seed: int, rows: int = 4) -> Tensor:
    return torch.randn(rows, 7, generator=torch.Generator().manual_seed(seed)) + 0.3


def by_hand(method: str) -> Any:
    """The aggregator as TorchJD's users make it."""
    options = {
        key: torch.tensor([value[row] for row in ROWS]) if isinstance(value, dict) else value
        for key, value in OPTIONS.get(method, {}).items()
    }
    cls = aggregators()[method]
    return cls(**options, **({"n_tasks": 4} if "n_tasks" in inspect.signature(cls).parameters else {}))


def test_every_aggregator_that_torchjd_exports_is_offered() -> None:
    import torchjd.aggregation as theirs

    classes = [getattr(theirs, name) for name in theirs.__all__]
    leaves = {c.__name__ for c in classes if isinstance(c, type) and issubclass(c, theirs.Aggregator)}
    assert {cls.__name__ for cls in aggregators().values()} == leaves - {"Aggregator", "WeightedAggregator", "GramianWeightedAggregator"}
    assert len(aggregators()) == 20
    assert {method for method, cls in aggregators().items() if is_stateful(cls)} == set(STATEFUL)


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem")
@pytest.mark.parametrize("method", sorted(aggregators()))
def test_it_is_torchjd_on_the_jacobian_over_several_steps(method: str) -> None:
    needed(method)
    plugin, oracle = TorchJDAggregator(method=method, **OPTIONS.get(method, {})), by_hand(method)
    for update in range(4):
        matrix = jacobian(update)
        before = torch.random.get_rng_state()
        found = plugin.provide_gradient_combination(TaskRows(ROWS, matrix), step(update))
        assert torch.equal(torch.random.get_rng_state(), before)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(100 + update)
            expected = oracle(matrix)
        assert torch.equal(found, expected)
        assert bool(found.isfinite().all())


@pytest.mark.parametrize("method", sorted(aggregators()))
def test_a_resume_goes_on_bit_for_bit(method: str) -> None:
    needed(method)
    straight, stopped, resumed = (TorchJDAggregator(method=method, **OPTIONS.get(method, {})) for _ in range(3))
    for update in range(3):
        for plugin in (straight, stopped):
            plugin.provide_gradient_combination(TaskRows(ROWS, jacobian(update)), step(update))
    resumed.load_state_dict(stopped.state_dict())
    for update in range(3, 6):
        one, two = (p.provide_gradient_combination(TaskRows(ROWS, jacobian(update)), step(update)) for p in (straight, resumed))
        assert torch.equal(one, two)


@pytest.mark.parametrize("method", [*sorted(STATEFUL), "mgda"])
def test_state_belongs_to_rows_and_not_to_places(method: str) -> None:
    """What a row keeps goes with it when rows change places; TorchJD would give it to whoever stands there."""
    needed(method)
    order = [2, 0, 3, 1]
    first = {"first": "a"} if method == "pcd" else {}  # of pcd the first row is another objective
    one, two = (TorchJDAggregator(method=method, **first) for _ in range(2))
    for update in range(3):
        for plugin in (one, two):
            plugin.provide_gradient_combination(TaskRows(ROWS, jacobian(update)), step(update))
    matrix, names = jacobian(9), tuple(ROWS[place] for place in order)
    found = one.provide_gradient_combination(TaskRows(ROWS, matrix), step(9))
    moved = two.provide_gradient_combination(TaskRows(names, matrix[order]), step(9))
    if method != "gradvac":  # which meets the others in an order that is drawn by place
        torch.testing.assert_close(moved, found, rtol=1e-3, atol=1e-5)
    kept, other = one.state_dict(), two.state_dict()
    assert kept.keys() == other.keys()
    if method == "pcd":
        assert kept["squared_norms"] == pytest.approx(other["squared_norms"])
    if method == "excess_mtl":
        assert kept["weights"] == pytest.approx(other["weights"])


@pytest.mark.parametrize("method", sorted(STATEFUL))
def test_rows_come_and_go(method: str) -> None:
    needed(method)
    plugin = TorchJDAggregator(method=method)
    seen = [("a", "b"), ("a", "b", "c"), ("c",), ("b", "a"), ("d", "a", "b", "c")]
    for update, names in enumerate(seen):
        found = plugin.provide_gradient_combination(TaskRows(names, jacobian(update, len(names))), step(update))
        assert bool(found.isfinite().all())
        assert bool(found.any())
    kept = next(value for value in plugin.state_dict().values() if isinstance(value, dict))
    assert set(kept) == {"a", "b", "c", "d"}


def test_an_absent_row_keeps_its_target_cosines_which_torchjd_would_hand_to_another() -> None:
    plugin = TorchJDAggregator(method="gradvac")
    plugin.provide_gradient_combination(TaskRows(("a", "b"), jacobian(0, 2)), step(0))
    before = plugin.state_dict()["cosines"]["a"]["b"]
    assert before != 0.0
    plugin.provide_gradient_combination(TaskRows(("a", "c"), jacobian(1, 2)), step(1))
    cosines = plugin.state_dict()["cosines"]
    assert cosines["a"]["b"] == before
    fresh, other = GradVac(), TorchJDAggregator(method="gradvac")
    matrix = jacobian(2, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(102)
        expected = fresh(matrix)
    other.provide_gradient_combination(TaskRows(("a", "b"), jacobian(0, 2)), step(0))
    assert torch.equal(other.provide_gradient_combination(TaskRows(("x", "y"), matrix), step(2)), expected), "a pair that has not met"


def test_a_new_row_of_pcd_enters_with_its_present_norm() -> None:
    plugin, oracle = TorchJDAggregator(method="pcd", tau=0.5), PCD(tau=0.5)
    always = jacobian(0, 3)
    for update in range(5):
        plugin.provide_gradient_combination(TaskRows(("a", "b"), always[:2]), step(update))
        oracle(always)
    found = plugin.provide_gradient_combination(TaskRows(("a", "b", "c"), always), step(5))
    torch.testing.assert_close(found, oracle(always), msg="as if its norm had always been this one")


def test_a_row_that_rests_keeps_its_share_of_the_weights_of_excess_mtl() -> None:
    plugin = TorchJDAggregator(method="excess_mtl")
    plugin.provide_gradient_combination(TaskRows(("a", "b", "c"), jacobian(0, 3)), step(0))
    before = plugin.state_dict()["weights"]
    plugin.provide_gradient_combination(TaskRows(("c", "a"), jacobian(1, 2)), step(1))
    after = plugin.state_dict()["weights"]
    assert after["b"] == before["b"]
    assert sum(after.values()) == pytest.approx(1.0)
    assert after["a"] != before["a"]


def test_excess_mtl_starts_anew_where_the_shared_parameters_are_others() -> None:
    plugin, fresh = TorchJDAggregator(method="excess_mtl"), ExcessMTL()
    plugin.provide_gradient_combination(TaskRows(("a", "b"), jacobian(0, 2)[:, :5]), step(0))
    plugin.load_state_dict(plugin.state_dict())
    assert torch.equal(plugin.provide_gradient_combination(TaskRows(("a", "b"), jacobian(1, 2)), step(1)), fresh(jacobian(1, 2)))


def test_the_primary_objective_of_pcd_is_named() -> None:
    matrix = jacobian(3, 3)
    plugin = TorchJDAggregator(method="pcd", first="c", tau={"a": 0.1, "b": 0.9})
    found = plugin.provide_gradient_combination(TaskRows(("a", "b", "c"), matrix), step())
    assert torch.equal(found, PCD(tau=torch.tensor([0.1, 0.9]))(matrix[[2, 0, 1]]))


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"method": "upgrade"}, UnknownNameError, "unknown method of TorchJD 'upgrade': did you mean 'upgrad'"),
        (
            {"method": "mgda", "max_iter": 3},
            UnknownNameError,
            "unknown option of method 'mgda' of TorchJD 'max_iter': did you mean 'max_iters'",
        ),
        ({"method": "krum"}, ConfigurationError, "method 'krum' of TorchJD needs the option 'n_byzantine': give it a value"),
        ({"method": "gradvac", "beta": 2.0}, ConfigurationError, r"refuses \(beta=2.0\): Attribute `beta` must be in \[0, 1\]"),
        ({"method": 3}, ConfigurationError, "option 'method' is 3"),
    ],
)
def test_what_is_wrong_is_told_when_it_is_made(options: dict[str, Any], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        TorchJDAggregator(**options)


def test_what_is_wrong_with_the_rows_is_told_by_their_names() -> None:
    with pytest.raises(ConfigurationError, match=r"'krum' of TorchJD cannot combine the rows a, b: .*at least 4 rows"):
        TorchJDAggregator(method="krum", n_byzantine=1).provide_gradient_combination(TaskRows(("a", "b"), jacobian(0, 2)), step())
    plugin = TorchJDAggregator(method="constant", weights={"a": 1.0})
    with pytest.raises(ConfigurationError, match=r"option 'weights' has no value for row 'b' \(it has: a\): add it"):
        plugin.provide_gradient_combination(TaskRows(("a", "b"), jacobian(0, 2)), step())


@pytest.mark.parametrize(
    ("method", "package", "extra"), [("cagrad", "cvxpy", "cagrad"), ("upgrad", "quadprog", "quadprog"), ("nash_mtl", "cvxpy", "nash")]
)
def test_a_solver_that_is_missing_is_told_with_the_line_that_brings_it(
    method: str, package: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchjd._mixins as mixins

    monkeypatch.setattr(mixins, "find_spec", lambda name: None if name == package else object())
    with pytest.raises(MissingExtraError, match=rf"method '{method}' .* needs the package '{package}'.*'streamlearn-torchjd\[{extra}\]'"):
        TorchJDAggregator(method=method, **OPTIONS.get(method, {}))


def test_its_options_survive_json() -> None:
    plugin = TorchJDAggregator(method="constant", weights={"a": 1.0})
    again = TorchJDAggregator(**type(plugin.config).model_validate_json(plugin.config.model_dump_json()).model_dump())
    assert repr(again.config) == repr(plugin.config)


def test_the_solver_takes_its_options() -> None:
    needed("upgrad")
    module = Recipe.of("u", aggregators(), "upgrad", {"reg_eps": 0.01}).build(("a", "b"), jacobian(0))
    assert module.projector.reg_eps == 0.01
