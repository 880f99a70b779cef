"""Frozen backbone: a pretrained encoder that no experience moves."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from pydantic import Field
from torch import nn

from streamlearn.core.phases import select_names
from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.optimization import Trainable
    from streamlearn.core.run import Run

__all__ = ["FrozenBackbone", "at_rest"]


def at_rest(model: nn.Module, frozen: frozenset[str]) -> list[nn.Module]:
    """The largest parts of ``model`` whose parameters and buffers, of which there is one at least, are all ``frozen``, by name.

    Example:
        >>> net = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout()), nn.Linear(2, 2))
        >>> [type(part).__name__ for part in at_rest(net, frozenset(name for name in net.state_dict() if name.startswith("0.")))]
        ['Sequential']
    """
    found: list[nn.Module] = []
    _collect(model, "", frozen, found)
    return found


def _collect(module: nn.Module, prefix: str, frozen: frozenset[str], found: list[nn.Module]) -> None:
    names = [prefix + name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    if names and frozen.issuperset(names):
        found.append(module)
        return
    for name, child in module.named_children():
        _collect(child, f"{prefix}{name}.", frozen, found)


class FrozenBackbone(Plugin):
    """A frozen backbone: the encoder, or a part of it, does not move, and only what stands on it learns.

    From experience ``after`` on (counted from 0), the parameters that ``patterns`` select are frozen: they get no gradient, and neither
    momentum nor weight decay touches them. A part of the model of which every parameter and buffer is selected is kept in evaluation
    mode: the statistics of its BatchNorm do not move, and its dropout rests, so that its features of a row are the same in every step.

    With ``after=1`` the encoder is adapted to the first experience and frozen then (first-session adaptation).

    What is penalised, masked or projected by name (EWC, PackNet, A-GEM) meets the parameters that still move, and no others. After the
    run the parameters are still frozen. With an encoder frozen from the start, whose features never change,
    `streamlearn.streams.sources.embedded` computes them once in place of once per epoch.

    Args:
        after: how many experiences are trained as usual before, at least 0.
        patterns: which parameters and buffers of the model are frozen, by name, with shell wildcards; ``"encoder.*"`` is the encoder. A
            plain module, whose output all tasks share, is an encoder as a whole: list `MultiHead` before, or name its layers.

    Raises:
        ConfigurationError: the patterns select no parameter, or leave none to train.

    Cost: none; no backward pass goes through what is frozen below all that moves. Memory: none.

    Reference: Donahue et al., DeCAF: a deep convolutional activation feature for generic visual recognition, ICML 2014 (fixed features);
    Panos et al., First session adaptation: a strong replay-free baseline for class-incremental learning, ICCV 2023 (``after=1``).

    Example:
        >>> from streamlearn.plugins import FrozenBackbone
        >>> FrozenBackbone(after=1)
        FrozenBackbone(after=1)
    """

    info = PluginInfo(
        name="frozen_backbone",
        family="sharing",
        summary="Keeps a pretrained encoder as it is, from the start or after some experiences.",
        reference="Donahue et al. 2014, ICML; Panos et al. 2023, ICCV (first-session adaptation)",
        after=frozenset({"multi_head"}),
        ranks="local",
    )

    class Config(PluginConfig):
        """Options of `FrozenBackbone`."""

        after: int = Field(0, ge=0)
        patterns: tuple[str, ...] = Field(("encoder.*",), min_length=1)

    @hookimpl
    def collect_modules(self, run: Run) -> dict[str, Trainable]:
        """Freeze. No module is added: this is where what must be done again by a resume is done, after heads have grown."""
        if run.clock.experience < self.config.after:
            return {}
        parameters, buffers = dict(run.model.named_parameters()), dict(run.model.named_buffers())
        chosen = select_names({**parameters, **buffers}, self.config.patterns)
        if not chosen & set(parameters):
            raise ConfigurationError(
                f"plugin {self.name}: no parameter of the model is called like {', '.join(map(repr, self.config.patterns))} "
                f"(the first is {next(iter(parameters), 'absent')!r}): give patterns of their names, such as 'encoder.*'"
            )
        if run.model.is_plain and chosen >= set(parameters):
            raise ConfigurationError(
                f"plugin {self.name} freezes the whole model, which is a plain module without heads: list MultiHead before it, or give "
                "patterns of the layers to freeze"
            )
        for name in chosen & set(parameters):
            parameters[name].requires_grad_(False)
        for part in at_rest(run.model, chosen):
            part.train = partial(_stay, part)  # type: ignore[method-assign]  # the engine calls it at every epoch
        return {}

    @hookimpl
    def after_run(self, run: Run) -> None:
        """The model may be trained by others now."""
        for module in run.model.modules():
            if getattr(module.__dict__.get("train"), "func", None) is _stay:
                del module.train


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    """In place of ``module.train``: evaluation mode, whatever is asked for."""
    return nn.Module.train(module, False)
