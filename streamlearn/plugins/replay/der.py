"""Dark experience replay (DER, DER++): rows of a memory are held to the outputs that the model gave when they came in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from streamlearn.core.forward import Forward
from streamlearn.core.importance import evaluating
from streamlearn.core.plugin import Plugin, PluginInfo, Tunable, hookimpl
from streamlearn.core.randomness import forked, subseed
from streamlearn.core.remembering import MemoryOptions, brought, is_new, open_memory, remember, remember_batch
from streamlearn.errors import ConfigurationError
from streamlearn.streams.batch import concatenate

if TYPE_CHECKING:
    from streamlearn.core.memory import ReplayMemory
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.core.supervision import Supervision
    from streamlearn.streams import Batch, Experience
    from streamlearn.streams.batch import StoredColumn

__all__ = ["DER", "known_error"]


def known_error(pairs: Iterable[tuple[Tensor, Tensor]]) -> Tensor | None:
    """The mean of (output - stored)² over every stored number that is known, a scalar; 0 if none is, ``None`` without pairs.

    Args:
        pairs: outputs ``(rows, size)``, and what is stored ``(rows, at most size)``, NaN where there was no output yet.

    Example:
        >>> outputs, stored = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[0.0, 0.0], [0.0, float("nan")]])
        >>> known_error([(outputs, stored)]).item()  # (1 + 4 + 9) / 3
        4.666666507720947
    """
    total: Tensor | None = None
    count = 0
    for outputs, stored in pairs:
        now, then, unknown = outputs[:, : stored.shape[1]], stored.to(outputs.dtype), stored.isnan()
        missing = int(unknown.sum())
        if missing:
            now, then = now.masked_fill(unknown, 0.0), then.nan_to_num()
        part = mse_loss(now, then, reduction="sum")
        total, count = part if total is None else total + part, count + stored.numel() - missing
    return None if total is None else total / max(count, 1)


class DER(Plugin):
    r"""Dark experience replay: DER, and DER++ with ``beta`` above 0.

    .. math:: L = \overline{\ell}(B) + \alpha\, \overline{(h(x') - z')^2}(M') + \beta\, \overline{\ell}(M'')

    B are the rows that the batch brings, M' and M'' two draws from a memory, ℓ the strategy's own loss, h(x) the outputs of the model
    (logits), and z those that it gave for a row when that row came into the memory. Each bar is a mean of its own; that of the squares
    goes over all outputs of all rows, as in the authors' code. Two published ways to fill the memory are two settings:

    - ``fill="step"`` (the authors): rows are offered as they come, with the outputs of the step in which they came, in training mode
      and from before the update.
    - ``fill="experience"`` (Avalanche): rows are offered when their experience has ended, with the outputs that the model has then, in
      evaluation mode; a step replays the past only.

    How it stands beside others:

    - M' joins the batch in role ``"memory/<name>/logits"`` and without labels, so that no loss on labels sees it; the α part is the term
      ``<name>/logits``. M'' joins in role ``"memory/<name>/labels"``, as rows of the batch whose weights make them count β times as much
      as all others, so masks (`ERACE`), weightings and combiners act on them as on any rows. Rows that another plugin replays belong to B.
    - Outputs are kept by task, for the rows that are asked on it. An output that did not exist when a row came in is not compared, so
      that heads may grow. Regressed values are compared like logits.
    - Another plugin may fill the memory when ``fill="experience"``: rows without outputs get them when an experience ends, and are drawn
      without being compared until then. With ``fill="step"`` this plugin must fill it.
    - With micro-batches the means are those of each micro-batch: the same where M', M'' and B divide evenly.

    Args:
        alpha: α, at least 0; 0 leaves M' out. The best values of the paper lie between 0.1 and 1.
        beta: β, at least 0; 0, the default, is DER; the best values of the paper for DER++ are 0.5 and 1.
        batch_size: rows of each draw, at least 1; default as many as the batch brings.
        fill: ``"step"`` or ``"experience"``.
        memory: name of the memory. Plugins that name the same one share it, and must agree on ``capacity``, ``policy`` and ``budget``.
        capacity: rows kept, at least 1.
        policy: which, as in `Replay`; the paper has ``"reservoir"``, Avalanche ``"class_balanced"``.
        budget: ``"total"``: ``capacity`` rows in all; ``"per_group"``: so many of each class, or experience.

    Raises:
        ConfigurationError: ``fill="step"`` and another plugin fills the memory, or the stream has episodes.

    Cost: no additional pass, but each pass sees up to twice ``batch_size`` rows more; with ``fill="experience"`` one pass over the rows
    that are new in the memory when an experience ends. Memory: ``capacity`` indices and as many rows of outputs.

    Reference: Buzzega, Boschini, Porrello, Abati & Calderara, Dark experience for general continual learning: a strong, simple
    baseline, NeurIPS 2020, eq. 6 and algorithms 1 and 2. Deviations: one pass over all rows in place of three, which differs where
    BatchNorm sees the batch; rows are offered during the first epoch of an experience only, where the authors' code offers them in every
    epoch, so that a memory may hold a row several times. Avalanche 0.6 compares one draw with both logits and labels.

    Example:
        >>> from streamlearn.plugins import DER
        >>> DER(alpha=0.1, beta=0.5, capacity=200)
        DER(alpha=0.1, beta=0.5, capacity=200)
    """

    info = PluginInfo(
        name="der",
        family="replay",
        summary="Holds rows of a memory to the outputs that they had when they came in, and with beta to their labels, too.",
        reference="Buzzega et al. 2020, NeurIPS, eq. 6 and algorithms 1 and 2",
        provides=frozenset({"replay"}),
        conflicts=frozenset({"experience_weighting"}),  # each says how much the rows of a memory count
        memory="capacity indices and as many rows of outputs",
        ranks="local",
    )

    class Config(MemoryOptions):
        """Options of `DER`."""

        alpha: Annotated[float, Tunable(0.01, 10.0, log=True)] = Field(0.5, ge=0)
        beta: Annotated[float, Tunable(0.01, 10.0, log=True)] = Field(0.0, ge=0)
        batch_size: int | None = Field(None, ge=1)
        fill: Literal["experience", "step"] = "step"

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._prefix = f"{self.name}/logits/"
        self._offered: tuple[int, int] | None = None
        self._outputs: dict[str, Tensor] | None = None  # of the step in progress, from before its update

    # ------------------------------------------------------------------ the objective

    @hookimpl
    def transform_batch(self, batch: Batch, step: Step) -> Batch:
        """Add both draws."""
        run, name = step.run, self.config.memory
        open_memory(run, self)
        rows, joined = self.config.batch_size or max(1, brought(batch)), [batch]
        if run.value(self, "beta"):  # first, so that what has labels lies side by side
            drawn = step.draw(name, rows, purpose=f"{self.name}/labels")
            if drawn is not None:
                joined.append(drawn.in_role(self._role("labels")).to(batch.x.device))
        if run.value(self, "alpha"):
            drawn = step.draw(name, rows, purpose=f"{self.name}/logits", stored=True)
            own = {} if drawn is None else self._own(drawn)
            if drawn is not None and own:
                joined.append(drawn.replace(targets={}, labelled={}, stored=own).in_role(self._role("logits")).to(batch.x.device))
        return concatenate(joined)

    @hookimpl
    def collect_terms(self, step: Step) -> dict[str, Tensor]:
        """α times the mean squared difference from the stored outputs."""
        alpha = step.run.value(self, "alpha")
        columns = self._own(step.batch) if alpha else {}
        error = known_error((step.outputs.on(name.removeprefix(self._prefix), c.rows), c.values) for name, c in columns.items())
        return {} if error is None else {"logits": alpha * error}

    @hookimpl
    def transform_supervision(self, supervision: tuple[Supervision, ...], step: Step) -> tuple[Supervision, ...]:
        """Let the labelled draw count β times as much as all other rows, and those as much as without it."""
        rows = step.batch.rows(self._role("labels"))
        if rows.start == rows.stop:
            return supervision
        column = torch.zeros(len(step.batch), dtype=torch.bool, device=step.batch.x.device)
        column[rows] = True
        return _added(supervision, column, step.run.value(self, "beta"))

    # ------------------------------------------------------------------ the memory

    @hookimpl
    def around_update(self, update: Callable[[Mapping[str, Tensor]], None], gradients: Mapping[str, Tensor], step: Step) -> None:
        """Keep the outputs that the incoming rows have before the update."""
        if self.config.fill == "step" and is_new(step.run):
            self._own_the_memory(step.run)
            self._outputs = self._outputs_of(step)
        update(gradients)

    @hookimpl
    def after_step(self, step: Step) -> None:
        """Offer the incoming rows as they come, with their outputs."""
        if self.config.fill == "step" and is_new(step.run):
            self._own_the_memory(step.run)
            stored, self._outputs = self._outputs_of(step) if self._outputs is None else self._outputs, None
            self._offered = remember_batch(step.run, self, step.batch, self._offered, stored)

    @hookimpl
    def after_experience(self, experience: Experience, run: Run) -> None:
        """Offer the rows of the experience that has ended, and complete rows that have no outputs yet."""
        if self.config.fill == "experience":
            self._complete(remember(run, self), run)

    def _own_the_memory(self, run: Run) -> None:
        memory = open_memory(run, self)
        if memory.owner not in (None, self.name):
            raise ConfigurationError(
                f"plugin {self.name}: memory {memory.name!r} is filled by {memory.owner}, which does not keep the outputs of the step in "
                f"which a row comes: give {self.name} another memory name, or fill='experience'"
            )
        memory.owner = self.name

    def _outputs_of(self, step: Step) -> dict[str, Tensor]:
        """By column, what the model gave for the incoming rows that are asked on its task, ``(rows of the batch, size)``, else NaN."""
        found: dict[str, Tensor] = {}
        with torch.no_grad():
            for segment in step.batch.segments:
                for task in segment.tasks if segment.role == "train" else ():
                    part = step.outputs.on(task, segment.rows).detach()
                    column = found.setdefault(self._prefix + task, part.new_full((len(step.batch), part.shape[1]), float("nan")))
                    column[segment.rows] = part
        return found

    def _complete(self, memory: ReplayMemory, run: Run) -> None:
        places = reduce(np.intersect1d, [memory.lacking(self._prefix + task) for task in run.tasks], np.arange(len(memory)))
        size = run.options.evaluation_batch_size
        with torch.no_grad(), evaluating(run.model), forked(run.device):
            torch.default_generator.manual_seed(subseed(run.seed, "outputs", self.name, run.clock.experience))  # of rows that are augmented
            for here in (places[start : start + size] for start in range(0, len(places), size)):
                batch = memory.rows_at(here).to(run.device)
                outputs = Forward(run.model, batch.x)
                for segment in batch.segments:
                    for task in segment.tasks:
                        memory.store(self._prefix + task, here[segment.rows], outputs.on(task, segment.rows))

    def _role(self, draw: str) -> str:
        return f"memory/{self.name}/{draw}"

    def _own(self, batch: Batch) -> dict[str, StoredColumn]:
        return {name: column for name, column in batch.stored.items() if name.startswith(self._prefix)}


def _added(supervision: tuple[Supervision, ...], column: Tensor, beta: float) -> tuple[Supervision, ...]:
    """Weights by which the loss is the mean over the rows outside ``column``, plus ``beta`` times that over those inside.

    A loss is a mean over everything: the inside gets ``beta`` times the weight of the outside, and all of it the scale 1 + ``beta``.
    """
    pairs = [(record, column if record.rows is None else column[record.rows]) for record in supervision]
    mine, others = sum(r.weight_of(kind) for r, kind in pairs), sum(r.weight_of(~kind) for r, kind in pairs)
    if not mine:
        return supervision
    factor, scale = (beta * others / mine, 1 + beta) if others else (1.0, beta)
    return tuple(record.multiplied(kind, inside=factor, outside=1.0).replace(scale=record.scale * scale) for record, kind in pairs)
