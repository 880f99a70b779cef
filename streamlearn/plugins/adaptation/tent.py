"""Test entropy minimisation (Tent): adapt the normalisation of a trained model to unlabelled rows as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field
from torch import Tensor, nn

from streamlearn.core.optimization import OptimizerFactory
from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, Tunable, hookimpl
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.phases import Phase
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Experience

__all__ = ["Tent", "entropy", "normalization_parameters"]

_NORMALIZATION = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)


def entropy(logits: Tensor) -> Tensor:
    """-Σ_c p_c log p_c of each row, in nats from 0 to log(classes), ``(rows,)``.

    Args:
        logits: ``(rows, classes)``.

    Example:
        >>> import torch
        >>> entropy(torch.zeros(1, 4)).item() == torch.log(torch.tensor(4.0)).item()
        True
    """
    return -(logits.softmax(1) * logits.log_softmax(1)).sum(1)


def normalization_parameters(model: nn.Module) -> tuple[str, ...]:
    """The names of the scales and shifts of the normalisation layers of ``model``."""
    return tuple(
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        if isinstance(module, _NORMALIZATION)
        for name, _ in module.named_parameters(recurse=False)
    )


class Tent(Plugin):
    r"""Test entropy minimisation.

    .. math:: P = -\frac{λ}{n} \sum_i \sum_c p_{ic} \log p_{ic}

    over the ``target`` rows of a batch, minimised over the scales and shifts of normalisation layers alone, in one pass over the rows
    (Wang et al. 2021, section 3). It acts in experiences that hold only ``target`` rows; what the model has learnt before is the source
    model. The engine scores what was predicted before each update (the event ``prequential`` of the record).

    Layers with running statistics normalise by the statistics of the batch, as in the paper, because a model in training does.
    Deviation: the running statistics follow the target rows meanwhile (the authors' code drops them), so an evaluation afterwards
    normalises by what was last seen.

    Args:
        strength: λ, at least 0; 0 switches the plugin off.
        optimizer: builds an optimiser of the adaptation's own, a function of the parameters; ``None`` takes the run's.

    Raises:
        ConfigurationError: the model has no normalisation layer with scales and shifts.

    Cost: none beyond the step's own passes. Memory: none.

    Reference: Wang et al., Tent: fully test-time adaptation by entropy minimization, ICLR 2021, section 3.

    Example:
        >>> from streamlearn.plugins import Tent
        >>> Tent()
        Tent()
    """

    info = PluginInfo(
        name="tent",
        family="adaptation",
        summary="Adapts scales and shifts of normalisation layers to unlabelled rows, so that predictions become sure.",
        reference="Wang et al. 2021, ICLR, section 3",
        ranks="local",
        strength="strength",
        streams=frozenset({"test_time"}),
    )

    class Config(PluginConfig):
        """Options of `Tent`."""

        strength: Annotated[float, Tunable(0.01, 10.0, log=True)] = Field(1.0, ge=0)
        optimizer: OptimizerFactory | None = None

    @hookimpl
    def transform_phases(self, phases: tuple[Phase, ...], experience: Experience, run: Run) -> tuple[Phase, ...]:
        """One pass over the target rows, in which only scales and shifts move."""
        if set(experience.data) != {"target"} or self.config.strength == 0:
            return phases
        names = normalization_parameters(run.model)
        if not names:
            raise ConfigurationError(
                f"plugin {self.name} adapts normalisation layers, and the model has none with scales and shifts: "
                "use a model with BatchNorm, LayerNorm or GroupNorm"
            )
        return tuple(
            phase.replace(trainable=names, epochs=1, optimizer=self.config.optimizer or phase.optimizer) if phase.name == "main" else phase
            for phase in phases
        )

    @hookimpl
    def collect_terms(self, step: Step) -> dict[str, Tensor]:
        """The mean entropy of the predictions for each task."""
        run, rows = step.run, step.batch.rows("target")
        strength = run.value(self, "strength")
        if strength == 0 or rows.start == rows.stop or run.experience is None or set(run.experience.data) != {"target"}:
            return {}
        tasks = [task.name for task in run.experience.tasks if task.kind == "classification"]
        return {task: strength * entropy(step.outputs.on(task, rows)).mean() for task in tasks if step.outputs.serves(task)}
