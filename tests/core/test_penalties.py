from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamlearn.core.penalties import embedded, leading, quadratic_penalty


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def setting() -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """θ, F and θ* of two parameters; the second has grown since, a third is gone."""
    theta = {"w": drawn(3, 4).requires_grad_(), "b": drawn(5, seed=1).requires_grad_()}
    importance = {"w": drawn(3, 4, seed=2).square(), "b": drawn(2, seed=3).square(), "gone": torch.ones(1)}
    return theta, importance, {"w": drawn(3, 4, seed=4), "b": drawn(2, seed=5), "gone": torch.ones(1)}


def by_hand(theta: dict[str, Tensor], importance: dict[str, Tensor] | None, anchor: dict[str, Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for name in ("w", "b"):
        moved = theta[name][tuple(slice(0, size) for size in anchor[name].shape)] - anchor[name]
        total = total + 0.5 * ((1.0 if importance is None else importance[name]) * moved**2).sum()
    return total


@pytest.mark.parametrize("weighted", [True, False])
def test_value_and_gradient_are_those_of_the_formula(weighted: bool) -> None:
    theta, importance, anchor = setting()
    weights = importance if weighted else None
    found, wanted = quadratic_penalty(theta, weights, anchor), by_hand(theta, weights, anchor)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    for a, b in zip(*(torch.autograd.grad(3.0 * v, list(theta.values())) for v in (found, wanted)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


def test_it_is_differentiable_twice() -> None:
    """At the fast weights of a look-ahead θ' = θ - a ∇P(θ), and for its own Hessian."""
    theta, importance, anchor = setting()
    names = list(theta)

    def ahead(penalty: object) -> list[Tensor]:
        first = torch.autograd.grad(penalty(theta, importance, anchor), list(theta.values()), create_graph=True)  # type: ignore[operator]
        fast = {name: theta[name] - 0.3 * g.tanh() for name, g in zip(names, first, strict=True)}
        return list(torch.autograd.grad(penalty(fast, importance, anchor), list(theta.values())))  # type: ignore[operator]

    for a, b in zip(ahead(quadratic_penalty), ahead(by_hand), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert torch.autograd.gradgradcheck(lambda w: quadratic_penalty({"w": w}, importance, anchor), theta["w"])


def test_a_retained_graph_gives_the_same_gradient_again_and_gradients_add_up() -> None:
    theta, importance, anchor = setting()
    value = 2.0 * quadratic_penalty(theta, importance, anchor)
    first = torch.autograd.grad(value, theta["w"], retain_graph=True)[0]
    kept = first.clone()
    value.backward(retain_graph=True)
    value.backward()
    torch.testing.assert_close(first, kept, rtol=0, atol=0)
    torch.testing.assert_close(theta["w"].grad, 2 * first, rtol=1e-12, atol=0)
    assert theta["b"].grad is not None
    assert theta["b"].grad[2:].tolist() == [0.0, 0.0, 0.0]


def test_importance_and_anchor_are_left_as_they_are() -> None:
    theta, importance, anchor = setting()
    before = {name: value.clone() for name, value in importance.items()}, {name: value.clone() for name, value in anchor.items()}
    for weights in (importance, None):
        (quadratic_penalty(theta, weights, anchor) * 3).backward()
    for kept, now in zip(before, (importance, anchor), strict=True):
        assert all(torch.equal(kept[name], now[name]) for name in kept)


def test_frozen_parameters_get_no_gradient_and_nothing_to_hold_is_zero() -> None:
    theta, importance, anchor = setting()
    theta["b"].requires_grad_(False)
    quadratic_penalty(theta, importance, anchor).backward()
    assert theta["b"].grad is None
    assert theta["w"].grad is not None
    assert not quadratic_penalty({n: p.detach() for n, p in theta.items()}, importance, anchor).requires_grad
    assert float(quadratic_penalty(theta, {}, {})) == 0.0


def test_leading_and_embedded_are_inverse_to_one_another() -> None:
    old, grown = drawn(2, 3), drawn(4, 3, seed=1)
    found = embedded(old, grown)
    assert torch.equal(leading(found, old.shape), old)
    assert float(found[2:].abs().max()) == 0.0
    assert embedded(grown, grown) is grown
