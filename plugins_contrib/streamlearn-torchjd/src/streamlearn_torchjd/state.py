"""The state of TorchJD's aggregators by the names of rows.

TorchJD keeps state by position and starts anew when the number of rows changes. On a stream rows come, go and change places: here what
belongs to a row is found again by its name, a row that is absent keeps what it has, and a new one enters beside the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchjd import Stateful

__all__ = ["STATEFUL", "is_stateful", "read", "write"]

Store = dict[str, Any]
"""What is known of each row, and numbers of the method as a whole: tensors, numbers and string-keyed dicts of those."""


def is_stateful(cls: type[nn.Module]) -> bool:
    """Whether TorchJD says that the method remembers earlier calls."""
    return issubclass(cls, Stateful)


def write(method: str, module: nn.Module, store: Store, rows: Sequence[str], matrix: Tensor) -> None:
    """Give ``module``, fresh from TorchJD, what ``store`` knows; ``matrix``, (rows, n), tells what new rows enter with."""
    if store:
        STATEFUL[method].write(_weighting(module), store, rows, matrix)


def read(method: str, module: nn.Module, store: Store, rows: Sequence[str]) -> Store:
    """``store`` with what ``module`` knows by now of ``rows``, in the order of the last call."""
    known: Store = STATEFUL[method].read(_weighting(module), dict(store), rows)
    return known


def _weighting(module: nn.Module) -> Any:
    return getattr(module, "gramian_weighting", None) or module.weighting


class _GradVac:
    """The target cosine of every pair of rows, 0 for a pair that has not met."""

    def write(self, to: Any, store: Store, rows: Sequence[str], matrix: Tensor) -> None:
        cosines = store["cosines"]
        found = [[float(cosines.get(row, {}).get(other, 0.0)) for other in rows] for row in rows]
        to._phi_t, to._state_key = torch.tensor(found, dtype=matrix.dtype), (len(rows), matrix.dtype)

    def read(self, found: Any, store: Store, rows: Sequence[str]) -> Store:
        cosines = {row: dict(others) for row, others in store.get("cosines", {}).items()}
        for row, line in zip(rows, found._phi_t.tolist(), strict=True):
            cosines.setdefault(row, {}).update(zip(rows, line, strict=True))
        return {"cosines": cosines}


class _PCD:
    """The moving average of every row's squared norm; a new row enters as if it had always had its present norm."""

    def write(self, to: Any, store: Store, rows: Sequence[str], matrix: Tensor) -> None:
        steps: int = store["steps"]
        norms = matrix.detach().to("cpu", torch.float64).square().sum(1) * (1.0 - to.beta**steps)
        known = store["squared_norms"]
        values = [float(known.get(row, norm)) for row, norm in zip(rows, norms.tolist(), strict=True)]
        to._sq_norm_ema, to._n_steps, to._state_key = torch.tensor(values, dtype=torch.float64), torch.tensor(steps), len(rows)

    def read(self, found: Any, store: Store, rows: Sequence[str]) -> Store:
        known = {**store.get("squared_norms", {}), **dict(zip(rows, found._sq_norm_ema.tolist(), strict=True))}
        return {"squared_norms": known, "steps": int(found._n_steps)}


class _ExcessMTL:
    """Sums of squared gradients, the risk at the start and the weight of every row; a new row's risk at the start is its present one.

    Weights of absent rows rest: those present share what they had together. Where the shared parameters are others, it starts anew.
    """

    def write(self, to: Any, store: Store, rows: Sequence[str], matrix: Tensor) -> None:
        sums = store["squares"]
        if next(iter(sums.values())).shape != matrix[0].shape:
            return
        now = (matrix.detach().square() / (matrix.detach().square() + 1e-7).sqrt()).sum(1)
        to._sq_grad_sum = torch.stack([_on(sums.get(row, torch.zeros_like(matrix[0])), matrix) for row in rows]).clone()
        to._warmup_w_sum = _vector(store["warm_up"], rows, (now * store["steps"]).tolist(), matrix)
        to._initial_w = _vector(store["initial"], rows, now.tolist(), matrix) if store["initial"] else None
        weights = _vector(_admitted(store["weights"], rows), rows, [0.0] * len(rows), matrix)
        to._weights = weights if set(rows) == set(store["weights"]) else weights / weights.sum()
        to._n_steps = store["steps"]
        to._state_key = (*matrix.shape, matrix.dtype, matrix.device)

    def read(self, found: Any, store: Store, rows: Sequence[str]) -> Store:
        if store and next(iter(store["squares"].values())).shape != found._sq_grad_sum[0].shape:
            store = {}
        before = _admitted(store.get("weights", {}), rows)
        share = sum(before[row] for row in rows) if set(rows) != set(before) else 1.0
        named = {
            "squares": dict(zip(rows, (line.clone() for line in found._sq_grad_sum), strict=True)),
            "warm_up": dict(zip(rows, found._warmup_w_sum.tolist(), strict=True)),
            "initial": {} if found._initial_w is None else dict(zip(rows, found._initial_w.tolist(), strict=True)),
        }
        weights = {**before, **{row: weight * share for row, weight in zip(rows, found._weights.tolist(), strict=True)}}
        return {**{key: {**store.get(key, {}), **value} for key, value in named.items()}, "weights": weights, "steps": found._n_steps}


class _NashMTL:
    """The bargaining weight of every row, 1 for a new one, and how many calls there have been."""

    def write(self, to: Any, store: Store, rows: Sequence[str], matrix: Tensor) -> None:
        known = store["alpha"]
        to.prvs_alpha = torch.tensor([float(known.get(row, 1.0)) for row in rows], dtype=torch.float64).numpy()
        to._init_optim_problem()
        to.step = store["steps"]
        if set(rows) - set(known):
            to.step -= to.step % to.update_weights_every  # a new row must not wait for its weight

    def read(self, found: Any, store: Store, rows: Sequence[str]) -> Store:
        return {"alpha": {**store.get("alpha", {}), **dict(zip(rows, found.prvs_alpha.tolist(), strict=True))}, "steps": float(found.step)}


STATEFUL: dict[str, Any] = {"gradvac": _GradVac(), "pcd": _PCD(), "excess_mtl": _ExcessMTL(), "nash_mtl": _NashMTL()}
"""How the state of each method that has one is read and written."""


def _admitted(weights: Mapping[str, float], rows: Sequence[str]) -> dict[str, float]:
    """``weights`` with those of ``rows`` that are new: each enters with an equal share of everything."""
    fresh = [row for row in rows if row not in weights]
    total = len(weights) + len(fresh)
    kept = {row: weight * len(weights) / total for row, weight in weights.items()} if fresh else dict(weights)
    return kept | dict.fromkeys(fresh, 1 / total)


def _vector(known: Mapping[str, float], rows: Sequence[str], otherwise: Sequence[float], like: Tensor) -> Tensor:
    values = [known.get(row, other) for row, other in zip(rows, otherwise, strict=True)]
    return torch.tensor(values, dtype=like.dtype, device=like.device)


def _on(tensor: Tensor, like: Tensor) -> Tensor:
    return tensor.to(dtype=like.dtype, device=like.device)
