"""What is noted before a hook and looked at after it."""

from __future__ import annotations

import random
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamlearn.core.randomness import seed_forward, subseed
from streamlearn.streams import Batch
from streamlearn.testing.bits import copied, difference

__all__ = ["Rigged", "Traces", "WeakRows", "context_of", "global_randomness", "seeded_by_the_engine"]


# ---------------------------------------------------------------------- what a hook is given

_STEP = ("update", "gradients", "objective", "updated", "_batch", "_parameters", "run")
_OF_THE_ENGINE = ("model", "optimization", "stream", "record", "experience", "phase", "hooks", "composition", "options", "seed", "device")
"""Attributes of a run that the engine exchanges between hooks, never within one."""


class Context:
    """What a hook was given: copies of rows, and which objects the attributes were."""

    def __init__(self, tensors: Mapping[str, Any], objects: Mapping[str, Any]) -> None:
        self._tensors: dict[str, Any] = copied(tensors)
        self._objects: dict[str, Any] = dict(objects)

    def change(self, now: Context) -> str | None:
        """What is no longer what it was, in words; ``None`` if everything is."""
        for name, value in self._objects.items():
            other = now._objects.get(name)
            if other is not value and not (isinstance(value, bool | int | str | frozenset) and value == other):
                return f"the attribute {name}"
        for name, value in self._tensors.items():
            if difference(value, now._tensors.get(name)) is not None:
                return name
        return None


def context_of(hook: str, named: Mapping[str, Any]) -> Context:
    """A `Context` of the arguments ``named`` of ``hook``."""
    tensors: dict[str, Any] = {}
    objects: dict[str, Any] = {}
    for name, value in named.items():
        if isinstance(value, Batch):
            tensors |= _rows(value, name)
    step, evaluation = named.get("step"), named.get("evaluation")
    if step is not None:
        if step._batch is not None:
            tensors |= _rows(step._batch, "step.batch")
        objects |= {f"step.{attribute}": getattr(step, attribute) for attribute in _STEP}
    if evaluation is not None:
        tensors["evaluation.measurements"] = [dict(line) for line in evaluation.measurements]
        objects |= {"evaluation.run": evaluation.run, "evaluation.trained": evaluation.trained}
    run = next((owner for owner in (named.get("run"), getattr(step, "run", None), getattr(evaluation, "run", None)) if owner), None)
    if run is not None:
        objects |= {f"run.{attribute}": getattr(run, attribute, None) for attribute in _OF_THE_ENGINE}
        objects["run.__dict__"] = frozenset(vars(run)) - {"has_buffers", "model_parameter_names", "frozen_by_phase"}
        tensors["run.clock"] = run.clock.to_json()
    if "supervision" in named:
        tensors["supervision"] = [(record.target, record.outputs, record.weight) for record in named["supervision"]]
    return Context(tensors, objects)


def _rows(batch: Batch, name: str) -> dict[str, Any]:
    labelled = {task: rows if isinstance(rows, Tensor) else repr(rows) for task, rows in batch.labelled.items()}
    return {
        f"{name}.x": batch.x,
        f"{name}.targets": dict(batch.targets),
        f"{name}.labelled": labelled,
        f"{name}.segments": repr(batch.segments),
        f"{name}.index": batch.index,
        f"{name}.stored": {column: found.values for column, found in batch.stored.items()},
    }


# ---------------------------------------------------------------------- randomness


def global_randomness() -> dict[str, Any]:
    """The global random states, in a form that can be compared."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002 - the global one is what is looked at
    return {
        "python": random.getstate(),
        "numpy": repr(numpy_state),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }


def seeded_by_the_engine(named: Mapping[str, Any]) -> list[bytes]:
    """The states in which the engine leaves torch's generator when a hook asks it for a forward pass."""
    step, evaluation = named.get("step"), named.get("evaluation")
    run = named.get("run") or getattr(step, "run", None) or getattr(evaluation, "run", None)
    if run is None:
        return []
    states = []
    for base in (run.forward_seed, subseed(run.seed, "rows")):
        with torch.random.fork_rng(devices=[]):
            seed_forward(base, run.clock.update)
            states.append(torch.get_rng_state().numpy().tobytes())
    return states


# ---------------------------------------------------------------------- traces

_HANDLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Traces:
    """What a hook could leave behind: modes of modules, gradients, and settings of torch."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        owners = (named.get("run"), getattr(named.get("step"), "run", None), getattr(named.get("evaluation"), "run", None))
        run = next((owner for owner in owners if owner is not None), None)
        self._model = getattr(run, "model", None)
        modules = [] if self._model is None else list(self._model.named_modules())
        self._modes = {path: module.training for path, module in modules}
        optimization = getattr(run, "optimization", None)  # it is not there yet while the model is made
        parameters = [] if optimization is None else list(optimization.parameters().items())
        self._gradients = {name: p.grad.detach().clone() for name, p in parameters if p.grad is not None}
        self._settings = {
            "the gradient mode": torch.is_grad_enabled(),
            "the default dtype": torch.get_default_dtype(),
            "the number of threads": torch.get_num_threads(),
            "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        }

    def left(self, hook: str, now: Traces) -> str | None:
        """What ``hook`` left, as the end of a sentence; ``None`` if nothing."""
        if hook != "transform_model":
            changed = [path for path, mode in self._modes.items() if now._modes.get(path, mode) is not mode]
            if changed:
                mode = "training" if now._modes[changed[0]] else "evaluation"
                return f"left the module {changed[0] or 'model'!r} in {mode} mode: put the mode back, or use run.measure and run.importance"
        if hook not in ("around_update", "transform_gradients"):
            fresh = [name for name in now._gradients if name not in self._gradients]
            moved = [n for n, g in self._gradients.items() if n in now._gradients and not torch.equal(g, now._gradients[n])]
            if fresh or moved:
                return f"left a gradient in {(fresh or moved)[0]!r}, which the next step would add up: use torch.autograd.grad"
        different = [what for what, value in self._settings.items() if now._settings[what] != value]
        return f"changed {different[0]} of torch for everybody: put it back" if different else None

    @staticmethod
    def handles(model: nn.Module) -> list[str]:
        """Hooks that lie on modules and parameters of ``model``."""
        found = [
            f"{path or 'model'}.{kind.strip('_')}" for path, module in model.named_modules() for kind in _HANDLES if getattr(module, kind)
        ]
        on_parameters = ("_backward_hooks", "_post_accumulate_grad_hooks")
        return found + [f"{name}: a hook" for name, p in model.named_parameters() if any(getattr(p, kind, None) for kind in on_parameters)]


class WeakRows:
    """The inputs of the batches that were met, held by nobody here."""

    def __init__(self) -> None:
        self._met: dict[int, weakref.ref[Tensor]] = {}

    def note(self, named: Mapping[str, Any]) -> None:
        """Remember the batches among the arguments of a hook."""
        for batch in self._batches(named):
            self._met[id(batch.x)] = weakref.ref(batch.x)

    def _batches(self, named: Mapping[str, Any]) -> Iterator[Batch]:
        if "evaluation" in named:
            return  # the engine keeps the rows of evaluation sets from one evaluation to the next
        yield from (value for value in named.values() if isinstance(value, Batch))
        step = named.get("step")
        if step is not None and step._batch is not None:
            yield step._batch

    def alive(self, state: Any) -> bool:
        """Whether any of them is still there, other than in ``state``."""
        from streamlearn.testing.bits import leaves

        kept = {id(leaf) for _, leaf in leaves(state)}
        return any(found is not None and id(found) not in kept for found in (ref() for ref in self._met.values()))


# ---------------------------------------------------------------------- what breaks


class InjectedError(RuntimeError):
    """Raised by a broken thing that was touched."""


class Rigged:
    """Makes things that break when they are touched, and remembers that one was.

    Attributes:
        raised: whether one has been touched.
        swallowed: whether a hook came to its end nevertheless.
    """

    def __init__(self) -> None:
        self.raised = False
        self.swallowed = False

    def thing(self) -> Any:
        """Something every use of which raises `InjectedError`."""
        rigged = self

        def breaks(self: Any, *arguments: Any, **options: Any) -> Any:
            rigged.raised = True
            raise InjectedError("streamlearn.testing broke what this hook was given")

        uses = ("getattr", "getattribute", "call", "len", "iter", "getitem", "contains", "bool", "add", "mul", "float", "setattr")
        return type("Broken", (), {f"__{use}__": breaks for use in uses})()
