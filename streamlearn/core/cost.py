"""What a run holds: sizes of the model, of replay memories and of the plugins' states, for the record.

Taken when an evaluation set has been learnt, never in a step. No clock is read: equal runs have equal costs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from streamlearn.core.memory import ReplayMemory
    from streamlearn.core.run import Run
    from streamlearn.streams import Experience

__all__ = ["cost_of", "size_in_bytes"]


def cost_of(run: Run, experience: Experience) -> dict[str, Any]:
    """The event for the record, at the end of ``experience``; what is empty is left out, so that it does not tell who is listed."""
    passes = run.composition.passes
    return {
        "event": "cost",
        "trained": run.clock.experience + 1,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "parameter_bytes": _bytes_of(run.model.parameters()),
        "buffer_bytes": _bytes_of(run.model.buffers()),
        "helper_bytes": _known({name: _bytes_of_module(module) for name, module in run.modules.items()}),
        "teacher_bytes": sum(_bytes_of_module(teacher) for teacher in {id(t): t for t in run.teachers.values()}.values()),
        "memories": {name: _memory(run.memories.find(name), saved, experience) for name, saved in run.memories.state_dict().items()},
        "plugin_bytes": _known({plugin.name: size_in_bytes(plugin.state_dict()) for plugin in run.plugins}),
        "forward_passes": 1 + passes.forward,
        "backward_passes": 1 + passes.backward,
        "teacher_passes": len(passes.teachers),
    }


def size_in_bytes(tree: Any) -> int:
    """What a nested state takes: the bytes of its tensors, 8 for a number, the length of a string; keys are free.

    Example:
        >>> import torch
        >>> size_in_bytes({"w": torch.zeros(3), "n": 1, "name": "ab", "none": None})
        22
    """
    if isinstance(tree, Tensor):
        return tree.nbytes
    if isinstance(tree, Mapping):
        return sum(map(size_in_bytes, tree.values()))
    if isinstance(tree, list | tuple):
        return sum(map(size_in_bytes, tree))
    return len(tree) if isinstance(tree, str | bytes) else 0 if tree is None else 8


def _memory(memory: ReplayMemory | None, saved: Mapping[str, Any], experience: Experience) -> dict[str, int | None]:
    """Rows that a replay memory keeps, what copies of their inputs would take, and what it holds instead: where they lie."""
    rows = 0 if memory is None else len(memory)
    # every input of a run has one type and shape, so that any piece of the stream says how large a row is
    sizes = {getattr(part.source, "row_bytes", None) for part in experience.data[experience.main_role].parts()}
    size = next(iter(sizes)) if len(sizes) == 1 else None
    return {"rows": rows, "bytes": None if size is None else rows * size, "held_bytes": size_in_bytes(saved["state"])}


def _bytes_of(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _bytes_of_module(module: nn.Module) -> int:
    return _bytes_of(module.parameters()) + _bytes_of(module.buffers())


def _known(sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: size for name, size in sizes.items() if size}
