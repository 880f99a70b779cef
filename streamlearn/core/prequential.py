"""Prequential scoring: what was predicted for rows before the model learnt from them.

Adapting at test time is training on experiences that hold only ``target`` rows, without labels. The outputs made before each update
are the predictions, and are scored once, when a row is met for the first time (Gama et al. 2013: test, then train).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from streamlearn.core.evaluation import Count, Evaluation, Evaluator
from streamlearn.core.forward import Forward
from streamlearn.core.importance import evaluating
from streamlearn.core.randomness import forked

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.view import Step
    from streamlearn.streams import Experience
    from streamlearn.streams.data import Data, JoinedData

__all__ = ["Prequential"]


class Prequential:
    """Scores the steps of one experience that has only ``target`` rows.

    The truth is that of the experience's evaluation set, which must hold the same rows of the same source; rows that it does not
    label are not scored. It lives here, out of every plugin's reach.

    Args:
        run: the run.
        evaluator: knows the evaluation sets.
        experience: the experience.
    """

    def __init__(self, run: Run, evaluator: Evaluator, experience: Experience) -> None:
        self._run = run
        self._truth: dict[tuple[str, str], Data] = {}
        truth: Data | JoinedData = evaluator.truth(experience.index)
        for part in truth.parts():
            self._truth[part.source.name, part.domain] = part
        self._counts = {task.name: Count(task) for task in experience.tasks}

    @staticmethod
    def suits(experience: Experience) -> bool:
        """Whether the experience is one of adaptation at test time."""
        return set(experience.data) == {"target"}

    def score(self, step: Step) -> None:
        """Score the outputs of a step before its update."""
        run, batch = self._run, step.batch
        if run.clock.phase or run.clock.epoch:
            return  # each row is predicted once, when it is met
        outputs = self._outputs(step)
        for segment in batch.segments:
            part = self._truth.get((segment.source, segment.domain))
            if segment.role != "target" or part is None:
                continue
            known = part.fetch(batch.index[segment.rows], "evaluation").to(run.device)
            for task in segment.tasks:
                if task in known.targets:
                    found = outputs.on(task, segment.rows) if isinstance(outputs, Forward) else outputs[task][segment.rows]
                    self._counts[task].add(found.detach(), known.targets[task])

    def _outputs(self, step: Step) -> Mapping[str, Any]:
        run = self._run
        with torch.no_grad():
            if run.hooks.provide_predictions is not None:
                with evaluating(run.model), forked(run.device):
                    return run.hooks.provide_predictions(step.batch, Evaluation(run, run.clock.experience))  # type: ignore[no-any-return]
            if step.outputs_were_read:
                return step.outputs
            with evaluating(run.model), forked(run.device):
                outputs = Forward(run.model, step.batch.x)
                _ = [outputs[task] for task in step.batch.tasks]  # at once, in evaluation mode
                return outputs

    def lines(self) -> list[dict[str, Any]]:
        """The events for the record, one for each task."""
        return [{"event": "prequential", "experience": self._run.clock.experience, **count.line()} for count in self._counts.values()]

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        return {task: count.state_dict() for task, count in self._counts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for task, sums in state.items():
            self._counts[task].load_state_dict(sums)
