"""Finding the methods of the installed TorchJD, and building one for the rows that a step has."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torchjd.aggregation
import torchjd.scalarization
from streamlearn.errors import ConfigurationError, MissingExtraError, UnknownNameError
from torch import Tensor, nn
from torchjd.aggregation import Aggregator
from torchjd.linalg import QuadprogProjector
from torchjd.scalarization import Scalarizer

__all__ = ["MissingSolverError", "Recipe", "aggregators", "scalarizers"]

_SIZE = ("shape", "n_tasks")
"""Arguments that say how many rows there are: they follow from the step."""

_NOT_OFFERED = ("f",)
"""Arguments that no text can give."""

_EXTRAS = {"quadprog_projector": "quadprog", "nash_mtl": "nash"}
"""Extras of TorchJD that are called otherwise here: pip passes over names with underscores in some versions."""


class MissingSolverError(MissingExtraError):
    """A method needs ``package``, which an extra of this distribution brings."""

    def __init__(self, user: str, package: str, extra: str) -> None:
        super().__init__(user, package, extra)
        self.args = (f"{user} needs the package {package!r}, which is not installed: run  pip install 'streamlearn-torchjd[{extra}]'",)


def _offered(module: ModuleType, base: type[nn.Module]) -> Iterator[tuple[str, type[nn.Module]]]:
    for name in module.__all__:
        found = getattr(module, name)
        if inspect.isclass(found) and issubclass(found, base) and not found.__module__.endswith(("_bases", "_base")):
            yield found.__module__.rpartition("._")[2], found  # the file of a method has its name in words: _nash_mtl.py


def aggregators() -> dict[str, type[nn.Module]]:
    """The aggregators of the installed TorchJD, by name.

    Example:
        >>> "upgrad" in aggregators(), "aligned_mtl" in aggregators()
        (True, True)
    """
    return dict(_offered(torchjd.aggregation, Aggregator))


def scalarizers() -> dict[str, type[nn.Module]]:
    """The scalarizers of the installed TorchJD, by name.

    Example:
        >>> "stch" in scalarizers(), "geometric_mean" in scalarizers()
        (True, True)
    """
    return dict(_offered(torchjd.scalarization, Scalarizer))


@dataclass(frozen=True, slots=True)
class Recipe:
    """A method of TorchJD and its options, of which a module can be made for any rows.

    Args:
        user: the plugin, for messages.
        method: the name of the method.
        cls: its class.
        options: by name; what TorchJD takes as a vector with an entry for each row is a mapping by the names of the rows here.
    """

    user: str
    method: str
    cls: type[nn.Module]
    options: Mapping[str, Any]

    @classmethod
    def of(cls, user: str, known: Mapping[str, type[nn.Module]], method: str, options: Mapping[str, Any]) -> Recipe:
        """The checked recipe; a module is built once to see that it can be.

        Raises:
            UnknownNameError: there is no such method, or it has no such option.
            ConfigurationError: an option is missing, or has a value that TorchJD refuses.
            MissingSolverError: a package that the method needs is not installed.
        """
        if method not in known:
            raise UnknownNameError("method of TorchJD", method, known)
        recipe = cls(user, method, known[method], dict(options))
        parameters = recipe.parameters()
        for option in options:
            if option not in parameters:
                raise UnknownNameError(f"option of method {method!r} of TorchJD", option, parameters)
        missing = [name for name, parameter in parameters.items() if parameter.default is parameter.empty and name not in options]
        if missing:
            raise ConfigurationError(f"plugin {user}: method {method!r} of TorchJD needs the option {missing[0]!r}: give it a value")
        rows = next((tuple(value) for value in options.values() if isinstance(value, Mapping)), ("row",))
        recipe.build(rows, torch.zeros(()))
        return recipe

    def parameters(self) -> dict[str, inspect.Parameter]:
        """The options that the method takes, by name."""
        found = dict(inspect.signature(self.cls).parameters)
        if found.pop("projector", None) is not None:
            found |= inspect.signature(QuadprogProjector).parameters
        return {name: parameter for name, parameter in found.items() if name not in (*_SIZE, *_NOT_OFFERED)}

    def build(self, rows: Sequence[str], like: Tensor) -> nn.Module:
        """The module for ``rows``, with vectors in the type and on the device of ``like``."""
        taken = inspect.signature(self.cls).parameters
        given: dict[str, Any] = {name: len(rows) for name in _SIZE if name in taken}
        try:
            if "projector" in taken:
                solver = inspect.signature(QuadprogProjector).parameters
                given["projector"] = QuadprogProjector(**{name: value for name, value in self.options.items() if name in solver})
            for name, value in self.options.items():
                if name in taken:
                    given[name] = self._by_row(name, value, rows, like) if isinstance(value, Mapping) else value
            return self.cls(**given)
        except ImportError as error:
            raise self._missing(error) from error
        except (TypeError, ValueError, AttributeError) as error:
            told = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
            raise ConfigurationError(f"plugin {self.user}: method {self.method!r} of TorchJD refuses ({told}): {error}") from error

    def _by_row(self, option: str, values: Mapping[str, float], rows: Sequence[str], like: Tensor) -> Tensor:
        wanted = rows[1:] if option == "tau" and len(rows) > 1 and rows[0] not in values else rows
        absent = [row for row in wanted if row not in values]
        if absent:
            raise ConfigurationError(
                f"plugin {self.user}: option {option!r} has no value for row {absent[0]!r} (it has: {', '.join(values)}): add it"
            )
        return torch.tensor([float(values[row]) for row in wanted], dtype=like.dtype, device=like.device)

    def _missing(self, error: ImportError) -> MissingSolverError:
        """TorchJD says "X requires ['a', 'b'] to be installed. Install them with: pip install "torchjd[extra]""."""
        packages = re.findall(r"'([\w-]+)'", str(error).partition("to be installed")[0]) or [error.name or "torchjd"]
        extra = (re.findall(r"torchjd\[(\w+)\]", str(error)) or ["quadprog"])[0]
        return MissingSolverError(f"method {self.method!r} of plugin {self.user}", packages[0], _EXTRAS.get(extra, extra))
