r"""Where gradient descent leads from θ, as a function of θ that can be differentiated.

    φ_0 = θ,   φ_{k+1} = U(φ_k, ∇L(φ_k, ψ), α),   φ = φ_K

ψ is whatever else the loss reads: the parameters that rest, those of other modules. The estimators differ in dφ/d(θ, α, ψ):

    unrolled      exact, by the graph of all steps: memory grows with K
    adjoint       exact, backwards through the steps, each computed anew: memory of one step and K copies of θ
    first-order   the gradients of the inner steps are constants: dφ/dθ = 1
    implicit      that of the minimum of L(φ, ψ) + λ/2 ‖φ - θ‖², whatever path led there: memory of one step
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from streamlearn.core.inner_loop.rules import GradientDescent, InnerRule, Rates, State

__all__ = ["Estimator", "Implicit", "Loss", "adapt", "leaves", "solve"]

Estimator = Literal["unrolled", "adjoint", "first-order", "implicit"]
Loss = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], Tensor | None]
"""L(φ, ψ), a scalar; ``None`` where there is nothing to learn from."""
Gradient = Callable[[Callable[[Mapping[str, Tensor]], Tensor | None], Mapping[str, Tensor], bool], dict[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Implicit:
    """How (1 + H/λ) v = b is solved, H being the Hessian of L at φ.

    Args:
        strength: λ, above 0.
        solver: ``"cg"``: conjugate gradients; ``"neumann"``: Σ_j (1 - r (1 + H/λ))^j r b, which needs r below 2 / (1 + ‖H‖/λ).
        steps: at most so many products with H, at least 1.
        tolerance: conjugate gradients stop when ‖residual‖ is below this share of ‖b‖, and where the curvature along a direction is
            not positive, as it cannot be at a minimum.
        rate: r of the Neumann series, above 0.
    """

    strength: float = 2.0
    solver: Literal["cg", "neumann"] = "cg"
    steps: int = 5
    tolerance: float = 1e-10
    rate: float = 0.1


def adapt(
    loss: Loss,
    start: Mapping[str, Tensor],
    *,
    steps: int,
    rates: Rates,
    rule: InnerRule | None = None,
    estimator: Estimator = "unrolled",
    fixed: Mapping[str, Tensor] | None = None,
    implicit: Implicit | None = None,
    gradient: Gradient | None = None,
) -> dict[str, Tensor]:
    """φ: ``start`` after ``steps`` steps, by name.

    Args:
        loss: called with φ_k and ψ; must read nothing else that wants a gradient.
        start: θ, those that move.
        steps: K, at least 0. A loss that is ``None``, or a constant, ends it.
        rates: α; tensors that want a gradient get one.
        rule: U; default gradient descent.
        estimator: see the module.
        fixed: ψ by name.
        implicit: λ, and how its equations are solved, for ``"implicit"``, which adds λ/2 ‖φ - θ‖² to the loss.
        gradient: takes ∇ of a function at parameters, with a graph or without; default `torch.autograd.grad`. Within `torch.vmap`
            it must be one on `torch.func.grad`, and the estimator ``"unrolled"`` or ``"first-order"``.

    Example:
        >>> w = torch.tensor(1.0, requires_grad=True)
        >>> fast = adapt(lambda p, _: p["w"] ** 2, {"w": w}, steps=2, rates=0.25)["w"]  # each step halves w
        >>> fast.item(), torch.autograd.grad(fast, w)[0].item()
        (0.25, 0.25)
    """
    path = _Path(loss, rule or GradientDescent(), steps, gradient or _by_autograd)
    others = dict(fixed or {})
    if estimator == "unrolled":
        return path.walk(start, others, rates, graph=True)
    if estimator == "first-order":
        return path.walk(start, others, rates, graph=False)
    return _recomputed(path, dict(start), others, rates, (implicit or Implicit()) if estimator == "implicit" else None)


class _Path:
    """K steps of a rule on a loss."""

    def __init__(self, loss: Loss, rule: InnerRule, steps: int, gradient: Gradient) -> None:
        self.loss, self.rule, self.steps, self.gradient = loss, rule, steps, gradient

    def slope(self, fast: Mapping[str, Tensor], fixed: Mapping[str, Tensor], graph: bool) -> dict[str, Tensor]:
        """∇L(φ, ψ); without what L does not depend on."""
        return self.gradient(lambda p: self.loss(p, fixed), fast, graph)

    def walk(
        self,
        start: Mapping[str, Tensor],
        fixed: Mapping[str, Tensor],
        rates: Rates,
        *,
        graph: bool,
        seen: list[tuple[dict[str, Tensor], State]] | None = None,
        pull: Callable[[str, Tensor], Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """φ; ``seen`` takes what each step began with, ``pull`` gives what to add to the gradient of L by a parameter."""
        fast, state = dict(start), self.rule.begin(start)
        for step in range(self.steps):
            if seen is not None:
                seen.append((fast, state))
            if graph:
                found = self.slope(fast, fixed, True)
            else:  # constants: taken where nothing else has a graph, so that none is made
                here = {name: value.detach() for name, value in fast.items()}
                found = self.slope(here, {name: value.detach() for name, value in fixed.items()}, False)
            if not found:
                break
            if pull is not None:
                found = {name: slope + pull(name, fast[name]) for name, slope in found.items()}
            fast, state = self.rule.update(fast, found, rates, state, step)
        return fast


def _by_autograd(function: Callable[[Mapping[str, Tensor]], Tensor | None], at: Mapping[str, Tensor], graph: bool) -> dict[str, Tensor]:
    wanted = {name: value if graph and value.requires_grad else value.detach().requires_grad_() for name, value in at.items()}
    with torch.enable_grad():
        total = function(wanted)
        if total is None or not total.requires_grad or not wanted:
            return {}
        found = torch.autograd.grad(total, list(wanted.values()), create_graph=graph, allow_unused=True)
    return {name: gradient for name, gradient in zip(wanted, found, strict=True) if gradient is not None}


# ------------------------------------------------------------------------------------------------ estimators that compute steps anew


def _recomputed(
    path: _Path, start: dict[str, Tensor], fixed: dict[str, Tensor], rates: Rates, implicit: Implicit | None
) -> dict[str, Tensor]:
    def pull(name: str, value: Tensor) -> Tensor:
        assert implicit is not None
        return implicit.strength * (value - start[name].detach())

    seen: list[tuple[dict[str, Tensor], State]] = []
    with torch.no_grad():
        if implicit is None:
            end = path.walk(start, fixed, rates, graph=False, seen=seen)
        else:
            end = path.walk(start, fixed, rates, graph=False, pull=pull)
    moved = [name for name, value in end.items() if value is not start[name]]
    if not moved:
        return end
    learnt = {"": rates} if isinstance(rates, Tensor) else dict(rates) if isinstance(rates, Mapping) else {}
    # what no step has moved is not among the inputs: a gradient of zero is not the same as none
    walked = _Walked(path, seen, end, tuple(moved), tuple(learnt), tuple(fixed), rates if isinstance(rates, float | int) else None)
    inputs = [*(start[name] for name in moved), *learnt.values(), *fixed.values()]
    found: Any = _Adjoint.apply(walked, *inputs) if implicit is None else _AtMinimum.apply(walked, implicit, *inputs)
    return end | dict(zip(moved, found, strict=True))


@dataclass(frozen=True, slots=True)
class _Walked:
    """A path that has been gone, and which of some tensors are θ, α and ψ.

    Attributes:
        path: whose it was.
        seen: what each step began with; empty where only the end counts.
        end: φ.
        moved: names of the parameters that have moved.
        rates: names of the rates that are tensors; ``("",)`` for one of all parameters.
        fixed: names within ψ.
        number: α where it is no tensor.
    """

    path: _Path
    seen: list[tuple[dict[str, Tensor], State]]
    end: dict[str, Tensor]
    moved: tuple[str, ...]
    rates: tuple[str, ...]
    fixed: tuple[str, ...]
    number: float | None

    def split(self, tensors: Sequence[Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """α and ψ, by name."""
        first, second = len(self.moved), len(self.moved) + len(self.rates)
        return dict(zip(self.rates, tensors[first:second], strict=True)), dict(zip(self.fixed, tensors[second:], strict=True))

    def as_rates(self, by_name: Mapping[str, Tensor]) -> Rates:
        """α as the rule takes it."""
        return self.number if self.number is not None else by_name[""] if self.rates == ("",) else by_name


class _Adjoint(torch.autograd.Function):
    """Backwards through the steps: (λ, μ) ← (λ, μ) · ∂(φ_{k+1}, state_{k+1}) / ∂(φ_k, state_k), and the parts of α and ψ added up."""

    @staticmethod
    def forward(ctx: Any, walked: _Walked, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.walked = walked
        ctx.save_for_backward(*tensors)
        return tuple(walked.end[name].detach() for name in walked.moved)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outward: Tensor) -> tuple[Any, ...]:
        walked: _Walked = ctx.walked
        rates, fixed = walked.split(ctx.saved_tensors)
        pull: dict[str, Tensor] = dict(zip(walked.moved, outward, strict=True))
        pull_state: State | None = None
        sums: list[Tensor | None] = [None] * (len(rates) + len(fixed))
        for step in range(len(walked.seen) - 1, -1, -1):
            fast, state = (leaves(part) for part in walked.seen[step])
            here = leaves(rates), leaves(fixed)
            with torch.enable_grad():
                found = walked.path.slope(fast, here[1], True)
                if not found:
                    continue
                after, state_after = walked.path.rule.update(fast, found, walked.as_rates(here[0]), state, step)
            ends = [(after[name], pull[name]) for name in walked.moved]
            if pull_state is not None:
                ends += [(value, pull_state[kind][name]) for kind, part in state_after.items() for name, value in part.items()]
            ends = [(value, weight) for value, weight in ends if value.requires_grad]
            wanted = [*(fast[name] for name in walked.moved), *_flat(state), *here[0].values(), *here[1].values()]
            parts = iter(torch.autograd.grad([v for v, _ in ends], wanted, [w for _, w in ends], allow_unused=True))
            pull = {name: _or_zeros(next(parts), fast[name]) for name in walked.moved}
            pull_state = {kind: {name: _or_zeros(next(parts), value) for name, value in part.items()} for kind, part in state.items()}
            sums = [total if part is None else part if total is None else total + part for total, part in zip(sums, parts, strict=True)]
        return None, *pull.values(), *sums


class _AtMinimum(torch.autograd.Function):
    """At the minimum ∇L(φ, ψ) + λ (φ - θ) = 0, so that dφ/dθ = (1 + H/λ)⁻¹ and dφ/dψ = -(λ + H)⁻¹ ∂∇L/∂ψ."""

    @staticmethod
    def forward(ctx: Any, walked: _Walked, implicit: Implicit, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.walked, ctx.implicit = walked, implicit
        ctx.save_for_backward(*tensors)
        return tuple(walked.end[name].detach() for name in walked.moved)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outward: Tensor) -> tuple[Any, ...]:
        walked, implicit = ctx.walked, ctx.implicit
        rates, fixed = walked.split(ctx.saved_tensors)
        fast, others = leaves(walked.end), leaves(fixed)
        with torch.enable_grad():
            slope = walked.path.slope(fast, others, True)
        bent = {name: value for name, value in slope.items() if value.requires_grad and name in walked.moved}
        places = [fast[name] for name in walked.moved]

        def curved(vector: dict[str, Tensor]) -> dict[str, Tensor]:
            """(1 + H/λ) v."""
            if not bent:
                return vector
            weights = [vector[name] for name in bent]
            found = torch.autograd.grad(list(bent.values()), places, weights, retain_graph=True, allow_unused=True)
            pairs = zip(vector.items(), found, strict=True)
            return {name: value if product is None else value + product / implicit.strength for (name, value), product in pairs}

        solved = solve(curved, dict(zip(walked.moved, outward, strict=True)), implicit)
        back: list[Tensor | None] = [None] * len(fixed)
        if bent and others:
            weights = [-solved[name] / implicit.strength for name in bent]
            back = list(torch.autograd.grad(list(bent.values()), list(others.values()), weights, allow_unused=True))
        return None, None, *solved.values(), *[None] * len(rates), *back


def _or_zeros(tensor: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tensor is None else tensor


def solve(curved: Callable[[dict[str, Tensor]], dict[str, Tensor]], goal: dict[str, Tensor], how: Implicit) -> dict[str, Tensor]:
    """v with curved(v) = goal, as nearly as ``how`` says."""
    if how.solver == "neumann":
        term = {name: how.rate * value for name, value in goal.items()}
        total = term
        for _ in range(how.steps):
            bent = curved(term)
            term = {name: value - how.rate * bent[name] for name, value in term.items()}
            total = {name: value + term[name] for name, value in total.items()}
        return total
    found = {name: torch.zeros_like(value) for name, value in goal.items()}
    residual, direction = dict(goal), dict(goal)
    size = first = _dot(residual, residual)
    for step in range(how.steps):
        if float(size) <= how.tolerance**2 * float(first):
            break
        bent = curved(direction)
        curvature = _dot(direction, bent)
        if float(curvature) <= 0:  # not a minimum: what follows would lead away
            return found if step else goal
        rate = size / curvature
        found = {name: value + rate * direction[name] for name, value in found.items()}
        residual = {name: value - rate * bent[name] for name, value in residual.items()}
        size, before = _dot(residual, residual), size
        direction = {name: value + (size / before) * direction[name] for name, value in residual.items()}
    return found


def _dot(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([(value * b[name]).sum() for name, value in a.items()]).sum()


def leaves(tensors: Any) -> Any:
    """Detached copies of named tensors, nested or not, that want a gradient."""
    if isinstance(tensors, Tensor):
        return tensors.detach().requires_grad_(tensors.is_floating_point())
    return {name: leaves(value) for name, value in tensors.items()}


def _flat(state: State) -> Iterable[Tensor]:
    return [value for part in state.values() for value in part.values()]
