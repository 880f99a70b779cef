"""Event by event: what a plugin of Avalanche's sees in its own loop, and what it sees here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from streamlearn_avalanche import AvalanchePlugin

from .support import SEED, assert_identical, engine, network, stream, trained_by_avalanche, weights


def look(strategy: Any, is_first: bool) -> tuple[Any, ...]:
    """All that can be read of a strategy, as plain numbers; ``is_first`` says that no step of the experience has been made.

    What an experience leaves in ``.grad`` is not there when the next one starts: the engine clears it, before any step would.
    """

    def bits(tensor: Tensor | None) -> Any:
        return None if tensor is None else (tuple(tensor.shape), tensor.detach().double().sum().item())

    clock, experience, optimizer = strategy.clock, strategy.experience, strategy.optimizer
    return (
        (clock.train_exp_counter, clock.train_exp_epochs, clock.train_exp_iterations, clock.train_epoch_iterations, clock.train_iterations),
        None if experience is None else (experience.current_experience, experience.classes_in_this_experience, len(experience.dataset)),
        None if experience is None else (experience.classes_seen_so_far, experience.previous_classes, experience.future_classes),
        None if experience is None else (experience.task_label, experience.dataset.targets.uniques),
        None if strategy.mbatch is None else [bits(part) for part in strategy.mbatch],
        bits(strategy.mb_output),
        bits(strategy.loss),
        [bits(parameter) for parameter in strategy.model.parameters()],
        None if is_first else [bits(parameter.grad) for parameter in strategy.model.parameters()],
        [module.training for module in strategy.model.modules()],
        [(group["lr"], len(group["params"])) for group in optimizer.param_groups],
        [sorted(state) for state in optimizer.state.values()],
        (strategy.train_mb_size, strategy.train_epochs, strategy.is_training, str(strategy.device)),
        None if strategy.adapted_dataset is None else len(strategy.adapted_dataset),
        len(strategy.dataloader),
        torch.default_generator.get_state().double().sum().item(),
    )


EVENTS = [name for name in dir(SupervisedPlugin) if name.startswith(("before_", "after_")) and "eval" not in name]


BEFORE_STEPS = ("before_training", "before_train_dataset_adaptation", "after_train_dataset_adaptation", "before_training_exp")


def make_witness(seen: list[Any], stops_at: int | None = None) -> SupervisedPlugin:
    """A plugin that looks at every event of training, and may stop an experience at some iteration of it."""

    def watch(event: str) -> Any:
        def method(self: Any, strategy: Any, **arguments: Any) -> None:
            is_first = event in BEFORE_STEPS or (event.startswith("before_training") and strategy.clock.train_exp_iterations == 0)
            seen.append((event, arguments, look(strategy, is_first)))
            if event == "after_training_iteration" and strategy.clock.train_exp_iterations == stops_at:
                strategy.stop_training()

        return method

    return type("Witness", (SupervisedPlugin,), {event: watch(event) for event in EVENTS})()


@pytest.mark.parametrize("stops_at", [None, 1, 2, 5])
def test_every_event_sees_what_it_sees_in_avalanche(stops_at: int | None) -> None:
    here: list[Any] = []
    there: list[Any] = []
    plugin = AvalanchePlugin(lambda network, optimizer: [make_witness(here, stops_at)], seed=SEED)
    found = engine([plugin], network(norm=True)).run(stream())
    wanted = trained_by_avalanche(lambda network, optimizer: [make_witness(there, stops_at)], model=network(norm=True))
    assert [event for event, *_ in here] == [event for event, *_ in there]
    for mine, its in zip(here, there, strict=True):
        assert mine == its
    assert {event for event, *_ in here} == set(EVENTS)
    assert_identical(weights(found), wanted)


def test_the_witness_sees_gradients_after_the_update_and_the_stopped_iterations() -> None:
    seen: list[Any] = []
    engine([AvalanchePlugin(lambda network, optimizer: [make_witness(seen, stops_at=1)])]).run(stream())
    after = [state for event, _, state in seen if event == "after_training_iteration"]
    assert len(after) == 2 * 4
    assert all(gradient is not None for state in after for gradient in state[8])
