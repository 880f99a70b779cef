"""Avalanche's training loop, taken apart: its pieces in the order of `SupervisedTemplate`, for the engine to walk through.

    experience   train ─ before_training ─ dataset, loader, model and optimiser adaptation ─ before_training_exp
    epoch          before_training_epoch ─ stop? ─ batches ─ after_training_epoch
    step             before_training_iteration ─ zero_grad ─ before_forward ─ FORWARD ─ after_forward ─ criterion ─ before_backward
                     ─ BACKWARD ─ after_backward ─ before_update ─ UPDATE ─ after_update ─ after_training_iteration
    end          after_training_exp ─ after_training

What is in capitals is the engine's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from streamlearn.core.objective import Objective, weigh
from streamlearn.errors import ConfigurationError
from streamlearn_avalanche.data import LoaderData, Log, Rows, avalanche_experience, batch_of, only_task
from streamlearn_avalanche.randomness import RandomStream, quiet
from streamlearn_avalanche.strategy import Strategy

if TYPE_CHECKING:
    from streamlearn.core.phases import Phase
    from streamlearn.core.run import Run
    from streamlearn.core.view import Step
    from streamlearn.streams import Batch, Experience

__all__ = ["Loop"]

Gradients = Mapping[str, Tensor]


class Loop:
    """The loop of one run.

    Args:
        run: the run.
        plugins: Avalanche's plugins, in Avalanche's order.
        seed: of Avalanche's random stream.
        task_labels: whether experiences are task-aware.
    """

    def __init__(self, run: Run, plugins: Sequence[Any], seed: int, task_labels: bool) -> None:
        self.run, self.task_labels = run, task_labels
        self.strategy = Strategy(run=run, plugins=plugins)
        self.listed = plugins
        self.task = ""
        self.is_open = False  # an experience has begun, and Avalanche has not been told of its end
        self._random = RandomStream(seed, run.device)
        self._arguments = {"drop_last": True} if run.options.drop_last else {}  # as a user would have given to strategy.train
        self._stopped = False  # a plugin has ended the experience before its last epoch
        self._modes: dict[str, bool] = {}
        self._log: Log = []
        self._rows: Rows | None = None

    @contextmanager
    def _inside(self) -> Iterator[None]:
        """Avalanche's code runs in here."""
        with self._random, quiet():
            yield

    def is_in(self, phase: Phase | None) -> bool:
        """Whether Avalanche trains in this phase."""
        return phase is not None and isinstance(phase.data, LoaderData)

    # ------------------------------------------------------------------ experience and epoch

    def begin_experience(self, experience: Experience) -> None:
        """What ``strategy.train(experience)`` does before its first epoch."""
        strategy = self.strategy
        self.task = only_task(experience, self.task or None)
        self._rows = Rows(experience.data["train"], self.task, self._log)
        seen, size = set(self.run.classes_seen.get(self.task, ())), experience.tasks[0].size
        strategy.is_training, strategy._stop_training = True, False
        strategy._eval_streams = [[]]  # who evaluates them is told that the engine does
        strategy.model.train()
        with self._inside():
            strategy._before_training(**self._arguments)
            strategy.experience = avalanche_experience(self._rows, experience.index, seen, size, self.task_labels)
            strategy._before_training_exp(**self._arguments)
        self._modes, self.is_open, self._stopped = _modes(strategy.model), True, False

    def take_over(self, phase: Phase) -> Phase:
        """``phase`` with the batches that Avalanche's loader draws."""
        length = len(self.strategy.dataloader) * (phase.batch_size or self.run.options.batch_size)
        return phase.replace(data=LoaderData(phase.data, self.batches, length))

    def begin_epoch(self) -> None:
        """``before_training_epoch``, and the place where Avalanche looks whether a plugin has stopped the experience."""
        if not self._stopped:
            with self._inside():
                self.strategy._before_training_epoch(**self._arguments)
            self._stopped, self.strategy._stop_training = self.strategy._stop_training, False

    def batches(self, role: str) -> Iterator[Batch]:
        """The batches of an epoch, as Avalanche's loop meets them."""
        strategy = self.strategy
        _set_modes(strategy.model, self._modes)  # the engine puts all in training mode at each epoch, Avalanche once an experience
        loader: Iterator[Any] | None = None
        while not self._stopped:
            self._log.clear()
            with self._inside():
                loader = iter(strategy.dataloader) if loader is None else loader
                batch = next(loader, None)
            if batch is None:
                return  # the last one stays where plugins look for it: MIR reads its classes at the end of the experience
            strategy.mbatch = batch
            if strategy._stop_training:
                return
            strategy._unpack_minibatch()
            yield batch_of(strategy.mb_x, strategy.mb_y, self.task, self._rows, self._log, role)

    def end_epoch(self, is_last: bool) -> None:
        """``after_training_epoch``, and after the last epoch what ends the experience."""
        strategy = self.strategy
        with self._inside():
            if not self._stopped:
                strategy._after_training_epoch(**self._arguments)
            if is_last:
                strategy._after_training_exp(**self._arguments)
                strategy._after_training(**self._arguments)
                strategy._train_cleanup()
        self._modes = _modes(strategy.model)
        if is_last:
            self.is_open = False
            self.run.optimization.clear()  # from step to step gradients stay, but nobody else may meet them

    # ------------------------------------------------------------------ step

    def begin_step(self, batch: Batch) -> Batch:
        """``before_training_iteration``; the batch as plugins leave it."""
        self._show(batch)
        with self._inside():
            self.strategy._before_training_iteration(**self._arguments)
        x, y = self.strategy.mb_x, self.strategy.mb_y
        if x is batch.x and y is batch.targets[self.task]:
            return batch
        return batch_of(x, y, self.task, None, [], batch.roles[0])

    def _show(self, batch: Batch) -> None:
        """The batch as Avalanche's mini-batch: inputs, classes, task labels."""
        if set(batch.targets) != {self.task} or not batch.is_one_task:
            raise ConfigurationError(
                f"the batch holds rows without a label of task {self.task!r}, which Avalanche's plugins cannot learn from: leave out what "
                "adds them"
            )
        labels = torch.zeros(len(batch), dtype=torch.int64, device=batch.x.device)
        self.strategy.mbatch = [batch.x, batch.targets[self.task], labels]

    def objective(self, inner: Callable[[Step], Objective], step: Step) -> Objective:
        """From ``zero_grad`` to ``before_backward``: the loss that Avalanche's plugins build is the one row that is minimised."""
        strategy = self.strategy
        self._show(step.batch)
        strategy.optimizer.zero_grad()
        strategy.loss = strategy._make_empty_loss()
        with self._inside():
            strategy._before_forward(**self._arguments)
        found = inner(step)
        read = step.outputs[self.task]
        outputs = step.outputs.features if self.run.model.is_plain else read  # all that the network gives, as Avalanche has it
        strategy.take(outputs, weigh(found, step) if read is outputs else None)
        with self._inside():
            strategy._after_forward(**self._arguments)
            self._refuse_lost_losses()
            strategy.loss += strategy.criterion()
            strategy._before_backward(**self._arguments)
        return Objective({self.task: strategy.loss.reshape(())}, found.terms, {self.task: 1.0})

    def _refuse_lost_losses(self) -> None:
        """What other plugins made of the targets and losses must not get lost when Avalanche's criterion is another."""
        if not self.strategy.keeps_engine_loss:
            lost = sorted({*self.run.implementers("transform_supervision"), *self.run.implementers("provide_task_losses")})
            if lost:
                raise ConfigurationError(
                    f"an Avalanche plugin brings a loss of its own, which {', '.join(lost)} would change: remove one of the two"
                )

    def end_backward(self, gradients: Gradients) -> Gradients:
        """``after_backward``, with the gradients where Avalanche's plugins look for them."""
        self._put(gradients)
        with self._inside():
            self.strategy._after_backward(**self._arguments)
        return self.run.optimization.gradients()

    def update(self, update: Callable[[Gradients], None], gradients: Gradients) -> None:
        """``before_update``, the update, ``after_update``: gradients stay where they are until the next step, where SI reads them."""
        self._put(gradients)
        with self._inside():
            self.strategy._before_update(**self._arguments)
        chosen = self.run.optimization.gradients()
        update(chosen)
        self._put(chosen)
        with self._inside():
            self.strategy._after_update(**self._arguments)

    def end_step(self) -> None:
        """``after_training_iteration``."""
        with self._inside():
            self.strategy._after_training_iteration(**self._arguments)

    def _put(self, gradients: Gradients) -> None:
        for name, parameter in self.run.parameters().items():
            parameter.grad = gradients.get(name)

    # ------------------------------------------------------------------ evaluation

    def predict(self, x: Tensor, outputs: Tensor) -> Tensor:
        """``outputs`` as plugins change them in Avalanche's evaluation loop, which has no labels here; leaves no trace."""
        strategy = self.strategy
        before = strategy.is_training, strategy.mbatch, strategy.mb_output
        strategy.is_training, strategy.mb_output = False, outputs
        strategy.mbatch = [x, None, torch.zeros(len(x), dtype=torch.int64, device=x.device)]
        try:
            with quiet():
                for event in ("after_eval_forward", "after_eval_iteration"):
                    for plugin in self.listed:
                        getattr(plugin, event, _nothing)(strategy)
            return strategy.mb_output
        finally:
            strategy.is_training, strategy.mbatch, strategy.mb_output = before


def _nothing(strategy: Strategy) -> None:
    return None


def _modes(network: nn.Module) -> dict[str, bool]:
    return {name: module.training for name, module in network.named_modules()}


def _set_modes(network: nn.Module, modes: Mapping[str, bool]) -> None:
    for name, module in network.named_modules():
        module.training = modes.get(name, module.training)
