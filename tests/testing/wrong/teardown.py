"""Wrong in what they leave behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from streamlearn import hookimpl
from streamlearn.core.run import Run
from streamlearn.core.view import Step
from tests.testing.wrong.control import Control


class LeavesEvaluationMode(Control):
    """Switches the model to evaluation for a look at it, and not back.

    In Avalanche RWalk trained without dropout and with frozen BatchNorm in every step, and so did whatever stood beside it.
    """

    @hookimpl
    def after_step(self, step: Step) -> None:
        """A look, in evaluation mode."""
        if self.config.strength:
            step.run.model.eval()


class LeavesGradients(Control):
    """Goes backward when an experience ends and leaves the gradients, which the next step adds to its own (Avalanche's GSS)."""

    @hookimpl
    def after_experience(self, run: Run) -> None:
        """Hold the weights as they are now, and ask which of them are large."""
        super().after_experience(run)
        if self.config.strength:
            torch.stack([p.square().sum() for p in run.parameters().values()]).sum().backward()  # type: ignore[no-untyped-call]


class LeavesAForwardHook(Control):
    """Hangs a hook on the model and does not take it off: the next run on this model has two.

    The engine reads activations for whoever asks in ``collect_taps``, and takes its hooks away itself.
    """

    @hookimpl
    def before_run(self, run: Run) -> None:
        """Look at whatever passes."""
        run.model.register_forward_hook(_look)
        for module in run.model.modules():
            module.register_forward_hook(_look)


def _look(module: nn.Module, given: Any, output: Any) -> None:
    """Look, and change nothing."""


class KeepsTheBatch(Control):
    """Keeps the last batch, and with it a graph of everything that was computed: memory that never comes back (Avalanche #1106)."""

    @hookimpl
    def after_step(self, step: Step) -> None:
        """For later, which never comes."""
        self._last = step.batch


class KeepsTheGraph(Control):
    """Keeps the last term to plot it, and with it the graph and the batch of its step."""

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The pull, kept."""
        self._seen = step.outputs.features, step.batch.x
        return super().collect_terms(step)


class SwitchesGradientsOff(Control):
    """Switches gradients off for the whole process when a run ends."""

    @hookimpl
    def after_run(self, run: Run) -> None:
        """No more of them."""
        torch.set_grad_enabled(False)
