"""The step as everybody sees it: at some parameters, on some rows.

Losses, terms and supervision read the model only through a `Step`. Because it can be made at other parameters (`Step.at`), the whole
objective can be evaluated elsewhere: at the fast weights of a look-ahead, at the ascended ones of SAM.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from streamlearn.core.forward import Forward, PartsOfForward, copied
from streamlearn.core.gradients import named_gradients
from streamlearn.core.objective import Objective, evaluate, weigh
from streamlearn.core.randomness import subseed
from streamlearn.core.supervision import RowLosses, Supervision, losses_of_rows, supervise
from streamlearn.errors import TrainingError
from streamlearn.streams import Batch

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.models import Model

__all__ = ["Step"]


class Step:
    """The step at some parameters on some rows: the root at the live θ on the whole batch, or a view made by `at`.

    Losses, terms and supervision read the model only through it, so that the whole objective can be evaluated elsewhere.
    """

    __slots__ = (
        "_batch",
        "_committed",
        "_forward",
        "_forward_seed",
        "_live",
        "_own_rows",
        "_parameters",
        "_root",
        "_row_losses",
        "_supervision",
        "_teachers",
        "_terms",
        "gradients",
        "objective",
        "run",
        "update",
        "updated",
    )  # fmt: skip

    def __init__(self, run: Run, batch: Batch | None, root: Step | None = None, parameters: Mapping[str, Tensor] | None = None) -> None:
        self.run = run
        self._batch = batch
        self._root = root  # None at the root itself: a cycle would keep every step's graph alive until the garbage collector runs
        self._parameters = parameters
        self._own_rows = True  # whether the rows are the step's, all or some of them: only those move buffers
        self._forward: Forward | None = None
        self._row_losses: RowLosses | None = None
        self._supervision: tuple[Supervision, ...] | None = None
        self._terms: Mapping[str, Tensor] | None = None
        self._teachers: dict[str, Forward] | None = None
        self._committed = False
        self._forward_seed: int = run.forward_seed if root is None else root._forward_seed
        self.update = run.clock.update
        self.objective: Objective | None = None
        self.gradients: Mapping[str, Tensor] | None = None
        self.updated = False

    @property
    def root(self) -> Step:
        """The step of which this is a view."""
        return self if self._root is None else self._root

    # ------------------------------------------------------------------ rows

    @property
    def batch(self) -> Batch:
        """The rows of this step."""
        if self._batch is None:
            raise TrainingError("the batch of this step has not been drawn yet: read it in before_step or later")
        return self._batch

    def parts(self, count: int) -> Iterator[tuple[Step, float]]:
        """The step in ``count`` parts (see `Batch.spread`), each a step of its own, and the share of the labelled rows that each has.

        They are made one by one, so that the graph of one can be gone before the next is there. Once all have been used, the outputs
        of the whole step are those that its parts had, without a graph.
        """
        batch, pieces = self.batch, self.batch.spread(count)
        total, used = batch.count_labelled(), PartsOfForward()
        for number, chosen in enumerate(pieces):
            piece = batch.take(chosen)
            part = Step(self.run, piece)
            part._forward_seed = subseed(self._forward_seed, number)  # masks of its own
            yield part, piece.count_labelled() / total if total else len(piece) / len(batch)
            used.add(part._forward, [rows for _, rows in chosen])
            del part, piece
        self._forward = used.joined(Forward(self.run.model, batch.x, None, self.run.taps, encode=self.run.encode))
        self._committed = True

    def draw(self, memory: str, rows: int, *, purpose: str = "", stored: bool = False) -> Batch | None:
        """At most ``rows`` rows of the replay memory ``memory``, ``None`` while it is empty.

        A draw is made once a step: plugins that ask for the same memory, number and purpose share it. With ``stored`` they bring the
        columns that the memory keeps beside its rows.
        """
        drawn = self.run.memories.draw(memory, rows, self.update, purpose)
        return drawn if stored or drawn is None or not drawn.stored else drawn.replace(stored={})

    # ------------------------------------------------------------------ the model, through the view

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """Parameters by name at this view: the model's, and those of the plugins' modules."""
        return self.run.parameters() if self._parameters is None else self._parameters

    @property
    def outputs(self) -> Forward:
        """Outputs by task on all rows of `batch`, lazy."""
        if self._forward is None:
            self._forward = self._make_forward()
        return self._forward

    @property
    def outputs_were_read(self) -> bool:
        """Whether the encoder has run for this view."""
        return self._forward is not None and self._forward.has_run

    def tap(self, name: str, role: str | None = None) -> Tensor:
        """The tapped activation ``name`` (``"<plugin>/<its name>"``, or ``"features"``), on all rows or on those of ``role``."""
        activation = self.outputs.tap(name)
        return activation if role is None else activation[self.batch.rows(role)]

    def teacher(self, name: str) -> Forward | None:
        """The outputs of the teacher ``name`` (``"<plugin>/<its name>"``) on this batch, or ``None`` while there is none yet."""
        model = self.run.teachers.get(name)
        if model is None:
            return None
        owner = self if self.root._batch is not self._batch else self.root  # a view on the same rows shares the root's pass
        if owner._teachers is None:
            owner._teachers = {}
        if name not in owner._teachers:
            same = next((f for other, f in owner._teachers.items() if self.run.teachers.get(other) is model), None)
            owner._teachers[name] = same or _TeacherForward(model, self.batch.x)
        return owner._teachers[name]

    def module(self, name: str) -> Any:
        """The trainable helper ``name`` (``"<plugin>/<its name>"``) as a function at this view's parameters."""
        module = self.run.modules[name]
        if self._parameters is None:
            return module
        prefix = f"{name}."
        own = {key.removeprefix(prefix): value for key, value in self._parameters.items() if key.startswith(prefix)}
        return lambda *arguments: torch.func.functional_call(module, own, arguments)

    def _make_forward(self) -> Forward:
        run = self.run
        seed = (self._forward_seed, self.update, run.device)
        apart = run.hooks.provide_gradient_combination is not None
        if not run.has_buffers and self._parameters is None:
            return Forward(run.model, self.batch.x, None, run.taps, seed, encode=run.encode, apart=apart)
        root = self.root
        commits = not root._committed and self._own_rows
        if self._parameters is None and commits:
            forward = Forward(run.model, self.batch.x, None, run.taps, seed, self._commit, run.encode, apart=apart)
            _ = forward.features  # at once: a view that ran in between would commit, and this pass commit a second time
            return forward
        # other parameters, or buffers that were committed already: run on copies of the buffers
        buffers = copied(dict(run.model.named_buffers())) if run.has_buffers else {}
        names = run.model_parameter_names
        state = {name: value for name, value in self.parameters.items() if name in names} | buffers

        def end() -> None:
            if not root._committed and commits:
                root._committed = True
                with torch.no_grad():
                    for name, buffer in run.model.named_buffers():
                        buffer.copy_(buffers[name])

        return Forward(run.model, self.batch.x, state, run.taps, seed, end)

    def _commit(self) -> None:
        self.root._committed = True

    # ------------------------------------------------------------------ the objective at this view

    @property
    def supervision(self) -> tuple[Supervision, ...]:
        """Which rows are compared with which targets, after every plugin's masks, weights and soft targets."""
        if self._supervision is None:
            records = supervise(self)
            transform = self.run.hooks.transform_supervision
            self._supervision = records if transform is None else transform(records, self)
        return self._supervision

    @property
    def rows(self) -> RowLosses:
        """Losses and shares by row."""
        if self._row_losses is None:
            hooks = self.run.hooks
            if hooks.transform_supervision is None and hooks.provide_task_losses is None and self.batch.is_one_task:
                # nobody looks at records: the fused mean of the one task, at the price of a plain loop
                ((task, target),) = self.batch.targets.items()
                self._row_losses = RowLosses({task: self.run.tasks[task].loss(self.outputs[task], target, mean=True)}, {task: 1.0})
            else:
                self._row_losses = self._reduced()
        return self._row_losses

    def _reduced(self) -> RowLosses:
        provide = self.run.hooks.provide_task_losses
        records = self.supervision
        given = None if provide is None or not records else provide(records, self)
        return losses_of_rows(records, self.run.tasks, self.batch, given) if records else RowLosses({}, {})

    @property
    def losses(self) -> Mapping[str, Tensor]:
        """L_k by row name at this view; after the update, those of the objective that was minimised."""
        return self.objective.losses if self.objective is not None else self.rows.losses

    @property
    def terms(self) -> Mapping[str, Tensor]:
        """P_n by name at this view."""
        if self.objective is not None:
            return self.objective.terms
        if self._terms is None:
            collect = self.run.hooks.collect_terms
            self._terms = {} if collect is None else checked_terms(collect(self))
        return self._terms

    # ------------------------------------------------------------------ elsewhere

    def at(self, parameters: Mapping[str, Tensor] | None = None, *, batch: Batch | None = None, rows: str | None = None) -> Step:
        """The same step at other parameters, on other rows, or both.

        Args:
            parameters: by name; those left out keep this view's. They may carry a graph, and gradients flow through them.
            batch: other rows altogether. Buffers are left alone then.
            rows: only the rows of this role.

        Dropout masks are those of the step, buffers are copies; one forward a step (the first on the step's own rows) commits them.
        """
        chosen = self._parameters if parameters is None else {**self.parameters, **parameters}
        source = batch if batch is not None else self._batch
        view = Step(self.run, source if rows is None or source is None else source.select(rows), self.root, chosen)
        view.update = self.update
        view._own_rows = self._own_rows and (batch is None or batch is self.root._batch)
        return view

    def gradient(self, *, terms: bool = False) -> dict[str, Tensor]:
        """∇s at this view by parameter name, or ∇(s + P) with ``terms=True``; leaves every ``.grad`` alone."""
        given = self._parameters
        if given is not None and not any(p.requires_grad for p in given.values()):
            leaves = {name: given[name].detach().requires_grad_() for name in self.run.optimization.trainable_names()}
            return self.at(leaves).gradient(terms=terms)
        objective = evaluate(self) if terms else Objective(self.rows.losses, {}, self.rows.shares)
        total = weigh(objective, self)
        if terms:
            total = sum(objective.terms.values(), total if total is not None else torch.zeros(()))
        if total is None:
            return {}
        names = self.run.optimization.trainable_names()
        wanted = {name: self.parameters[name] for name in names if self.parameters[name].requires_grad}
        return named_gradients(total, wanted, retain_graph=True)  # the step itself may still go backward through this view


class _TeacherForward(Forward):
    """A teacher's pass: no graph, evaluation mode."""

    def __init__(self, model: Model, x: Tensor) -> None:
        super().__init__(model, x)
        self._direct = False

    def _run(self, method: str, *arguments: Any) -> Tensor:
        with torch.no_grad():
            return super()._run(method, *arguments)


def checked_terms(terms: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """Refuse what is not a scalar tensor, naming the plugin."""
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.ndim != 0:
            shape = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
            raise TrainingError(f"term {name!r} must be a scalar tensor, got {shape}: reduce it, for example with .mean()")
    return terms
