"""Evaluation: pure. The model's mode, its gradients and the random state are as before, and no weight moves.

Hidden truth lives here. What a plugin meets (`Evaluation`, and the batches of ``provide_predictions``) carries no labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamlearn.core.forward import Forward
from streamlearn.core.importance import evaluating
from streamlearn.core.inputs import readable
from streamlearn.core.randomness import forked, subseed
from streamlearn.streams import Batch, Task
from streamlearn.streams.sealing import evaluating_allowed

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.streams import EvaluationSet, Stream
    from streamlearn.streams.data import Data, JoinedData

__all__ = ["Count", "Evaluation", "Evaluator", "without_labels"]


SUPPORT = "support"
"""The role of rows that an episode gives to learn from, with their labels, also in evaluations; they are not scored."""

_KEPT_BYTES = 64 * 2**20
"""How much of the evaluation sets is kept ready for the next evaluation instead of being gathered and converted again."""


class Evaluation:
    """What plugins see of an evaluation.

    Attributes:
        run: the run.
        trained: how many experiences have been finished.
        measurements: the lines of the record made so far in this evaluation.
    """

    def __init__(self, run: Run, trained: int) -> None:
        self.run = run
        self.trained = trained
        self.measurements: list[dict[str, Any]] = []

    def at(self, parameters: Mapping[str, Tensor], batch: Batch) -> Forward:
        """The model at other (fast) parameters, for methods that adapt to each batch and forget it again."""
        own = self.run.model_parameter_names
        state = {name: value for name, value in {**self.run.parameters(), **parameters}.items() if name in own}
        buffers = {name: buffer.clone() for name, buffer in self.run.model.named_buffers()}
        return Forward(self.run.model, batch.x, state | buffers)


class Evaluator:
    """Measures a run on the evaluation sets of a stream.

    Args:
        stream: whose evaluation sets are used.
        batch_size: rows per pass; changes no result but the last bits.
    """

    def __init__(self, stream: Stream, batch_size: int) -> None:
        self._stream = stream
        self._batch_size = batch_size
        self._kept: dict[int, tuple[EvaluationSet, list[Batch]]] = {}
        self._room = _KEPT_BYTES

    def truth(self, experience: int) -> Data | JoinedData | None:
        """The labelled rows on which predictions made during ``experience`` are scored."""
        with evaluating_allowed():
            return self._stream.truth(experience)

    def measure(self, run: Run, trained: int, within: int | None = None) -> None:
        """Measure on every evaluation set, one line of the record for each set, task and metric."""
        hooks = run.hooks
        evaluation = Evaluation(run, trained)
        metrics = {} if hooks.collect_metrics is None else hooks.collect_metrics(run)
        with evaluating(run.model), forked(run.device):
            if hooks.before_evaluation is not None:
                hooks.before_evaluation(evaluation)
            for number in range(len(self._stream.sets)):
                torch.default_generator.manual_seed(subseed(run.seed, "evaluation rows", number))  # of a data set that augments
                chosen, batches = self._set(number, run.device)
                with torch.no_grad():
                    lines = self._measure_set(chosen, batches, evaluation, metrics)
                for line in lines:
                    event = {
                        "event": "evaluation",
                        "trained": trained,
                        "update": run.clock.update,
                        "set": number,
                        "set_name": chosen.name,
                        **line,
                    }
                    if within is not None:
                        event["within"] = within
                    evaluation.measurements.append(event)
                    run.record.append(event)
            if hooks.after_evaluation is not None:
                hooks.after_evaluation(evaluation)

    def _measure_set(
        self, chosen: EvaluationSet, batches: Iterable[Batch], evaluation: Evaluation, metrics: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        counts = {task.name: Count(task) for task in chosen.tasks}
        for metric in metrics.values():
            metric.reset()
        for number, batch in enumerate(batches):
            if not number:
                evaluation.run.form.check(batch, f"evaluation set {chosen.index} ({chosen.name})")
            with readable(batch, evaluation.run.model):
                outputs = _predictions(batch, evaluation)
                for segment in batch.segments:
                    for task in segment.tasks if segment.role != SUPPORT else ():
                        if task in batch.targets and counts[task].reason is None:
                            self._measure_rows(counts[task], outputs, batch, segment.rows, metrics)
        lines = [count.line() for count in counts.values()]
        for name, metric in metrics.items():
            lines.append(
                {"task": "", "metric": name, "value": float(metric.compute()), "count": len(chosen.data), "loss": None, "reason": None}
            )
        return lines

    def _measure_rows(self, count: Count, outputs: Mapping[str, Tensor], batch: Batch, rows: slice, metrics: Mapping[str, Any]) -> None:
        name = count.task.name
        if isinstance(outputs, Forward):
            if not outputs.serves(name):
                count.reason = f"the model has no head for task {name!r} yet"
                return
            found = outputs.on(name, rows)
        elif name in outputs:
            found = outputs[name][rows]
        else:
            count.reason = f"the active predictor gives no outputs for task {name!r} yet"
            return
        target, known = batch.targets[name][rows], batch.labelled[name]
        if isinstance(known, Tensor):  # some rows have no label
            found, target = found[known[rows]], target[known[rows]]
        count.add(found, target)
        for metric in metrics.values():
            metric.update(found, target)

    def _set(self, number: int, device: torch.device) -> tuple[EvaluationSet, Iterable[Batch]]:
        """Set ``number`` and its rows in batches on ``device``; kept from one evaluation to the next while they are few."""
        if number in self._kept:
            return self._kept[number]
        with evaluating_allowed():
            chosen = self._stream.evaluation_set(number)
        # the unit of data may be an episode of several rows
        parts = [(part, max(1, self._batch_size * len(part) // max(len(part.indices), 1))) for part in chosen.data.parts()]
        batches = (batch.to(device) for part, size in parts for batch in part.in_order(slice(None), size, "evaluation"))
        first = next(batches, None)
        if first is None or not len(first):
            return chosen, ()
        size = sum(tensor.nbytes for tensor in first.tensors()) * -(-sum(len(part.indices) for part, _ in parts) // len(first))
        if size > self._room:  # told from one batch: all of them together may not fit into memory
            return chosen, itertools.chain([first], batches)
        self._room -= size
        self._kept[number] = chosen, [first, *batches]
        return self._kept[number]


def _predictions(batch: Batch, evaluation: Evaluation) -> Mapping[str, Tensor]:
    provide = evaluation.run.hooks.provide_predictions
    if provide is None:
        return Forward(evaluation.run.model, batch.x, encode=evaluation.run.encode)
    return provide(without_labels(batch), evaluation)  # type: ignore[no-any-return]


def without_labels(batch: Batch) -> Batch:
    """``batch`` without labels, but for those of ``support`` rows, which are given to be learnt from."""
    rows = batch.rows(SUPPORT)
    if rows.start == rows.stop:
        return Batch(batch.x, {}, {}, batch.segments, batch.index)
    shown = torch.zeros(len(batch), dtype=torch.bool, device=batch.x.device)
    shown[rows] = True
    labelled = {task: batch.labelled_rows(task) & shown for task in batch.targets}
    targets = {task: column.masked_fill(~labelled[task].view(-1, *[1] * (column.ndim - 1)), 0) for task, column in batch.targets.items()}
    return Batch(batch.x, targets, labelled, batch.segments, batch.index)


class Count:
    """Running sums for one task on one set."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.reason: str | None = None
        self._rows = 0
        self._good: Tensor | float = 0.0
        self._loss: Tensor | float | None = 0.0

    def add(self, outputs: Tensor, target: Tensor) -> None:
        task = self.task
        self._rows += len(target)
        self._good = self._good + task.total_metric(outputs, target)
        if task.kind == "classification" and outputs.shape[1] < task.size:
            self._loss = None  # a head that has not grown to these classes yet has no likelihood for them
        elif self._loss is not None:
            self._loss = self._loss + task.total_loss(outputs, target)

    def state_dict(self) -> dict[str, Any]:
        """The sums so far."""
        loss = None if self._loss is None else float(self._loss)
        return {"rows": self._rows, "good": float(self._good), "loss": loss, "reason": self.reason}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._rows, self._good, self._loss, self.reason = int(state["rows"]), state["good"], state["loss"], state["reason"]

    def line(self) -> dict[str, Any]:
        reason = self.reason or (None if self._rows else "the set has no row for this task")
        defined = reason is None
        return {
            "task": self.task.name,
            "metric": self.task.metric,
            "value": float(self._good) / self._rows if defined else None,
            "count": self._rows,
            "loss": float(self._loss) / self._rows if defined and self._loss is not None else None,
            "reason": reason,
        }
