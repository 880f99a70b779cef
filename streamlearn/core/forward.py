"""One forward per model per step: lazy outputs, taps, teachers.

A `Forward` is the pass of one model over one batch at some parameters. Nothing is computed until it is asked for: the encoder
runs once, when the first output, feature or tap is read, and a head runs when somebody asks for its task.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from streamlearn.core.randomness import seed_forward
from streamlearn.errors import ConfigurationError, nearest
from streamlearn.models import Model
from streamlearn.streams.batch import EVERY_ROW

__all__ = ["Forward", "PartsOfForward", "Teacher", "make_teacher", "resolve_taps"]


class _Call(nn.Module):
    """Lets ``functional_call`` reach any method of a model."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, method: str, *arguments: Any) -> Any:
        return getattr(self.model, method)(*arguments)


class Forward(Mapping[str, Tensor]):
    """The outputs of one model on one batch, by task, computed when asked for.

    Args:
        model: the model.
        x: inputs ``(rows, ...)``.
        state: parameters and buffers by name to use in place of the model's own; ``None`` uses the model as it is.
        taps: ``{name: path of a module}`` whose outputs are kept.
        seed: arguments of `seed_forward`, called right before the encoder runs: every view of a step draws the same masks.
        end: called right after; the step commits buffers here.
        encode: the model's encoder, compiled; used at the model's own parameters when nothing is tapped.
        apart: hand each task's head an alias of the features, so that one backward pass tells apart what comes from which head.

    Attributes:
        aliases: those aliases, by task.
    """

    __slots__ = (
        "_apart",
        "_direct",
        "_encode",
        "_end",
        "_features",
        "_model",
        "_outputs",
        "_parts",
        "_paths",
        "_seed",
        "_state",
        "_taps",
        "_x",
        "aliases",
    )

    def __init__(
        self,
        model: Model,
        x: Tensor,
        state: Mapping[str, Tensor] | None = None,
        taps: Mapping[str, str] | None = None,
        seed: tuple[int, int, torch.device] | None = None,
        end: Callable[[], None] | None = None,
        encode: Callable[[Tensor], Tensor] | None = None,
        *,
        apart: bool = False,
    ) -> None:
        self._model = model
        self._apart = apart
        self.aliases: dict[str, Tensor] = {}
        self._encode = encode or model.encode
        self._x = x
        self._state = state
        self._direct = state is None
        self._paths = taps
        self._seed = seed
        self._end = end
        self._features: Tensor | None = None
        self._taps: dict[str, Tensor] = {}
        self._outputs: dict[str, Tensor] = {}
        self._parts: dict[tuple[str, int, int], Tensor] = {}

    @property
    def has_run(self) -> bool:
        """Whether the encoder has run."""
        return self._features is not None

    @property
    def features(self) -> Tensor:
        """What the encoder hands to the heads, ``(rows, ...)``."""
        if self._features is None:
            if self._seed is not None:
                seed_forward(*self._seed)
            if self._paths:
                with _tapped(self._model, self._paths, self._taps):
                    self._features = self._run("encode", self._x)
            elif self._direct:
                self._features = self._encode(self._x)
            else:
                self._features = self._run("encode", self._x)
            if self._end is not None:
                self._end()
                self._end = None  # it belongs to the step, which holds this pass: a cycle would outlive it
        return self._features

    def _run(self, method: str, *arguments: Any) -> Tensor:
        if self._state is None:
            return getattr(self._model, method)(*arguments)  # type: ignore[no-any-return]
        named = {f"model.{name}": tensor for name, tensor in self._state.items()}
        return functional_call(_Call(self._model), named, (method, *arguments))  # type: ignore[no-any-return]

    def __getitem__(self, task: str) -> Tensor:
        """The outputs for ``task`` on every row."""
        found = self._outputs.get(task)
        if found is None:
            features = self._features_for(task)
            found = self._model.decode(features, task) if self._direct else self._run("decode", features, task)
            self._outputs[task] = found
        return found

    def on(self, task: str, rows: slice) -> Tensor:
        """The outputs for ``task`` on ``rows`` alone: forty heads on forty groups of rows cost one head on all."""
        if rows == EVERY_ROW:
            return self[task]
        if task in self._outputs:
            return self._outputs[task][rows]
        key = (task, rows.start, rows.stop)
        found = self._parts.get(key)
        if found is None:
            found = self._parts[key] = self._run("decode", self._features_for(task)[rows], task)
        return found

    def _features_for(self, task: str) -> Tensor:
        features = self.features
        if not self._apart or not features.requires_grad:
            return features
        if task not in self.aliases:
            self.aliases[task] = features.view_as(features)
        return self.aliases[task]

    def tap(self, name: str) -> Tensor:
        """The output of the tapped module ``name``; ``"features"`` is always there."""
        features = self.features
        if name in self._taps:
            return self._taps[name]
        if name == "features":
            return features
        raise ConfigurationError(f"no tap is called {name!r} (there are: {', '.join(['features', *self._taps])}): name it in collect_taps")

    def serves(self, task: str) -> bool:
        """Whether the model has outputs for ``task``."""
        return self._model.heads.has(task)

    def __iter__(self) -> Iterator[str]:
        return iter(self._model.heads.sizes())

    def __len__(self) -> int:
        return len(self._model.heads.sizes())


class PartsOfForward:
    """The passes over the parts of a batch, put together to one pass over all of it, without a graph."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._features: list[Tensor] = []
        self._outputs: dict[str, list[Tensor]] = {}
        self._taps: dict[str, list[Tensor]] = {}
        self._whole = True

    @torch.no_grad()
    def add(self, part: Forward | None, rows: Sequence[slice]) -> None:
        """The pass over ``rows`` of the batch; it counts for nothing unless it has run."""
        if part is None or not part.has_run:
            self._whole = False
            return
        self._rows += [torch.arange(piece.start, piece.stop) for piece in rows]
        self._features.append(part.features.detach())
        for task in {*part._outputs, *(key[0] for key in part._parts)}:  # of a task read on some rows, all rows
            self._outputs.setdefault(task, []).append(part[task].detach())
        for name, activation in part._taps.items():
            self._taps.setdefault(name, []).append(activation.detach())

    @torch.no_grad()
    def joined(self, whole: Forward) -> Forward | None:
        """``whole``, filled with what all the parts have; ``None`` if the encoder has not run on all of them."""
        if not self._whole or not self._rows:
            return None
        order = torch.cat(self._rows).argsort().to(self._features[0].device)
        lengths = [len(part) for part in self._features]

        def join(parts: list[Tensor]) -> Tensor | None:
            fits = len(parts) == len(lengths) and all(p.ndim and len(p) == n for p, n in zip(parts, lengths, strict=True))
            return torch.cat(parts)[order] if fits else None

        whole._features = join(self._features)
        for kept, found in ((whole._outputs, self._outputs), (whole._taps, self._taps)):
            kept.update({name: tensor for name, parts in found.items() if (tensor := join(parts)) is not None})
        return whole


class _tapped:  # noqa: N801 - used like a function
    """Keep the outputs of some modules during one pass; no hook survives it."""

    def __init__(self, model: nn.Module, paths: Mapping[str, str], kept: dict[str, Tensor]) -> None:
        self._model, self._paths, self._kept = model, paths, kept
        self._handles: list[Any] = []

    def __enter__(self) -> None:
        modules = dict(self._model.named_modules())
        for name, path in self._paths.items():
            self._handles.append(modules[path].register_forward_hook(self._keep(name)))

    def _keep(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
            self._kept[name] = output

        return hook

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


def resolve_taps(model: nn.Module, wanted: Mapping[str, str]) -> dict[str, str]:
    """Check that every tap names a module of the model.

    Raises:
        ConfigurationError: it does not; the nearest path is offered.
    """
    known = [path for path, _ in model.named_modules() if path]
    for name, path in wanted.items():
        if path not in known:
            guess = nearest(path, known)
            raise ConfigurationError(
                f"tap {name!r} wants module {path!r}, which the model does not have{f'; did you mean {guess!r}?' if guess else ''}"
            )
    return dict(wanted)


@dataclass(frozen=True, slots=True)
class Teacher:
    """A model that is read but not trained. Plugins that ask for equal teachers share one.

    Args:
        source: ``"copy"`` of the model, ``"ema"``: the exponential moving average of its weights and buffers from the start of the
            first experience on, or a module given by the user.
        refresh: when a copy is taken anew: ``"experience"``, at the start of every experience but the first. Until it has been
            taken, ``step.teacher(name)`` is ``None``.
        decay: of the average, in [0, 1): after each update θ_teacher ← decay · θ_teacher + (1 - decay) · θ.
    """

    source: Literal["copy", "ema"] | nn.Module = "copy"
    refresh: Literal["experience", "never"] = "experience"
    decay: float = 0.999


def make_teacher(teacher: Teacher, model: Model) -> Model:
    """A frozen model in evaluation mode, as ``teacher`` says."""
    # a copy of the user's own too: it is frozen here, and may be the very model that is trained
    source = Model.of(copy.deepcopy(model if isinstance(teacher.source, str) else teacher.source))
    for parameter in source.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return source.eval()


@torch.no_grad()
def average(teacher: Model, model: Model, decay: float) -> None:
    """Move ``teacher`` towards ``model``: what is not a floating-point number is copied."""
    current = model.state_dict()
    for name, mine in teacher.state_dict().items():  # by name: heads may have come in another order
        if mine.is_floating_point():
            mine.lerp_(current[name], 1 - decay)
        else:
            mine.copy_(current[name])


@torch.no_grad()
def copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Fresh copies of named tensors."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}
