"""Generative replay: a generator is trained beside the model, and what it makes up joins every batch, labelled by the model of before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal

import pydantic
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from streamlearn.core.forward import Forward, Teacher
from streamlearn.core.optimization import Trainable
from streamlearn.core.plugin import Passes, Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.remembering import brought
from streamlearn.errors import ConfigurationError, DataError
from streamlearn.models.vae import VAE
from streamlearn.streams.batch import EVERY_ROW, Batch, Segment, StoredColumn

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.core.supervision import Supervision
    from streamlearn.models import Model
    from streamlearn.streams import Experience

__all__ = ["GenerativeReplay", "softened"]

_SLACK = 1e-4  # what resizing and the like add to an image in [0, 1]


def softened(record: Supervision, size: int, generated: StoredColumn, temperature: float) -> Iterator[Supervision]:
    """``record`` in two: as it is on other rows, and on generated ones with outputs divided by T, and probabilities for targets.

    Args:
        record: a comparison, on any rows of a batch.
        size: rows of the batch.
        generated: probabilities of its generated rows, ``(generated rows, classes)``; classes that have come since have probability 0.
        temperature: T, at which the probabilities were taken.
    """
    every = torch.arange(size, device=record.target.device)
    rows = record.rows if isinstance(record.rows, Tensor) else every if record.rows is None else every[record.rows]
    inside = (rows >= generated.rows.start) & (rows < generated.rows.stop)
    for chosen, soft in ((~inside, False), (inside, True)):
        if not bool(chosen.any()):
            continue
        part = record.take(chosen, rows[chosen])
        if soft:
            found = generated.values[rows[chosen] - generated.rows.start].to(part.outputs)
            wide = pad(found, (0, part.outputs.shape[1] - found.shape[1]))
            part = part.replace(outputs=part.outputs / temperature, target=wide)
        yield part


class GenerativeReplay(Plugin):
    r"""Deep generative replay: rows that a generator makes up join every batch, in place of rows kept from the past.

    .. math:: L = \frac1{n + m} \Bigl( \sum_{i=1}^{n} l(f(x_i), y_i) + \sum_{j=1}^{m} l(f(\tilde x_j), f'(\tilde x_j)) \Bigr),
        \qquad \tilde x_j \sim g'

    with f' and g' the model and the generator as the last experience left them. A generated row is labelled with the class that f' gives
    the largest output, among those of finished experiences (``labels="hard"``); with ``labels="soft"`` it is compared with all of their
    probabilities, at the temperature T: -Σ_c softmax(f'/T)_c log softmax(f/T)_c, where classes that have come since have probability 0.
    `ExperienceWeighting` beside it gives the incoming rows 1/k of the weight in the k-th experience, and the generated ones the rest.

    The generator g is trained in the same steps, by an Adam of its own, on the incoming rows and on what g' makes up, as the authors do:

    .. math:: P = \frac1k \frac1n \sum_i L_g(x_i) + \Bigl(1 - \frac1k\Bigr) \frac1m \sum_j L_g(\tilde x_j)

    which is the term in the record; it moves no parameter of the model. What bounds all gradients together (`Clipping`, `SAM`) counts
    those of the generator, too.

    Generated rows have a role of their own among the memory's, ``"memory/<name of the plugin>"``, so that what treats memory rows apart
    finds them; they are the rows of no source. A row is labelled for every task of the past: by each old head, where experiences have
    tasks of their own, as in the authors' code, which takes the mean over heads where the engine takes the sum of the tasks' means.
    Regressed values are those that f' gives. Beside `Replay` neither repeats the other's rows. Beside `Mixup`, which acts after it, the
    generator learns mixed rows.

    Args:
        rows: rows generated in each step, at least 1; default as many as the batch brings.
        labels: ``"hard"``, the method as published, or ``"soft"``.
        temperature: T of soft labels, above 0.
        hidden: widths of the hidden layers of the generator, a `VAE`, each at least 1. Images are flattened.
        latent: its latent dimensions, at least 1.
        likelihood: ``"bernoulli"`` for inputs in [0, 1], or ``"gaussian"``; see `VAE`.
        learning_rate: of the generator, above 0.
        generator: a function from the shape of an input to another generator, in place of a `VAE`: a module that gives the loss of every
            row, ``(rows,)``, when called as ``g(x, random)``, and ``count`` new rows from ``g.sample(count, random)``. Both draw from
            ``random`` alone, a generator on the CPU, and change no buffer.

    Raises:
        ConfigurationError: a stream of episodes, which has no past to generate.
        DataError: inputs are no floating-point numbers, or lie outside [0, 1] with ``likelihood="bernoulli"``.

    Cost: in each step one pass of the model of before and one of the generator of before over ``rows`` rows, and a forward and backward
    pass of the generator over the incoming and the generated rows; the model sees ``rows`` rows more. Memory: the model once and the
    generator twice, however long the stream.

    Reference: Shin, Lee, Kim & Kim, Continual learning with deep generative replay, NeurIPS 2017, section 3 and eq. 1; as set up by van
    de Ven, Tuytelaars & Tolias, Three types of incremental learning, Nature Machine Intelligence 4, 2022, whose generator for split MNIST
    the defaults are; soft labels: van de Ven & Tolias, Generative replay with feedback connections, arXiv 1809.10635, with T = 2.
    Deviation: the paper of 2017 has a generative adversarial network for a generator, and trains it apart from the model. Avalanche (0.6)
    chooses hard labels among all outputs, also of classes that have not come yet; where all have, the model is the same.

    Example:
        >>> from streamlearn.plugins import ExperienceWeighting, GenerativeReplay
        >>> [GenerativeReplay(hidden=(100,), latent=20), ExperienceWeighting()]
        [GenerativeReplay(hidden=(100,), latent=20), ExperienceWeighting()]
    """

    info = PluginInfo(
        name="generative_replay",
        family="replay",
        summary="Mixes rows that a generator of the past makes up, labelled by the previous model, into every batch.",
        reference="Shin et al. 2017, NeurIPS, section 3; van de Ven et al. 2022, Nature Machine Intelligence 4:1185",
        provides=frozenset({"replay"}),
        passes=Passes(teachers=frozenset({"previous"})),
        memory="the model once, the generator twice",
    )

    class Config(PluginConfig):
        """Options of `GenerativeReplay`."""

        rows: int | None = Field(None, ge=1)
        labels: Literal["hard", "soft"] = "hard"
        temperature: float = Field(2.0, gt=0)
        hidden: tuple[pydantic.PositiveInt, ...] = (400, 400)
        latent: int = Field(100, ge=1)
        likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
        learning_rate: float = Field(1e-3, gt=0)
        generator: Callable[[tuple[int, ...]], nn.Module] | None = None

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._weights: dict[str, Tensor] = {}  # of the generator, as the last experience left it
        self._tasks: list[str] = []  # those of finished experiences
        self._previous: Any = None

    @property
    def _role(self) -> str:
        return f"memory/{self.name}"

    # ------------------------------------------------------------------ what is trained, and who labels

    @hookimpl
    def collect_modules(self, run: Run) -> dict[str, Trainable]:
        """The generator."""
        config, rate = self.config, self.config.learning_rate
        make = config.generator or (lambda shape: VAE(shape, config.hidden, config.latent, config.likelihood))
        like = next(run.model.parameters(), None)
        made = make(run.stream.input_shape) if like is None else make(run.stream.input_shape).to(like.dtype)
        return {"generator": Trainable(made, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=rate))}

    @hookimpl
    def collect_teachers(self, run: Run) -> dict[str, Teacher]:
        """The model as the last experience left it."""
        return {"previous": Teacher("copy", refresh="experience")}

    @hookimpl
    def after_experience(self, experience: Experience, run: Run) -> None:
        """Keep the generator as it is now."""
        if "train" in experience.data:
            trained = run.modules[f"{self.name}/generator"]
            self._weights = {name: tensor.detach().clone() for name, tensor in trained.state_dict().items()}
            self._tasks += [task.name for task in experience.tasks if task.name not in self._tasks]
            self._previous = None

    def _generator(self, run: Run) -> Any:
        """The generator of before, frozen."""
        if self._previous is None:
            previous = copy.deepcopy(run.modules[f"{self.name}/generator"]).requires_grad_(False).eval()
            previous.load_state_dict(self._weights)
            self._previous = previous
        return self._previous

    # ------------------------------------------------------------------ the step

    @hookimpl
    def transform_batch(self, batch: Batch, step: Step) -> Batch:
        """Add generated rows, once there is a past."""
        run = step.run
        self._check(batch)
        teacher = run.teachers.get(f"{self.name}/previous")
        rows = self.config.rows or brought(batch)
        if teacher is None or not self._tasks or not rows:
            return batch
        with torch.no_grad():
            x = self._generator(run).sample(rows, run.generator(self, "rows"))
            return batch.with_rows(self._role, self._labelled(x.to(batch.x), teacher, run))

    def _labelled(self, x: Tensor, teacher: Model, run: Run) -> Batch:
        outputs, targets, stored = Forward(teacher, x), {}, {}
        for task in self._tasks:
            found = outputs[task]
            if run.tasks[task].kind == "regression":
                targets[task] = found
                continue
            classes = torch.tensor(run.classes_seen.get(task) or range(found.shape[1]), device=x.device)
            logits = found.index_select(1, classes)
            targets[task] = classes[logits.argmax(1)]
            if self.config.labels == "soft":
                probabilities = torch.softmax(logits / self.config.temperature, 1)
                wide = torch.zeros_like(found).index_copy_(1, classes, probabilities)
                stored[f"{self.name}/{task}"] = StoredColumn(slice(0, len(x)), wide)
        segment = Segment(self._role, 0, len(x), tuple(self._tasks), "", self.name)
        return Batch(x, targets, dict.fromkeys(targets, EVERY_ROW), (segment,), torch.arange(len(x)), stored)

    @hookimpl
    def transform_supervision(self, supervision: tuple[Supervision, ...], step: Step) -> tuple[Supervision, ...]:
        """Compare generated rows with probabilities, if that is asked for."""
        batch = step.batch
        found: list[Supervision] = []
        for record in supervision:
            column = batch.stored.get(f"{self.name}/{record.task}")
            found += [record] if column is None else softened(record, len(batch), column, self.config.temperature)
        return tuple(found)

    @hookimpl
    def collect_terms(self, step: Step) -> Tensor | None:
        """The generator's loss on incoming and on generated rows."""
        batch, run = step.batch, step.run
        new, old = batch.x[batch.rows("train")], batch.x[batch.rows(self._role)]
        if not len(new):
            return None
        # every view of the same rows draws the same noise, and the parts of a batch, which begin with other rows, have their own
        random = run.generator(self, f"noise {int(batch.index[0])}")
        losses: Tensor = step.module(f"{self.name}/generator")(torch.cat([new, old]), random)
        if losses.shape != (len(new) + len(old),):
            raise ConfigurationError(
                f"plugin {self.name}: the generator gave a loss of shape {tuple(losses.shape)} for {len(new) + len(old)} rows: "
                "give one number for each row"
            )
        share = 1 / (run.clock.experience + 1) if len(old) else 1.0
        loss = share * losses[: len(new)].mean()
        return loss + (1 - share) * losses[len(new) :].mean() if len(old) else loss

    def _check(self, batch: Batch) -> None:
        """Refuse what the generator cannot learn."""
        if "support" in batch.roles:
            raise ConfigurationError(f"plugin {self.name}: a stream of episodes has no past to generate rows of: remove the plugin")
        x = batch.x[batch.rows("train")]
        if not x.is_floating_point():
            raise DataError(f"plugin {self.name} met inputs of type {x.dtype}, which cannot be generated: give floating-point inputs")
        if self.config.likelihood == "bernoulli" and self.config.generator is None and len(x):
            low, high = (float(value) for value in x.aminmax())
            if low < -_SLACK or high > 1 + _SLACK:
                raise DataError(
                    f"plugin {self.name} met inputs from {low:g} to {high:g} in source {batch.segments[0].source!r}, but with "
                    "likelihood='bernoulli' they must lie in [0, 1]: scale them, or give likelihood='gaussian'"
                )

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """The generator of before, and the tasks that it knows."""
        return {"generator": dict(self._weights), "tasks": list(self._tasks)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._weights, self._tasks, self._previous = dict(state["generator"]), list(state["tasks"]), None
