"""The kernel of inner loops: rules against torch's optimisers, estimators against finite differences and closed forms."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from streamlearn.core.inner_loop import Adam, GradientDescent, Implicit, Momentum, adapt

RULES: dict[str, Any] = {"sgd": GradientDescent(), "momentum": Momentum(), "nesterov": Momentum(nesterov=True), "adam": Adam()}
STEPS = 5


def test_the_inner_steps_by_hand() -> None:
    w = torch.tensor(2.0, requires_grad=True)
    loss = lambda p, _: p["w"] ** 3  # noqa: E731
    for exact in ("unrolled", "adjoint"):
        second = adapt(loss, {"w": w}, steps=1, rates=0.1, estimator=exact)["w"]  # w - 0.3 w², whose derivative is 1 - 0.6 w
        assert float(second.detach()) == pytest.approx(0.8)
        assert float(torch.autograd.grad(second, w)[0]) == pytest.approx(-0.2)
    first = adapt(loss, {"w": w}, steps=1, rates=0.1, estimator="first-order")["w"]
    assert float(torch.autograd.grad(first, w)[0]) == 1.0
    unused = torch.ones(1, requires_grad=True)
    moved = adapt(loss, {"w": w, "unused": unused}, steps=2, rates=0.1)
    assert moved["unused"] is unused
    assert adapt(lambda p, _: None, {"w": w}, steps=3, rates=0.1)["w"] is w


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [
        ("sgd", lambda p: torch.optim.SGD(p, lr=0.1)),
        ("momentum", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        ("nesterov", lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
        ("adam", lambda p: torch.optim.Adam(p, lr=0.1)),
    ],
)
def test_a_rule_steps_as_the_optimiser_of_torch_does(rule: str, optimizer: Any) -> None:
    w = torch.linspace(-1, 2, 6, dtype=torch.float64).requires_grad_()
    loss = lambda p: ((p - 0.3) ** 4).sum() + (p[0] * p[1]).sin()  # noqa: E731
    mine = adapt(lambda p, _: loss(p["w"]), {"w": w}, steps=7, rates=0.1, rule=RULES[rule])["w"]
    theirs = w.detach().clone().requires_grad_()
    stepper = optimizer([theirs])
    for _ in range(7):
        stepper.zero_grad()
        loss(theirs).backward()
        stepper.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------ gradients through the steps


class Problem:
    """A small smooth network in float64: inner and outer rows, weights that move and one layer that rests."""

    def __init__(self, per_entry: bool = True) -> None:
        draw = torch.Generator().manual_seed(3)
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        for p in self.net.parameters():
            p.data = 0.7 * torch.randn(p.shape, generator=draw, dtype=torch.float64)
        self.x, self.y = (torch.randn(12, n, generator=draw, dtype=torch.float64) for n in (3, 1))
        weights = {name: p.detach() for name, p in self.net.named_parameters()}
        self.start = {name: value for name, value in weights.items() if not name.startswith("2.")}
        self.fixed = {name: value for name, value in weights.items() if name.startswith("2.")}
        size = (lambda value: torch.rand(value.shape, generator=draw)) if per_entry else (lambda value: torch.rand((), generator=draw))
        self.rates = {name: 0.02 + 0.05 * size(value).double() for name, value in self.start.items()}

    def error(self, weights: Mapping[str, Tensor], rows: slice) -> Tensor:
        return (functional_call(self.net, dict(weights), (self.x[rows],)) - self.y[rows]).square().mean()

    def outer(self, start: Any, rates: Any, fixed: Any, **how: Any) -> Tensor:
        inner = lambda fast, rest: self.error({**fast, **rest}, slice(0, 6))  # noqa: E731
        fast = adapt(inner, start, steps=how.pop("steps", STEPS), rates=rates, fixed=fixed, **how)
        return self.error({**fast, **fixed}, slice(6, 12))

    def slopes(self, **how: Any) -> dict[str, Tensor]:
        """d outer / d (start, rates, fixed), all in one flat vector each."""
        parts = {
            kind: {name: value.clone().requires_grad_() for name, value in getattr(self, kind).items()}
            for kind in ("start", "rates", "fixed")
        }
        total = self.outer(parts["start"], parts["rates"], parts["fixed"], **how)
        found = {}
        for kind, part in parts.items():
            each = torch.autograd.grad(total, list(part.values()), retain_graph=True, allow_unused=True)
            found[kind] = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(part.values(), each, strict=True)])
        return found

    def differences(self, kind: str, **how: Any) -> Tensor:
        """The same by central differences."""
        base, step, found = getattr(self, kind), 1e-5, []
        for name, value in base.items():
            for place in range(value.numel()):
                ends = []
                for sign in (1, -1):
                    moved = value.clone()
                    moved.view(-1)[place] += sign * step
                    given = {k: getattr(self, k) for k in ("start", "rates", "fixed")} | {kind: {**base, name: moved}}
                    ends.append(float(self.outer(given["start"], given["rates"], given["fixed"], **how).detach()))
                found.append((ends[0] - ends[1]) / (2 * step))
        return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize("per_entry", [True, False], ids=["rates by entry", "rates by parameter"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("estimator", ["unrolled", "adjoint"])
def test_exact_estimators_agree_with_finite_differences(estimator: Any, rule: str, per_entry: bool) -> None:
    problem = Problem(per_entry)
    how = {"rule": RULES[rule], "estimator": estimator}
    found = problem.slopes(**how)
    for kind in ("start", "rates", "fixed"):
        expected = problem.differences(kind, **how)
        assert float((found[kind] - expected).norm() / expected.norm()) < 1e-6, kind


def test_first_order_is_another_gradient() -> None:
    problem = Problem()
    exact, first = problem.slopes(), problem.slopes(estimator="first-order")
    assert float((first["start"] - exact["start"]).norm() / exact["start"].norm()) > 0.05
    # what it is: the slope at the end, and for the rates minus that times the gradients on the way
    fast = adapt(lambda f, r: problem.error({**f, **r}, slice(0, 6)), problem.start, steps=STEPS, rates=problem.rates, fixed=problem.fixed)
    leaves = {name: value.detach().requires_grad_() for name, value in fast.items()}
    at_the_end = torch.autograd.grad(problem.error({**leaves, **problem.fixed}, slice(6, 12)), list(leaves.values()))
    torch.testing.assert_close(first["start"], torch.cat([g.flatten() for g in at_the_end]))
    gone = {name: (problem.start[name] - value.detach()) / problem.rates[name] for name, value in fast.items()}
    pairs = zip(gone.values(), at_the_end, strict=True)
    torch.testing.assert_close(first["rates"], torch.cat([-(g * total).flatten() for total, g in pairs]))


# ------------------------------------------------------------------------------------------------ closed forms


def test_the_implicit_gradient_of_a_quadratic_is_the_closed_form() -> None:
    """L(φ) = ½ (φ - c)ᵀ A (φ - c): the minimum of L + λ/2 ‖φ - θ‖² is (A + λ)⁻¹ (A c + λ θ), linear in θ and in c."""
    draw = torch.Generator().manual_seed(1)
    root = torch.randn(5, 5, generator=draw, dtype=torch.float64)
    a, strength = root @ root.T / 5 + torch.eye(5, dtype=torch.float64), 1.5
    theta, c, goal = (torch.randn(5, generator=draw, dtype=torch.float64) for _ in range(3))
    theta.requires_grad_()
    c.requires_grad_()
    loss = lambda p, q: 0.5 * (p["w"] - q["c"]) @ a @ (p["w"] - q["c"])  # noqa: E731
    inverse = torch.linalg.inv(a + strength * torch.eye(5, dtype=torch.float64))
    for how in (Implicit(strength, steps=5), Implicit(strength, "neumann", steps=400, rate=0.3)):
        fast = adapt(loss, {"w": theta}, steps=400, rates=0.2, fixed={"c": c}, estimator="implicit", implicit=how)["w"]
        torch.testing.assert_close(fast.detach(), (inverse @ (a @ c + strength * theta)).detach())
        found = torch.autograd.grad((fast @ goal), [theta, c])
        torch.testing.assert_close(found[0], strength * inverse @ goal)
        torch.testing.assert_close(found[1], a @ inverse @ goal)
    few = adapt(loss, {"w": theta}, steps=400, rates=0.2, fixed={"c": c}, estimator="implicit", implicit=Implicit(strength, steps=1))["w"]
    assert float((torch.autograd.grad(few @ goal, theta)[0] - strength * inverse @ goal).norm()) > 1e-3, "one product is too few"


def test_the_hypergradient_of_ridge_regression_is_the_closed_form() -> None:
    """dE/d log λ of the error on other rows of w(λ) = (XᵀX/n + λ)⁻¹ Xᵀy/n, by all steps, backwards, and at the minimum."""
    draw = torch.Generator().manual_seed(2)
    x, y, new_x, new_y = (torch.randn(20, n, generator=draw, dtype=torch.float64) for n in (4, 1, 4, 1))
    log = torch.tensor(-1.0, dtype=torch.float64, requires_grad=True)
    closed = torch.linalg.solve(x.T @ x / 20 + log.exp() * torch.eye(4, dtype=torch.float64), x.T @ y / 20)
    expected = torch.autograd.grad((new_x @ closed - new_y).square().mean(), log)[0]

    def loss(p: Mapping[str, Tensor], q: Mapping[str, Tensor]) -> Tensor:
        return 0.5 * (x @ p["w"] - y).square().mean() + 0.5 * q["log"].exp() * p["w"].square().sum()

    start = {"w": torch.zeros(4, 1, dtype=torch.float64, requires_grad=True)}
    weak = Implicit(1e-9, steps=8)
    for how in ({"estimator": "unrolled"}, {"estimator": "adjoint"}, {"estimator": "implicit", "implicit": weak}):
        fast = adapt(loss, start, steps=600, rates=0.3, fixed={"log": log}, **how)["w"]  # type: ignore[arg-type]
        found = torch.autograd.grad((new_x @ fast - new_y).square().mean(), log)[0]
        assert float(found) == pytest.approx(float(expected), rel=1e-6), how


class Box:
    """What autograd keeps of a tensor, as long as a graph lives."""

    alive: ClassVar[weakref.WeakSet[Box]] = weakref.WeakSet()

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        Box.alive.add(self)


def test_the_adjoint_keeps_no_graph_of_the_steps() -> None:
    """What is kept for the way back does not grow with the steps, but for the weights themselves."""
    kept = {}
    for estimator in ("unrolled", "adjoint"):
        for steps in (2, 20):
            problem = Problem()
            start = {name: value.clone().requires_grad_() for name, value in problem.start.items()}
            Box.alive.clear()
            with torch.autograd.graph.saved_tensors_hooks(Box, lambda box: box.tensor):
                total = problem.outer(start, 0.05, problem.fixed, estimator=estimator, steps=steps)
            gc.collect()
            kept[estimator, steps] = sum(box.tensor.numel() for box in Box.alive)
            del total
    assert kept["adjoint", 20] == kept["adjoint", 2] > 0
    assert kept["unrolled", 20] > 5 * kept["unrolled", 2]
