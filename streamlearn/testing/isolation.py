"""What classes and modules keep for themselves: put back before every run, so that only one check meets what is shared."""

from __future__ import annotations

import copy
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from streamlearn.core.plugin import Plugin

__all__ = ["isolated", "undisturbed"]

_PLAIN = (dict, list, set, int, float, str, Tensor, type(None))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Undo what happens inside to the global random states of Python and numpy, and to the settings of torch."""
    python, numpy_state = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002 - the global one is meant
    settings = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_num_threads(), torch.get_deterministic_debug_mode()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_grad_enabled(settings[0])
        torch.set_default_dtype(settings[1])
        if torch.get_num_threads() != settings[2]:
            torch.set_num_threads(settings[2])
        torch.set_deterministic_debug_mode(settings[3])


@contextmanager
def isolated(cls: type[Plugin]) -> Iterator[None]:
    """Undo what happens inside to the attributes of ``cls`` and to the variables of its module."""
    restore = [_kept(owner) for owner in [*_own_classes(cls), sys.modules.get(cls.__module__)] if owner is not None]
    try:
        yield
    finally:
        for put_back in restore:
            put_back()


def _own_classes(cls: type[Plugin]) -> list[type]:
    return [base for base in cls.__mro__ if issubclass(base, Plugin) and base is not Plugin]


def _kept(owner: type | ModuleType) -> Callable[[], None]:
    before = {name: value for name, value in vars(owner).items() if not name.startswith("__") and isinstance(value, _PLAIN)}
    copies = {name: copy.deepcopy(value) for name, value in before.items()}

    def put_back() -> None:
        for name in [name for name, value in vars(owner).items() if name not in known and isinstance(value, _PLAIN)]:
            delattr(owner, name)
        for name, value in before.items():
            _fill(value, copies[name])
            if vars(owner).get(name) is not value:
                setattr(owner, name, value)

    known = frozenset(vars(owner))
    return put_back


def _fill(value: Any, saved: Any) -> None:
    """Make a container what it was, in place: others may hold it too."""
    if isinstance(value, dict | set):
        value.clear()
        value.update(saved)
    elif isinstance(value, list):
        value[:] = saved
    elif isinstance(value, Tensor):
        value.data.copy_(saved.data)
