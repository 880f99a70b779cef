"""A prior: everything that learning to learn may learn, as one value that can be saved, published and started from."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from streamlearn.core.inner_loop import EpisodeLearner, Rates, adapt
from streamlearn.core.inner_loop.estimators import Loss
from streamlearn.core.inner_loop.learner import RULES
from streamlearn.core.phases import ALL, select_names
from streamlearn.core.plugin import Plugin
from streamlearn.core.priors.file import fingerprint, read_prior, write_prior
from streamlearn.core.run import Run
from streamlearn.errors import ConfigurationError, UnknownNameError
from streamlearn.models import Model

__all__ = ["HEADS", "Prior"]

HEADS = "heads."
"""What the names of a head's parameters begin with: only these may be there on one side alone."""


@dataclass(frozen=True, eq=False, repr=False)
class Prior:
    """Where learning starts, and how it goes on from there. Tensors are copied and never written.

    Args:
        parameters: initial values by name of a model's parameter.
        rates: of inner steps: one number, or by name a scalar or a tensor of the parameter's shape; ``None`` if nothing is known.
        plastic: patterns of the names of the parameters that move in inner steps.
        buffers: initial values by name, running statistics for one.
        steps: the inner steps that it was trained for; more than that may lead anywhere, and warns.
        rule: of the inner steps: ``"sgd"``, ``"momentum"``, ``"nesterov"`` or ``"adam"``.
        components: of a mixture, priors of the same model from which one is selected.

    Raises:
        ConfigurationError: ``steps`` is below 0.
        UnknownNameError: no rule has this name.

    Example:
        >>> import torch
        >>> prior = Prior({"w": torch.tensor(1.0)}, rates=0.25)
        >>> prior
        Prior(1 parameter, rates=0.25, steps=1)
        >>> prior.adapted(lambda fast, _: fast["w"] ** 2)["w"].item()
        0.5
    """

    parameters: Mapping[str, Tensor]
    rates: Rates | None = None
    plastic: tuple[str, ...] = ALL
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    steps: int = 1
    rule: str = "sgd"
    components: tuple[Prior, ...] = ()
    _told: set[int] = field(default_factory=set, init=False)

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ConfigurationError(f"Prior: steps is {self.steps}, but it must be at least 0")
        if self.rule not in RULES:
            raise UnknownNameError("rule of inner steps", self.rule, RULES)
        for name in ("parameters", "buffers"):
            object.__setattr__(self, name, _copied(getattr(self, name)))
        for name in ("plastic", "components"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.rates, Mapping):
            object.__setattr__(self, "rates", _copied(self.rates))
        elif isinstance(self.rates, Tensor):
            object.__setattr__(self, "rates", self.rates.detach().clone())

    def __repr__(self) -> str:
        count = len(self.parameters)
        told = [f"{count} parameter{'' if count == 1 else 's'}"]
        if self.buffers:
            told.append(f"{len(self.buffers)} buffers")
        if self.rates is not None:
            told.append("rates by name" if isinstance(self.rates, Mapping) else f"rates={float(self.rates):g}")
        if self.plastic != ALL:
            told.append(f"plastic={self.plastic!r}")
        told.append(f"steps={self.steps}")
        if self.rule != "sgd":
            told.append(f"rule={self.rule!r}")
        if self.components:
            told.append(f"{len(self.components)} components")
        return f"Prior({', '.join(told)})"

    # ------------------------------------------------------------------ making one

    @classmethod
    def of(cls, source: nn.Module | Run, plugin: Plugin | None = None, **options: Any) -> Prior:
        """What a trained model has become, and what the plugin that trained it says of the inner steps.

        Args:
            source: the model, such as ``result.model``; or the run, which alone knows rates that a plugin has learnt.
            plugin: such as `MAML`: its ``steps``, ``rule``, ``plastic`` and rates.
            **options: fields of `Prior` that are known better, such as ``rates=0.1``.

        Raises:
            ConfigurationError: the rates are learnt, and only the model is given.
        """
        model = source.model if isinstance(source, Run) else Model.of(source)
        found: dict[str, Any] = {"parameters": dict(model.named_parameters()), "buffers": dict(model.named_buffers())}
        if plugin is not None:
            found |= {name: getattr(plugin.config, name) for name in ("steps", "rule", "plastic") if hasattr(plugin.config, name)}
            if "rates" not in options:
                found["rates"] = _rates_of(source, plugin)
        return cls(**found | options)

    @classmethod
    def mixture(cls, *components: Prior) -> Prior:
        """Several priors of one model, at least one; until one of them is selected, it is the first."""
        if not components:
            raise ConfigurationError("Prior.mixture: give at least one prior")
        return replace(components[0], components=components)

    # ------------------------------------------------------------------ using it

    def start_of(self, model: nn.Module, heads: str = "refuse") -> dict[str, Tensor]:
        """The values at which ``model`` starts, by name of its parameter or buffer, of the type of its own.

        Heads may be there on one side alone: those that the prior lacks are left out, those that the model lacks are not used.

        Args:
            model: the model.
            heads: what becomes of a head of another size than the prior's: ``"refuse"``, or ``"skip"``, which leaves it out.

        Raises:
            ConfigurationError: any other parameter or buffer is there on one side alone, or has another shape; it is named.
        """
        own = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        mine = {**self.parameters, **self.buffers}
        _refuse_missing(mine, own, "the prior", "the model")
        _refuse_missing(own, mine, "the model", "the prior")
        found = {}
        for name, value in mine.items():
            if name not in own:
                continue
            if own[name].shape == value.shape:
                found[name] = value.to(own[name])
            elif heads != "skip" or not name.startswith(HEADS):
                cure = "give heads='skip' to leave heads of other sizes as they are" if name.startswith(HEADS) else "take a model as wide"
                raise ConfigurationError(
                    f"{name!r} has shape {tuple(own[name].shape)} in the model and {tuple(value.shape)} in the prior: {cure}"
                )
        return found

    def warn_beyond(self, steps: int) -> None:
        """Warn, once for each number, that ``steps`` are more than those it was trained for."""
        if steps > self.steps and steps not in self._told:
            self._told.add(steps)
            warnings.warn(
                f"{steps} inner steps are asked of a prior that was trained for {self.steps}, and may lead anywhere: take as many as it "
                "was trained for, or train it for more",
                UserWarning,
                stacklevel=3,
            )

    def adapted(self, loss: Loss, start: Mapping[str, Tensor] | None = None, *, steps: int | None = None) -> dict[str, Tensor]:
        """The parameters after inner steps on ``loss``, without a graph.

        Args:
            loss: called with the parameters that move and those that rest, by name; see `streamlearn.core.inner_loop.adapt`.
            start: in place of its own parameters, by the same names.
            steps: default those it was trained for.

        Raises:
            ConfigurationError: it has no rates.
        """
        if self.rates is None:
            raise ConfigurationError("the prior has no rates to take inner steps at: make it with rates=, as in Prior.of(model, rates=0.1)")
        steps = self.steps if steps is None else steps
        self.warn_beyond(steps)
        values = self.parameters if start is None else start
        moving = select_names(values, self.plastic)
        fast = adapt(
            loss,
            {name: value for name, value in values.items() if name in moving},
            steps=steps,
            rates=self.rates,
            rule=RULES[self.rule],
            estimator="first-order",
            fixed={name: value for name, value in values.items() if name not in moving},
        )
        return {**values, **{name: value.detach() for name, value in fast.items()}}

    # ------------------------------------------------------------------ files

    def fingerprint(self) -> str:
        """SHA-256 of all that is in it."""
        return fingerprint(self._tree())

    def save(self, path: str | Path) -> None:
        """Write it to one safetensors file, the rest of it as JSON in the file's header; whole or not at all.

        Raises:
            RunFolderError: the folder cannot be written to, or the disk is full.
        """
        write_prior(Path(path), self._tree())

    @classmethod
    def load(cls, path: str | Path) -> Prior:
        """Read what `save` wrote.

        Raises:
            CheckpointError: there is no such file, or it is damaged, holds something else, or has a newer format.
        """
        return _from_tree(read_prior(Path(path)))

    def _tree(self) -> dict[str, Any]:
        plain = {"parameters": dict(self.parameters), "buffers": dict(self.buffers), "rates": self.rates, "plastic": list(self.plastic)}
        return {**plain, "steps": self.steps, "rule": self.rule, "components": [part._tree() for part in self.components]}


def _from_tree(tree: Mapping[str, Any]) -> Prior:
    return Prior(**{**tree, "components": tuple(_from_tree(part) for part in tree["components"])})


def _refuse_missing(there: Mapping[str, Tensor], here: Mapping[str, Tensor], one: str, other: str) -> None:
    for name, value in there.items():
        if name not in here and not name.startswith(HEADS):
            others = ", ".join([*here][:4]) or "nothing"
            raise ConfigurationError(
                f"{one} has {name!r} of shape {tuple(value.shape)}, which {other} lacks (it has {others}, ...): start a model of the same "
                "structure, with the same plugins that change it"
            )


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in tensors.items()}


def _rates_of(source: nn.Module | Run, plugin: Plugin) -> Rates | None:
    if isinstance(source, Run) and isinstance(plugin, EpisodeLearner):
        rates = plugin.rates(source, source.parameters())
        return {name: rates[name] for name in rates} if isinstance(rates, Mapping) else rates
    if hasattr(plugin, "collect_modules"):
        raise ConfigurationError(
            f"Prior.of: plugin {plugin.name} keeps modules of its own in the run, such as learnt rates, which the model does not have: "
            "give the run in place of the model (a progress function is called with it), or rates="
        )
    rate: float | None = getattr(plugin.config, "rate", None)
    return rate
