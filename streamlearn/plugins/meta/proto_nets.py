"""Prototypical networks: learn features in which the rows of a class lie around their mean, so that a new class needs no training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.plugin import SUPERVISED, Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.supervision import Supervision

if TYPE_CHECKING:
    from streamlearn.core.evaluation import Evaluation
    from streamlearn.core.step import Step
    from streamlearn.streams import Batch

__all__ = ["ProtoNets", "prototype_logits"]


def prototype_logits(features: Tensor, support: Tensor, labels: Tensor, classes: int) -> Tensor:
    """-‖f - c_k‖² for each class k, whose prototype c_k is the mean of its support rows, ``(rows, classes)``.

    Args:
        features: f, ``(rows, n)``.
        support: features of the support rows, ``(support rows, n)``.
        labels: their classes, ``(support rows,)``.
        classes: how many there are. One without a support row has no prototype; its logit is the least finite number.

    Example:
        >>> prototype_logits(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]]), torch.tensor([0, 0, 1]), 2)
        tensor([[-0., -9.]])
    """
    member = torch.nn.functional.one_hot(labels, classes).to(features.dtype)
    counts = member.sum(0)
    prototypes = (member.T @ support) / counts.clamp(min=1).unsqueeze(1)
    logits = -torch.cdist(features.unsqueeze(0), prototypes.unsqueeze(0), compute_mode="donot_use_mm_for_euclid_dist").squeeze(0).square()
    return logits.masked_fill(counts == 0, torch.finfo(logits.dtype).min / 2)


class ProtoNets(Plugin):
    r"""Prototypical networks.

    .. math::
        c_k = \frac{1}{|S_k|} \sum_{i \in S_k} f_θ(x_i), \qquad
        p(y = k \mid x) \propto \exp\bigl(-\lVert f_θ(x) - c_k \rVert^2\bigr)

    The features f are what the encoder hands to the heads; S_k are the rows of class k in the support set of an episode, which is a
    domain of the batch (Snell et al. 2017, eq. 1 and 2). Query rows of classification tasks are compared with their labels by these
    logits, in place of the head's; support rows are not compared. The encoder learns through both. What comes after, masks, weightings
    and combiners, acts on that as on any loss. Batches without support rows, and regression tasks, are trained as without this plugin.

    In an evaluation the model predicts by the prototypes of the labelled support rows of each episode, without any training.

    Args:
        support: the role of the rows of which prototypes are made.
        query: the role of the rows that are asked.

    Cost: no pass of the model; one product of features by prototypes. Memory: none.

    Reference: Snell, Swersky & Zemel, Prototypical networks for few-shot learning, NeurIPS 2017, eq. 1 and 2, algorithm 1. Deviations:
    none; the paper trains with more classes an episode than it is tested with, which is the stream's to say.

    Example:
        >>> from streamlearn.plugins import ProtoNets
        >>> ProtoNets()
        ProtoNets()
    """

    info = PluginInfo(
        name="proto_nets",
        family="meta",
        summary="Classifies by the nearest mean of the support rows, and learns features in which that is right.",
        reference="Snell, Swersky & Zemel 2017, NeurIPS, eq. 1 and 2",
        provides=frozenset({"predictor"}),
        streams=SUPERVISED | {"episodes"},
    )

    class Config(PluginConfig):
        """Options of `ProtoNets`."""

        support: str = Field("support", min_length=1)
        query: str = Field("query", min_length=1)

    @hookimpl
    def transform_supervision(self, supervision: tuple[Supervision, ...], step: Step) -> tuple[Supervision, ...]:
        """Compare query rows by their distances to the prototypes of their episode."""
        batch = step.batch
        if self.config.support not in batch.roles:
            return supervision
        found: list[Supervision] = []
        for record in supervision:
            if step.run.tasks[record.task].kind != "classification":
                found.append(record)
                continue
            found += self._compared(record, step)
        return tuple(found)

    def _compared(self, record: Supervision, step: Step) -> Iterator[Supervision]:
        """The query rows of all episodes as one comparison."""
        batch, task = step.batch, record.task
        rows, logits = [], []
        for places, outputs in self._logits(batch, step.outputs.features, task, step.run.tasks[task].size, self.config.query):
            rows.append(places)
            logits.append(outputs)
        if rows:
            chosen = torch.cat(rows)
            known = batch.labelled_rows(task)[chosen]
            if not bool(known.all()):
                chosen, logits = chosen[known], [torch.cat(logits)[known]]
            yield Supervision(record.row, task, torch.cat(logits), batch.targets[task][chosen], rows=chosen)

    def _logits(self, batch: Batch, features: Tensor, task: str, classes: int, role: str | None) -> Iterator[tuple[Tensor, Tensor]]:
        """For each episode with labelled support rows, the places of its rows of ``role`` (of all rows with ``None``) and their logits."""
        known = batch.labelled_rows(task)
        features = features.flatten(1)
        for domain in batch.domains:
            segments = [segment for segment in batch.segments if segment.domain == domain and task in segment.tasks]
            places = {
                kind: torch.cat([torch.arange(s.start, s.stop, device=features.device) for s in chosen])
                for kind, chosen in (
                    ("support", [s for s in segments if s.role == self.config.support]),
                    ("asked", [s for s in segments if role is None or s.role == role]),
                )
                if chosen
            }
            if len(places) < 2:
                continue
            support = places["support"][known[places["support"]]]
            if len(support):
                labels = batch.targets[task][support]
                yield places["asked"], prototype_logits(features[places["asked"]], features[support], labels, classes)

    # ------------------------------------------------------------------ evaluation

    @hookimpl
    def provide_predictions(self, batch: Batch, evaluation: Evaluation) -> Mapping[str, Tensor]:
        """Logits by prototypes; the model's own outputs on rows that have none."""
        own = evaluation.at({}, batch)
        if self.config.support not in batch.roles:
            return own
        run, found = evaluation.run, dict[str, Tensor]()
        for task in run.stream.tasks:
            if task.kind != "classification" or task.name not in batch.targets:
                continue
            for places, logits in self._logits(batch, own.features, task.name, task.size, None):
                if task.name not in found:
                    serves = own.serves(task.name) and own[task.name].shape[1] == task.size
                    found[task.name] = own[task.name].clone() if serves else logits.new_zeros(len(batch), task.size)
                found[task.name][places] = logits
        return {**{task: own[task] for task in batch.tasks if own.serves(task)}, **found}
