"""Aggregators of TorchJD as gradient combiners."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from streamlearn import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.randomness import forked
from streamlearn.errors import ConfigurationError
from torch import Tensor, nn

from streamlearn_torchjd.recipe import Recipe, aggregators
from streamlearn_torchjd.state import STATEFUL, Store, is_stateful, read, write

if TYPE_CHECKING:
    from streamlearn.core.gradients import TaskRows
    from streamlearn.core.step import Step

__all__ = ["TorchJDAggregator"]


class TorchJDAggregator(Plugin):
    r"""An aggregator of TorchJD combines the gradients of the rows.

    .. math:: g = A(J), \qquad J_k = \frac{\partial s}{\partial L_k} \nabla L_k

    with J the Jacobian of the rows by the parameters that tasks share, and A the aggregator: ``aligned_mtl``, ``cagrad``, ``config``,
    ``constant``, ``dualproj``, ``excess_mtl``, ``fairgrad``, ``graddrop``, ``gradvac``, ``imtl_g``, ``krum``, ``mean``, ``mgda``,
    ``nash_mtl``, ``pcd``, ``pcgrad``, ``random``, ``sum``, ``trimmed_mean`` or ``upgrad``; whatever the installed TorchJD offers is
    found. Penalties are added afterwards, and task-specific parameters keep their plain gradient.

    What TorchJD keeps by position is kept by the names of rows: a task that is absent from a batch keeps its state, one that comes
    back finds it, and a new one enters beside the others. Draws (``pcgrad``, ``gradvac``, ``graddrop``, ``random``) come from the
    plugin's own generator. All state survives a resume, bit for bit.

    Args:
        method: the name of the aggregator, any that TorchJD has.
        options: those of the aggregator, with their names and ranges in TorchJD; they may also be given beside ``method``. A vector
            with an entry for each row (``weights``, ``pref_vector``, ``leak``, ``tau``) is a mapping by the names of the rows. The
            number of rows is never given. ``upgrad`` and ``dualproj`` take ``norm_eps`` and ``reg_eps`` of their solver.
        first: the row to put first, any name; only ``pcd`` tells the first row, its primary objective, from the others. While the row
            is absent, and by default, rows stand in the order of the batch.

    Raises:
        UnknownNameError: there is no such aggregator, or it has no such option.
        ConfigurationError: an option is missing or refused, or the aggregator refuses the rows of a step (``krum`` needs many).
        MissingSolverError: a package that the aggregator needs is not installed.

    Cost: one backward pass for each row through what the rows share, in place of one for all, and the solver of the method. Memory:
    up to 1 gradient for each row (``excess_mtl``), and a number for each row or pair of them (``gradvac``, ``pcd``, ``nash_mtl``).

    Reference: Quinton & Rey, Jacobian descent for multi-objective optimization, arXiv 2406.16232, 2024 (TorchJD); each method has its
    own, which TorchJD names. Deviations: CR-MOGM is no aggregator; MoDo and SDMGrad need two batches for a step and are not offered.
    A single row of ``nash_mtl``, which TorchJD cannot solve, is taken as it is, no longer than ``max_norm``.

    Example:
        >>> TorchJDAggregator(method="aligned_mtl", scale_mode="median")
        TorchJDAggregator(method='aligned_mtl', options={'scale_mode': 'median'})
        >>> TorchJDAggregator(method="aligned")
        Traceback (most recent call last):
            ...
        streamlearn.errors.UnknownNameError: unknown method of TorchJD 'aligned': did you mean 'aligned_mtl'? (known: ...)
    """

    info = PluginInfo(
        name="torchjd_aggregator",
        family="gradients",
        summary="Combines the gradients of the tasks by any aggregator of TorchJD.",
        reference="Quinton & Rey 2024, arXiv 2406.16232 (TorchJD 0.18)",
        needs=frozenset({"task_gradients"}),
        memory="up to 1 gradient for each row",
    )

    class Config(PluginConfig):
        """Options of `TorchJDAggregator`."""

        method: str = "upgrad"
        options: dict[str, Any] = Field(default_factory=dict)
        first: str | None = None

    def __init__(
        self,
        *,
        name: str | None = None,
        method: str = "upgrad",
        options: Mapping[str, Any] | None = None,
        first: str | None = None,
        **more: Any,
    ) -> None:
        asked: dict[str, Any] = {"method": method, **({"first": first} if first is not None else {})}
        every = {**(options or {}), **more}
        super().__init__(name=name, **asked, **({"options": every} if every else {}))
        self._recipe = Recipe.of(self.name, aggregators(), method, every)
        if is_stateful(self._recipe.cls) and method not in STATEFUL:
            raise ConfigurationError(
                f"plugin {self.name}: method {method!r} of this TorchJD keeps a state that is not known here: upgrade streamlearn-torchjd"
            )
        self._store: Store = {}
        self._module: nn.Module | None = None
        self._rows: tuple[str, ...] = ()

    @hookimpl
    def provide_gradient_combination(self, rows: TaskRows, step: Step) -> Tensor:
        """A(J)."""
        names, matrix = self._ordered(rows)
        seed = step.run.generator(self, self._recipe.method).initial_seed()
        with torch.no_grad(), forked(matrix.device):
            torch.default_generator.manual_seed(seed)
            if matrix.device.type != "cpu":
                torch.get_device_module(matrix.device).manual_seed(seed)
            if self._recipe.method == "nash_mtl" and len(names) == 1:
                return self._alone(matrix[0])
            module = self._module_for(names, matrix)
            try:
                found = self._called(module, matrix)
            except (TypeError, ValueError) as error:
                raise ConfigurationError(
                    f"plugin {self.name}: method {self._recipe.method!r} of TorchJD cannot combine the rows {', '.join(names)}: {error}"
                ) from error
        return found

    def _called(self, module: nn.Module, matrix: Tensor) -> Tensor:
        if self._recipe.method != "nash_mtl":
            return module(matrix)  # type: ignore[no-any-return]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # its solver remarks on how TorchJD states the problem, at every solve
            return module(matrix)  # type: ignore[no-any-return]

    def _alone(self, row: Tensor) -> Tensor:
        """The bargain of a single row, which its solver cannot state: the row itself, no longer than ``max_norm``."""
        longest = float(self._recipe.options.get("max_norm", 1.0))
        norm = float(row.norm())
        return row * (longest / norm) if 0 < longest < norm else row.clone()

    def _ordered(self, rows: TaskRows) -> tuple[tuple[str, ...], Tensor]:
        first = self.config.first
        if first not in rows.names or rows.names[0] == first:
            return rows.names, rows.matrix
        order = sorted(range(len(rows.names)), key=lambda place: rows.names[place] != first)
        return tuple(rows.names[place] for place in order), rows.matrix[order]

    def _module_for(self, names: tuple[str, ...], matrix: Tensor) -> nn.Module:
        """The module of the last call while the rows are the same; else a new one that is told what is known."""
        if self._module is None or names != self._rows:
            self._remember()
            self._module, self._rows = self._recipe.build(names, matrix), names
            if is_stateful(self._recipe.cls):
                write(self._recipe.method, self._module, self._store, names, matrix)
        return self._module

    def _remember(self) -> None:
        if self._module is not None and is_stateful(self._recipe.cls):
            self._store = read(self._recipe.method, self._module, self._store, self._rows)

    def state_dict(self) -> dict[str, Any]:
        """What the method keeps of each row."""
        self._remember()
        return dict(self._store)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._store, self._module, self._rows = dict(state), None, ()
