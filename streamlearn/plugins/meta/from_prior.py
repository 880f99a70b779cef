"""Starting from a prior: the run begins where learning to learn has led, and may go back there at each experience."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, InstanceOf, field_serializer
from torch import Tensor

from streamlearn.core.inner_loop import EpisodeLearner
from streamlearn.core.penalties import leading
from streamlearn.core.phases import select_names
from streamlearn.core.plugin import STREAM_KINDS, Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.priors.prior import Prior
from streamlearn.core.priors.restart import start_of_run, tensors_of, write
from streamlearn.core.priors.selection import losses_of_components
from streamlearn.errors import CheckpointError, ConfigurationError, TrainingError

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.streams import Experience

__all__ = ["FromPrior"]


class FromPrior(Plugin):
    r"""The run starts at a prior, and a policy says what becomes of the weights when an experience starts.

    Before the run, and before the first evaluation, the model takes the parameters and buffers of the prior. Heads that the prior lacks
    start as they are, and so does a head that comes later; heads that the model lacks are not used. A head is known by its task's name:
    that of episodes is called otherwise (``omniglot/5-way``) than that of a stream of classes. What begins anew in the course of the run
    (`FromScratch`, `GDumb`, ``Joint(restart=True)``) begins at the prior as well.

    ``at_experience`` at the start of each experience but the first:

    - ``"keep"``: nothing, the weights go on from where they are;
    - ``"reset"``: all parameters and buffers go back to the start, all optimisers forget; heads that the prior lacks go back, too;
    - ``"reset_plastic"``: only what ``plastic`` selects goes back, and the optimisers forget only that;
    - ``"blend"``: θ ← (1 - b) θ + b · prior for what the prior has, b being ``blend``; optimisers forget what has moved;
    - ``"select"``, at the first experience as well: of the components of a mixture that one is taken whose loss on the first training
      batches is the least, on the labelled ``query`` rows of episodes, else on all labelled rows, in evaluation mode; of equal ones the
      first. With ``steps`` above 0 each component takes inner steps, by its own rates, before it is asked: on the ``support`` rows of
      each episode, else on the rows on which it is asked. Heads that the component lacks stay as they are.

    Outputs by which a head has grown since the start are drawn anew where the head goes back, and blending leaves them alone.

    Args:
        prior: a `Prior`, or the path of a saved one; ``None`` takes the weights with which the run starts.
        at_experience: the policy.
        blend: b, in (0, 1].
        plastic: patterns of names of parameters and buffers; default those of the prior.
        heads: a head of another size than the prior's: ``"refuse"``, or ``"skip"``, which leaves it as it is.
        batches: how many batches ``"select"`` compares components on, at least 1.
        steps: inner steps of ``"select"``, at least 0.

    Raises:
        ConfigurationError: the prior does not fit the model (the parameter is named, with both shapes), ``plastic`` selects nothing,
            ``"select"`` is given no mixture, there is neither a prior nor a policy, or a policy
            would overwrite what `HAT` or `PackNet` protects.
        CheckpointError: ``prior`` is no file, or a damaged one; or a run is resumed with another prior than it was started with.
        TrainingError: ``"select"`` meets no labelled row, or no component has a finite loss.

    Warns:
        UserWarning: a plugin beside it, or ``steps``, takes more inner steps than the prior was trained for.

    Cost: none in a step; ``"select"`` takes a pass for each component and batch at the start of an experience. Memory: the prior.

    Reference: the prior as what learning to learn learns: Hospedales et al., Meta-learning in neural networks: a survey, TPAMI 2021;
    starting the plastic part anew: Javed & White, Meta-learning representations for continual learning, NeurIPS 2019, section 5; blending
    with the start: Ash & Adams, On warm-starting neural network training, NeurIPS 2020 (there with noise for the start).

    Example:
        >>> from streamlearn.plugins import FromPrior
        >>> FromPrior(prior="characters.prior", at_experience="reset_plastic", plastic=("heads.*",))
        FromPrior(at_experience='reset_plastic', plastic=('heads.*',), prior='characters.prior')
    """

    info = PluginInfo(
        name="from_prior",
        family="meta",
        summary="Starts the run at a learnt prior, and may go back to it at each experience.",
        reference="Hospedales et al. 2021, TPAMI; Javed & White 2019, NeurIPS, section 5; Ash & Adams 2020, NeurIPS",
        after=frozenset({"multi_head"}),
        before=frozenset({"si"}),  # which remembers the weights with which the first experience starts
        memory="1 x parameters for each component",
        ranks="local",
        streams=frozenset(STREAM_KINDS),
    )

    class Config(PluginConfig):
        """Options of `FromPrior`."""

        prior: InstanceOf[Prior] | str | Path | None = None
        at_experience: Literal["keep", "reset", "reset_plastic", "blend", "select"] = "keep"
        blend: float = Field(0.5, gt=0, le=1)
        plastic: tuple[str, ...] | None = None
        heads: Literal["refuse", "skip"] = "refuse"
        batches: int = Field(1, ge=1)
        steps: int = Field(0, ge=0)

        @field_serializer("prior")
        def _as_told(self, prior: Prior | str | Path | None) -> str | None:
            return prior.fingerprint() if isinstance(prior, Prior) else None if prior is None else str(prior)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.chosen: list[int] = []
        """For each experience so far the number of the component that ``"select"`` has taken."""
        self._read: Prior | None = None
        self._begun = False
        self._print: str | None = None

    def prior(self) -> Prior | None:
        """The prior; a saved one is read once."""
        given = self.config.prior
        if isinstance(given, str | Path) and self._read is None:
            self._read = Prior.load(given)
        return given if isinstance(given, Prior) else self._read

    # ------------------------------------------------------------------ the start

    @hookimpl
    def before_run(self, run: Run) -> None:
        """The model starts at the prior."""
        prior, policy = self.prior(), self.config.at_experience
        if prior is None and policy == "keep":
            raise ConfigurationError(f"plugin {self.name}: without a prior, keep does nothing: give prior=, or another at_experience")
        if policy == "select" and (prior is None or not prior.components):
            raise ConfigurationError(f"plugin {self.name}: select needs a mixture: give prior=Prior.mixture(one, another)")
        guards = [plugin.name for plugin in run.plugins if plugin.info.name in ("packnet", "hat")]
        if guards and policy != "keep":
            raise ConfigurationError(
                f"plugin {self.name}: at_experience={policy!r} would overwrite what {guards[0]} protects: take keep, or remove one of them"
            )
        self._begin(run)
        if prior is not None:
            write(dict(tensors_of(run.model)), prior.start_of(run.model, self.config.heads))
            asked = [self.config.steps] if policy == "select" else []
            for plugin in run.plugins:
                if isinstance(plugin, EpisodeLearner):
                    asked += [plugin.config.steps, plugin.config.evaluation_steps or 0]
            prior.warn_beyond(max(asked, default=0))
        if policy == "reset_plastic" and not self._plastic(run):
            raise ConfigurationError(
                f"plugin {self.name}: no parameter matches plastic={self.config.plastic!r}; there are "
                f"{', '.join(name for name, _ in run.model.named_parameters())}"
            )

    @hookimpl
    def collect_modules(self, run: Run) -> dict[str, Any]:
        """No module: this is where what must be done again by a resume is done."""
        if not self._begun:
            self._begin(run)
        return {}

    def _begin(self, run: Run) -> None:
        """Whoever goes back to the initial weights goes back to the prior."""
        self._begun = True
        prior = self.prior()
        if prior is not None:
            write(dict(tensors_of(run.initial)), prior.start_of(run.initial, self.config.heads))

    # ------------------------------------------------------------------ the policy

    @hookimpl
    def before_experience(self, experience: Experience, run: Run) -> None:
        """Not fired again by a resume, which finds the weights as they were."""
        policy, own = self.config.at_experience, dict(tensors_of(run.model))
        if policy == "select":
            self._move(run, own, self._selected(experience, run))
        elif run.clock.experience == 0 or policy == "keep":
            return
        elif policy == "reset":
            run.reset()
        elif policy == "reset_plastic":
            chosen = self._plastic(run)
            self._move(run, own, {name: value for name, value in start_of_run(run).items() if name in chosen})
        else:
            self._move(run, own, self._blended(run, own))

    def _plastic(self, run: Run) -> frozenset[str]:
        prior = self.prior()
        patterns = self.config.plastic if self.config.plastic is not None or prior is None else prior.plastic
        return select_names([name for name, _ in tensors_of(run.model)], patterns)

    def _blended(self, run: Run, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
        prior, start = self.prior(), dict(tensors_of(run.initial))
        if prior is not None:
            known = prior.start_of(run.initial, self.config.heads)
            start = {name: value for name, value in start.items() if name in known}
        found = {}
        for name, value in start.items():
            if value.is_floating_point():
                found[name] = own[name].detach().clone()
                here = leading(found[name], value.shape)
                here.lerp_(value.detach().to(here), self.config.blend)
        return found

    def _move(self, run: Run, own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
        write(own, values)
        run.optimization.forget(values)

    def _selected(self, experience: Experience, run: Run) -> dict[str, Tensor]:
        """What the component that fits best starts at."""
        prior, config = self.prior(), self.config
        assert prior is not None
        starts = [component.start_of(run.model, config.heads) for component in prior.components]
        losses = losses_of_components(prior.components, starts, experience, run, batches=config.batches, steps=config.steps)
        best = min(range(len(losses)), key=losses.__getitem__)
        if losses[best] == math.inf:
            raise TrainingError(
                f"plugin {self.name}: no component of the prior has a finite loss on the first labelled rows of {run.clock}: give more "
                "batches, or another policy"
            )
        self.chosen.append(best)
        return starts[best]

    # ------------------------------------------------------------------ state

    def state_dict(self) -> dict[str, Any]:
        """Which prior it was, and which components were taken."""
        prior = self.prior()
        if self._print is None:
            self._print = "" if prior is None else prior.fingerprint()
        return {"prior": self._print, "chosen": list(self.chosen)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        if state["prior"] != self.state_dict()["prior"]:
            raise CheckpointError(
                f"plugin {self.name}: the run was started from another prior than {self.config.prior}: give the one it was started from"
            )
        self.chosen = list(state["chosen"])
