"""The hook contract: the one table that engine and plugins agree on. Start reading here.

The prefix of a hook's name *is* its semantics:

========================  =========  =================================================================================
prefix                    kind       how several plugins combine
========================  =========  =================================================================================
``before_`` ``after_``    event      all run, in resolved order; ``after_`` in reverse order, so that edits nest
``collect_``              additive   named contributions, prefixed by the plugin's name; nothing is dropped silently
``transform_``            pipeline   the value goes through them in order; returning ``None`` is an error
``provide_``              exclusive  at most one active plugin; two are a composition error; the engine has the default
``around_``               wrapper    nested; the first listed is outermost
========================  =========  =================================================================================

The order in which one training step fires them is section "One training step" of ``step.py``. Implementations are marked
with `streamlearn.hookimpl` and may name any subset of a hook's arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pluggy

if TYPE_CHECKING:
    from torch import Tensor

    from streamlearn.core.evaluation import Evaluation
    from streamlearn.core.forward import Teacher
    from streamlearn.core.gradients import TaskRows
    from streamlearn.core.objective import Objective
    from streamlearn.core.optimization import Trainable
    from streamlearn.core.phases import Phase
    from streamlearn.core.run import Run
    from streamlearn.core.supervision import Supervision
    from streamlearn.core.view import Step
    from streamlearn.models import Model
    from streamlearn.streams import Batch, Experience, Stream

    Losses = Mapping[str, Tensor]
    Gradients = Mapping[str, Tensor]

__all__ = ["HOOKS", "HOOK_API_VERSION", "OLDEST_HOOK_API_VERSION", "HookSpecs", "Kind", "kind_of", "since_of"]

HOOK_API_VERSION = 1
"""Version of this contract: it rises when a hook changes its meaning or goes, not when one is added or renamed (see ``deprecation.py``).

A plugin written for a newer one is refused, with the line that upgrades streamlearn.
"""

OLDEST_HOOK_API_VERSION = 1
"""The oldest version for which plugins are still accepted; one written for an older one is refused, with the line that upgrades it."""

Kind = Literal["event", "additive", "pipeline", "exclusive", "wrapper"]

_KINDS: dict[str, Kind] = {
    "before": "event",
    "after": "event",
    "collect": "additive",
    "transform": "pipeline",
    "provide": "exclusive",
    "around": "wrapper",
}

_marker = pluggy.HookspecMarker("streamlearn")
_SINCE: dict[str, str] = {}
_Function = TypeVar("_Function", bound=Callable[..., Any])


def _spec(since: str) -> Callable[[_Function], _Function]:
    """Declare a hook, which came with release ``since``."""

    def declare(function: _Function) -> _Function:
        _SINCE[function.__name__] = since
        return _marker(function)

    return declare


class HookSpecs:
    """Every hook, phase by phase in the order in which a run meets them, an ``after_`` beside its ``before_``."""

    # ------------------------------------------------------------------------------------------------ run

    @_spec("0.1")
    def transform_stream(self, stream: Stream, run: Run) -> Stream:  # type: ignore[empty-body]
        """Exchange the stream: curricula, label policies. A pure function of the stream and the configuration."""

    @_spec("0.1")
    def transform_model(self, model: Model, run: Run) -> Model:  # type: ignore[empty-body]
        """Exchange or wrap the model: heads, routing, gates, LoRA, bias layers. A pure function of the model."""

    @_spec("0.1")
    def before_run(self, run: Run) -> None:
        """A run starts: model and stream exist, nothing has been trained. Not fired again by a resume."""

    @_spec("0.1")
    def after_run(self, run: Run) -> None:
        """A run ends, also by failure (``run.error`` holds the exception then): trackers close here."""

    # ------------------------------------------------------------------------------------------------ experience

    @_spec("0.1")
    def collect_modules(self, run: Run) -> Mapping[str, Trainable]:  # type: ignore[empty-body]
        """Trainable helpers (discriminators, log-variances, generators), asked at every experience.

        A module already known under its name is kept; the engine owns its optimiser. No plugin keeps a private optimiser.
        """

    @_spec("0.1")
    def collect_teachers(self, run: Run) -> Mapping[str, Teacher]:  # type: ignore[empty-body]
        """``{name: Teacher}``: frozen or averaged models whose outputs the step reads as ``step.teacher("<plugin>/<name>")``."""

    @_spec("0.1")
    def collect_taps(self, run: Run) -> Mapping[str, str]:  # type: ignore[empty-body]
        """``{name: path of a module}``: the step reads that module's output as ``step.tap("<plugin>/<name>")``."""

    @_spec("0.1")
    def before_experience(self, experience: Experience, run: Run) -> None:
        """An experience starts; heads have grown already. Parameters may be written."""

    @_spec("0.1")
    def transform_phases(self, phases: tuple[Phase, ...], experience: Experience, run: Run) -> tuple[Phase, ...]:  # type: ignore[empty-body]
        """Change what is trained on, in which phases; starts as one ``Phase("main", data, epochs)``.

        Must depend on nothing that steps change, because a resume in mid-experience asks again.
        """

    @_spec("0.1")
    def after_experience(self, experience: Experience, run: Run) -> None:
        """An experience ends: importance, memory, anchors. Reads final weights, writes none."""

    # ------------------------------------------------------------------------------------------------ epoch

    @_spec("0.1")
    def before_epoch(self, run: Run) -> None:
        """An epoch of a phase starts (``run.clock``): schedules, pseudo-labels."""

    @_spec("0.1")
    def after_epoch(self, run: Run) -> None:
        """An epoch ends; parameters may be written. ``run.clock.is_last_epoch`` says whether the phase ends with it."""

    # ------------------------------------------------------------------------------------------------ step

    @_spec("0.1")
    def provide_task_probabilities(self, step: Step) -> Mapping[str, float]:  # type: ignore[empty-body]
        """``{task: probability}`` from which the rows of the next batch are drawn; feedback from validation, never test."""

    @_spec("0.1")
    def transform_batch(self, batch: Batch, step: Step) -> Batch:  # type: ignore[empty-body]
        """Add, mix or generate rows: replay, mixup. All draws of a step are made here or in ``before_step``."""

    @_spec("0.1")
    def before_step(self, step: Step) -> None:
        """The batch is final and no forward pass has been made."""

    @_spec("0.1")
    def transform_supervision(self, supervision: tuple[Supervision, ...], step: Step) -> tuple[Supervision, ...]:  # type: ignore[empty-body]
        """Masks, soft targets, row weights, row names: what replaces or refines a *target*. Pure."""

    @_spec("0.1")
    def provide_task_losses(self, supervision: tuple[Supervision, ...], step: Step) -> Iterable[Tensor]:  # type: ignore[empty-body]
        """One unreduced loss ``(rows,)`` per record: only what replaces the loss itself. Pure."""

    @_spec("0.1")
    def collect_terms(self, step: Step) -> Tensor | Mapping[str, Tensor] | None:
        """Penalties, distillation, alignment: named scalars added to the objective. Pure; ``None`` or ``{}`` when there is none.

        Read the model only through ``step`` (``step.parameters``, ``step.outputs``, ``step.tap``, ``step.teacher``): then the
        term is also right at the fast weights of MAML or SAM.
        """

    @_spec("0.1")
    def around_objective(self, objective: Callable[[Step], Objective], step: Step) -> Objective:  # type: ignore[empty-body]
        """Choose at which parameters the objective is evaluated: call ``objective(step.at(...))`` as often as needed."""

    @_spec("0.1")
    def provide_weighting(self, losses: Losses, step: Step) -> Tensor:  # type: ignore[empty-body]
        """A scalar s(L) of the losses by row; its weights are ∂s/∂L. Default Σ share_k L_k. Pure."""

    @_spec("0.1")
    def provide_gradient_combination(self, rows: TaskRows, step: Step) -> Mapping[str, float] | Tensor:  # type: ignore[empty-body]
        """Combine the gradients of the rows: weights by row name, or the flat combined gradient of the shared parameters."""

    @_spec("0.1")
    def transform_gradients(self, gradients: Gradients, step: Step) -> Gradients:  # type: ignore[empty-body]
        """Project, clip or mask gradients by parameter name. A name left out is not updated at all."""

    @_spec("0.1")
    def around_update(self, update: Callable[[Gradients], None], gradients: Gradients, step: Step) -> None:
        """Call ``update(gradients)`` exactly once; other gradients may be passed, parameters may be written afterwards."""

    @_spec("0.1")
    def after_step(self, step: Step) -> None:
        """The update is done; ``step.losses``, ``step.terms`` and ``step.updated`` can be read, nothing may be written."""

    # ------------------------------------------------------------------------------------------------ evaluation

    @_spec("0.1")
    def before_evaluation(self, evaluation: Evaluation) -> None:
        """An evaluation starts; the model is in evaluation mode."""

    @_spec("0.1")
    def provide_predictions(self, batch: Batch, evaluation: Evaluation) -> Mapping[str, Tensor]:  # type: ignore[empty-body]
        """Outputs by task in place of the model's own: nearest mean, prototypes, SLDA. Pure; sees no labels."""

    @_spec("0.1")
    def collect_metrics(self, run: Run) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """``{name: torchmetrics.Metric}``, updated by the engine with (outputs, targets) and recorded per evaluation set."""

    @_spec("0.1")
    def after_evaluation(self, evaluation: Evaluation) -> None:
        """An evaluation ends; ``evaluation.measurements`` holds what was measured."""


def kind_of(hook: str) -> Kind:
    """How several plugins combine in ``hook``.

    >>> kind_of("collect_terms"), kind_of("around_update")
    ('additive', 'wrapper')
    """
    return _KINDS[hook.split("_", 1)[0]]


def since_of(hook: str) -> str:
    """The release with which ``hook`` came.

    >>> since_of("collect_terms")
    '0.1'
    """
    return _SINCE[hook]


HOOKS: tuple[str, ...] = tuple(name for name in vars(HookSpecs) if not name.startswith("_"))
"""The names of all hooks, in the order of `HookSpecs`."""
