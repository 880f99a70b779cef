"""Prequential scoring: what was predicted for rows before the model learnt from them.

Adapting at test time is training on experiences that hold only ``target`` rows, without labels. The outputs made before each update
are the predictions, and are scored once, when a row is met for the first time (Gama et al. 2013: test, then train).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from streamlearn.core.evaluation import Count, Evaluation, without_labels
from streamlearn.core.forward import Forward
from streamlearn.core.importance import evaluating
from streamlearn.core.randomness import forked
from streamlearn.core.view import Step

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.streams import Batch, Experience, Segment
    from streamlearn.streams.data import Data, JoinedData

__all__ = ["Prequential"]


class Prequential:
    """Scores the ``target`` rows that the steps of one experience meet.

    The truth (`streamlearn.streams.Stream.truth`) holds the same rows of the same source and domain; rows that it does not hold are not
    scored. It lives here, out of every plugin's reach.

    Args:
        run: the run.
        truth: the labelled rows.
        experience: the experience.
    """

    def __init__(self, run: Run, truth: Data | JoinedData, experience: Experience) -> None:
        self._run = run
        self._truth: dict[tuple[str, str], list[_Truth]] = {}
        for part in truth.parts():
            self._truth.setdefault((part.source.name, part.domain), []).append(_Truth(part))
        asked = {task.name for part in experience.data["target"].parts() for task in part.tasks}  # rows of other roles have others
        self._counts = {task.name: Count(task) for task in experience.tasks if task.name in asked}

    def score(self, step: Step) -> None:
        """Score the outputs of a step before its update, on the rows that have not been met before."""
        batch, outputs = step.batch, None
        for segment in batch.segments:
            for truth in self._truth.get((segment.source, segment.domain), ()) if segment.role == "target" else ():
                places, known = truth.met(batch.index[segment.rows])
                if len(places):
                    outputs = self._outputs(step) if outputs is None else outputs
                    self._score_rows(outputs, segment, places, known)

    def score_unmet(self, data: Data | JoinedData) -> None:
        """Score the ``target`` rows that joined no batch, because the labelled rows that they accompany were fewer."""
        start = 0
        for part in data.parts():
            unmet = torch.zeros(len(part), dtype=torch.bool)
            for truth in self._truth.get((part.source.name, part.domain), ()):
                unmet |= truth.lacks(part.indices)
            for positions in (start + unmet.nonzero().flatten()).split(self._run.options.evaluation_batch_size):  # type: ignore[no-untyped-call]
                if len(positions):
                    self.score(Step(self._run, data.batch(positions, "target").to(self._run.device)))
            start += len(part)

    def _score_rows(self, outputs: Mapping[str, Tensor], segment: Segment, places: Tensor, known: Batch) -> None:
        device = self._run.device
        known, places = known.to(device), places.to(device)
        for task in segment.tasks:
            count = self._counts.get(task)
            if count is None or task not in known.targets or count.reason is not None:
                continue
            if not (outputs.serves(task) if isinstance(outputs, Forward) else task in outputs):
                count.reason = f"the active predictor gives no outputs for task {task!r} yet"
                continue
            found = outputs.on(task, segment.rows) if isinstance(outputs, Forward) else outputs[task][segment.rows]
            labelled = known.labelled_rows(task)
            count.add(found.detach()[places][labelled], known.targets[task][labelled])

    def _outputs(self, step: Step) -> Mapping[str, Any]:
        run = self._run
        with torch.no_grad():
            if run.hooks.provide_predictions is not None:
                with evaluating(run.model), forked(run.device):
                    return run.hooks.provide_predictions(without_labels(step.batch), Evaluation(run, run.clock.experience))  # type: ignore[no-any-return]
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
        """The sums so far, and which rows have been met."""
        return {
            "counts": {task: count.state_dict() for task, count in self._counts.items()},
            "unmet": [truth.unmet for found in self._truth.values() for truth in found],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for task, sums in state["counts"].items():
            self._counts[task].load_state_dict(sums)
        for truth, unmet in zip((truth for found in self._truth.values() for truth in found), state["unmet"], strict=True):
            truth.unmet = unmet.cpu()


class _Truth:
    """The labels of some rows, and which of them have not been met yet."""

    def __init__(self, part: Data) -> None:
        self._part = part
        self._position = torch.full((len(part.source),), -1)
        self._position[part.indices] = torch.arange(len(part))
        self.unmet = torch.ones(len(part), dtype=torch.bool)

    def lacks(self, index: Tensor) -> Tensor:
        """Which of the rows ``index`` are known here and have not been met yet."""
        position = self._position[index]
        return (position >= 0) & self.unmet[position]

    def met(self, index: Tensor) -> tuple[Tensor, Batch]:
        """Which of the rows ``index`` are met for the first time, and those with their labels."""
        position = self._position[index]
        places = self.lacks(index).nonzero().flatten()
        _, first = np.unique(position[places].numpy(), return_index=True)  # a row may come twice in one batch
        places = places[torch.from_numpy(np.sort(first))]
        self.unmet[position[places]] = False
        return places, self._part.batch(position[places], "evaluation")
