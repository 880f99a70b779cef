"""What scalarizers remember of rows, by name: what is learned, the averages of epochs, and the logits of FAMO."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from streamlearn.errors import ConfigurationError
from torch import Tensor, nn

if TYPE_CHECKING:
    from streamlearn.core.step import Step

__all__ = ["Averages", "Logits", "Scale", "key_of", "task_of"]

_EPSILON = 1e-8  # of TorchJD's FAMO


class Scale(nn.Module):
    """One number to be learned, 0 at the start; called without arguments it answers with it."""

    def __init__(self, like: Tensor | None = None) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros((), dtype=None if like is None else like.dtype))

    def forward(self) -> Tensor:
        """The number, ``()``."""
        return self.value


def key_of(task: str) -> str:
    """The name of a task as that of a module: a dot would end it within a parameter's name."""
    return task.replace(".", "\N{ONE DOT LEADER}")


def task_of(row: str, step: Step) -> str:
    """The task to which a row belongs: by its name (``"digit@photo"`` is of ``"digit"``), or by its supervision."""
    found = [task for task in step.run.tasks if row == task or row.startswith((f"{task}@", f"{task}/"))]
    found = found or [record.task for record in step.supervision if record.row == row]
    if not found:
        raise ConfigurationError(f"row {row!r} belongs to none of the tasks {', '.join(step.run.tasks)}: name it after its task")
    return max(found, key=len)


class Averages:
    """Mean losses of the present epoch and of the two before it, for dynamic weight averaging."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self._past: dict[str, list[Tensor]] = {}

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Count the losses of a step."""
        for row, loss in losses.items():
            self._sums[row] = self._sums[row] + loss if row in self._sums else loss.clone()
            self._counts[row] = self._counts.get(row, 0) + 1

    def roll(self) -> None:
        """An epoch has ended; a row that it did not have keeps its averages."""
        for row, total in self._sums.items():
            self._past[row] = [*self._past.get(row, []), total / self._counts[row]][-2:]
        self._sums, self._counts = {}, {}

    def of(self, rows: Sequence[str], like: Tensor) -> list[Tensor]:
        """The averages of the last two epochs as TorchJD keeps them; a row without both counts as one that stays as it is."""
        if not any(len(self._past.get(row, [])) == 2 for row in rows):
            return []
        one = torch.ones((), dtype=like.dtype, device=like.device)
        pairs = [self._past[row] if len(self._past.get(row, [])) == 2 else [one, one] for row in rows]
        return [torch.stack([pair[age].to(like) for pair in pairs]) for age in (0, 1)]

    def state_dict(self) -> dict[str, Any]:
        """Sums, counts and averages by row."""
        return {"sums": dict(self._sums), "counts": dict(self._counts), "past": {row: list(past) for row, past in self._past.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._sums, self._counts = dict(state["sums"]), {row: int(count) for row, count in state["counts"].items()}
        self._past = {row: list(past) for row, past in state["past"].items()}


class Logits:
    """The task logits of FAMO with an Adam for each row, so that one that is absent is not moved.

    Args:
        options: of the method: ``lr``, ``weight_decay`` and ``min_losses``, with TorchJD's defaults.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._lr, self._weight_decay = float(options.get("lr", 0.025)), float(options.get("weight_decay", 1e-3))
        self._least: Mapping[str, float] = options.get("min_losses") or {}
        self._logits: dict[str, nn.Parameter] = {}
        self._adam: dict[str, dict[str, Tensor]] = {}

    def of(self, rows: Sequence[str], like: Tensor) -> Tensor:
        """The logits of ``rows``, 0 for a new one."""
        zero = torch.zeros((), dtype=like.dtype, device=like.device)
        return torch.stack([self._logits[row].detach() if row in self._logits else zero for row in rows]).to(like)

    def learn(self, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> None:
        """One step of Adam on the logits, by how much the logarithm of each loss fell."""
        rows = [row for row in before if row in after]
        fell = torch.stack([self._shifted(row, before[row]).log() - self._shifted(row, after[row]).log() for row in rows])
        for row in rows:
            if row not in self._logits:
                self._logits[row] = nn.Parameter(torch.zeros_like(before[row]))
        chosen: list[Tensor] = [self._logits[row] for row in rows]
        with torch.enable_grad():
            gradients = torch.autograd.grad(torch.stack(chosen).softmax(0), chosen, grad_outputs=fell)
        adam = torch.optim.Adam(chosen, lr=self._lr, weight_decay=self._weight_decay)
        for row, parameter, gradient in zip(rows, chosen, gradients, strict=True):
            parameter.grad = gradient
            if row in self._adam:
                adam.state[parameter] = self._adam[row]
        adam.step()
        for row, parameter in zip(rows, chosen, strict=True):
            parameter.grad = None
            self._adam[row] = adam.state[parameter]

    def _shifted(self, row: str, loss: Tensor) -> Tensor:
        return loss - self._least.get(row, 0.0) + _EPSILON

    def state_dict(self) -> dict[str, Any]:
        """Logits and the state of Adam, by row."""
        return {
            "logits": {row: logit.detach().clone() for row, logit in self._logits.items()},
            "adam": {row: {key: value.clone() for key, value in state.items()} for row, state in self._adam.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._logits = {row: nn.Parameter(logit.clone()) for row, logit in state["logits"].items()}
        self._adam = {row: {key: value.clone() for key, value in kept.items()} for row, kept in state["adam"].items()}
