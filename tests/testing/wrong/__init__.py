"""Plugins that are wrong on purpose, each in one respect. The kit must tell that respect, and no other.

A module has the name of the check that its plugins must fail; a class that is meant for one kind of stream says so in ``fails``. ``missed``
says why the kit does not see a mistake. `Control` is what they all are apart from their mistake.
"""

from __future__ import annotations

import importlib
import pkgutil

from streamlearn import Plugin
from tests.testing.wrong.control import Control

__all__ = ["Control", "meant", "wrong_plugins"]


def wrong_plugins() -> list[type[Plugin]]:
    """Every wrong plugin, module by module."""
    found: list[type[Plugin]] = []
    for module in pkgutil.iter_modules(__path__):
        if module.name != "control":
            here = importlib.import_module(f"{__name__}.{module.name}")
            found += [c for c in vars(here).values() if isinstance(c, type) and issubclass(c, Plugin) and c.__module__ == here.__name__]
    return found


def meant(plugin: type[Plugin]) -> str:
    """The check that is about the mistake of ``plugin``."""
    return str(getattr(plugin, "fails", plugin.__module__.rpartition(".")[2]))
