"""A plugin that changes nothing and remembers what it was called for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamlearn.core.hooks import HOOKS, HookSpecs, kind_of
from streamlearn.core.plugin import Plugin, PluginInfo, hookimpl

__all__ = ["Spy"]


class Spy(Plugin):
    """Implements every hook that several plugins may share, changes nothing, and notes the calls.

    Attributes:
        calls: ``(hook, where)`` for each call, in order; ``where`` is what ``str(run.clock)`` was.
        run: the run of the last call.

    Example:
        >>> import torch
        >>> from streamlearn import Engine
        >>> from streamlearn.testing import network, tiny_stream
        >>> spy, stream = Spy(), tiny_stream()
        >>> _ = Engine(network(stream), lambda p: torch.optim.SGD(p, lr=0.1), [spy]).run(stream)
        >>> spy.calls[2], spy.hooks.count("before_experience")
        (('before_run', 'experience 0, phase 0, epoch 0, step 0'), 3)
    """

    info = PluginInfo("spy", "tracking", "Notes which hooks are called, and changes nothing.", "none; streamlearn 2025")

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self.calls: list[tuple[str, str]] = []
        self.run: Any = None

    @property
    def hooks(self) -> list[str]:
        """The hooks of `calls`, in order."""
        return [hook for hook, _ in self.calls]

    def note(self, hook: str, subject: Any) -> None:
        """Remember a call."""
        self.run = getattr(subject, "run", subject)
        self.calls.append((hook, str(self.run.clock)))


_ANSWERS: dict[str, str] = {
    "event": "None",
    "additive": "{}",
    "pipeline": "{0}",
    "wrapper": "{0}({1})",
}


def _noting(hook: str) -> Callable[..., Any]:
    """A method with exactly the arguments of ``hook``: pluggy reads them."""
    code = getattr(HookSpecs, hook).__code__
    arguments = code.co_varnames[1 : code.co_argcount]
    kind = kind_of(hook)
    answer = "{}" if kind == "additive" else _ANSWERS[kind].format(*arguments, "")
    space: dict[str, Any] = {}
    exec(f"def {hook}(self, {', '.join(arguments)}):\n    self.note({hook!r}, {arguments[-1]})\n    return {answer}", space)
    method: Callable[..., Any] = space[hook]
    method.__doc__ = f"Note the call of ``{hook}``."
    return method


for _hook in HOOKS:
    if kind_of(_hook) != "exclusive":
        setattr(Spy, _hook, hookimpl(_noting(_hook)))
