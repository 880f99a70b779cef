"""What Avalanche's plugins take for their strategy.

It is Avalanche's own `SupervisedTemplate`, so that every attribute is there and every event, loader and adaptation is Avalanche's own
code; but nobody calls ``train``: the engine walks, and `streamlearn_avalanche.plugin` fires the events where they belong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from avalanche.models import MultiTaskModule
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn

from streamlearn.errors import ConfigurationError
from streamlearn_avalanche.randomness import quiet

if TYPE_CHECKING:
    from streamlearn.core.run import Run

__all__ = ["Strategy"]


class Strategy(SupervisedTemplate):  # type: ignore[misc]
    """A strategy that is walked from outside.

    Args:
        run: the run, whose model and optimiser it shows.
        plugins: Avalanche's plugins, in Avalanche's order.

    Raises:
        ConfigurationError: the model wants task labels, or has no parameter.
    """

    def __init__(self, *, run: Run, plugins: Sequence[Any]) -> None:
        options, main = run.options, run.optimization.main
        network = run.model.encoder if run.model.is_plain else run.model
        if any(isinstance(module, MultiTaskModule) for module in network.modules()):
            raise ConfigurationError(
                "the model is one of Avalanche's multi-task modules, which want task labels in every pass: take one head for all classes, "
                "such as IncrementalClassifier, or the heads of streamlearn.models"
            )
        if main is None:
            raise ConfigurationError("the model has no parameter that Avalanche's plugins could train: leave them out")
        self.run = run
        self._default = nn.CrossEntropyLoss()
        self._from_engine: tuple[Tensor, Tensor] | None = None
        with quiet():  # it warns that nothing is logged: the engine keeps the record
            super().__init__(
                model=network,
                optimizer=main,
                criterion=self._default,
                train_mb_size=options.batch_size,
                train_epochs=options.epochs,
                eval_mb_size=options.evaluation_batch_size,
                device=run.device,
                plugins=list(plugins),
                evaluator=None,
            )

    # ------------------------------------------------------------------ what plugins write

    _network: nn.Module
    _main: Any

    @property
    def model(self) -> nn.Module:
        """The network; the object stays the same, whatever is assigned to it."""
        return self._network

    @model.setter
    def model(self, module: nn.Module) -> None:
        if "_network" not in vars(self):
            self._network = module
        elif module is not self._network:
            self._become(module)

    def _become(self, module: nn.Module) -> None:
        """Exchange all that the network holds, but not the object, which the engine and the user hold: what GDumb does to a model."""
        if type(module) is not type(self._network):
            raise ConfigurationError(
                f"an Avalanche plugin replaced the model, a {type(self._network).__name__}, by a {type(module).__name__}: only one of "
                "the same class can take its place"
            )
        held = vars(self._network)
        held.clear()
        held.update(vars(module))

    @property
    def optimizer(self) -> Any:
        """The main optimiser of the engine."""
        return self._main

    @optimizer.setter
    def optimizer(self, optimizer: Any) -> None:
        if "_main" in vars(self) and optimizer is not self._main:
            raise ConfigurationError("an Avalanche plugin replaced the optimizer, which belongs to the engine: leave that plugin out")
        self._main = optimizer

    def make_optimizer(self, **options: Any) -> None:
        """Follow the model's parameters: Avalanche's own update, then the names that the engine knows them by."""
        super().make_optimizer(**options)
        known, run = self.run.optimization.parameters(), self.run
        helpers = {name: p for name, p in known.items() if name not in run.model_parameter_names}
        known.clear()
        known.update({**dict(run.model.named_parameters()), **helpers})
        run.notice_growth()

    # ------------------------------------------------------------------ the loss

    def take(self, outputs: Tensor, loss: Tensor | None) -> None:
        """The engine's outputs, and its loss on them, which stands for the criterion until a plugin changes either.

        There is no such loss where the engine reads but some of the outputs.
        """
        self.mb_output = outputs
        self._from_engine = None if loss is None else (outputs, loss)

    @property
    def keeps_engine_loss(self) -> bool:
        """Whether the loss is still the one that the engine computed."""
        return self._from_engine is not None and self._criterion is self._default and self.mb_output is self._from_engine[0]

    def criterion(self) -> Tensor:
        """The loss of the mini-batch."""
        if self._from_engine is not None and self.keeps_engine_loss:
            return self._from_engine[1]
        return self._criterion(self.mb_output, self.mb_y)  # type: ignore[no-any-return]

    # ------------------------------------------------------------------ what belongs to the engine

    def train(self, *_: object, **__: object) -> NoReturn:
        """Refused."""
        raise ConfigurationError("an Avalanche plugin called strategy.train(), but the engine trains: leave that plugin out")

    def eval(self, *_: object, **__: object) -> NoReturn:
        """Refused."""
        raise ConfigurationError("an Avalanche plugin called strategy.eval(), but the engine evaluates: see Engine(evaluate_every=...)")
