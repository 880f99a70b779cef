from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, models
from streamlearn.core.randomness import seed_forward, subseed
from streamlearn.core.sampling import batches_per_epoch, shuffled
from streamlearn.plugins import EWC, LwF
from streamlearn.streams import Stream
from tests.core.support import OPTIMIZERS, class_stream, final, net, probe, same, sgd

EPOCHS, BATCH, SEED = 2, 7, 5


def plain_loop(model: nn.Module, optimizer: torch.optim.Optimizer, stream: Stream, drop_last: bool = False) -> dict[str, Tensor]:
    """What somebody would write without streamlearn, over the same batches and dropout masks."""
    update = 0
    for i in range(len(stream)):
        data = stream[i].data["train"]
        for epoch in range(EPOCHS):
            order = shuffled(len(data), BATCH, drop_last, 0, SEED, i, 0, epoch)
            assert len(order) == batches_per_epoch(len(data), BATCH, drop_last) * BATCH or not drop_last
            for positions in order.split(BATCH):
                batch = data.batch(positions)
                model.train()
                seed_forward(subseed(SEED, "forward"), update)
                loss = nn.functional.cross_entropy(model(batch.x), batch.targets["blobs"])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                update += 1
    return {f"encoder.{name}": value.clone() for name, value in model.state_dict().items()}


def nothing(name: str) -> Any:
    return probe(
        name,
        before_step=lambda step: None,
        after_step=lambda step: None,
        collect_terms=lambda step: None,
        transform_batch=lambda batch: batch,
        before_epoch=lambda: None,
        transform_supervision=lambda supervision: supervision,
    )


COMPOSITIONS: dict[str, Callable[[], list[Any]]] = {
    "none": list,
    "ewc at 0": lambda: [EWC(strength=0)],
    "lwf at 0": lambda: [LwF(strength=0)],
    "both at 0": lambda: [LwF(strength=0), EWC(strength=0)],
    "five that do nothing": lambda: [nothing(f"nothing_{n}") for n in range(5)],
    "identity hooks": lambda: [
        probe(
            "identity",
            transform_gradients=lambda gradients: gradients,
            around_update=lambda update, gradients: update(gradients),
            around_objective=lambda objective, step: objective(step),
            collect_terms=lambda: {},
        )
    ],
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_weights_equal_a_plain_loop_bit_for_bit(composition: str, optimizer: str) -> None:
    stream = class_stream()
    mine = net()
    before = {name: p.clone() for name, p in mine.named_parameters()}
    expected = plain_loop(mine, OPTIMIZERS[optimizer](mine.parameters()), stream)
    theirs = net()
    engine = Engine(theirs, OPTIMIZERS[optimizer], COMPOSITIONS[composition](), epochs=EPOCHS, batch_size=BATCH, seed=SEED)
    found, _ = final(engine, stream)
    assert same(found, expected)
    assert all(not torch.equal(before[name], p) for name, p in theirs.named_parameters()), "trained in place, and everything moved"
    assert int(found["encoder.body.1.num_batches_tracked"]) == 3 * EPOCHS * 3


def test_drop_last_leaves_out_short_batches() -> None:
    stream = class_stream()
    mine = net()
    expected = plain_loop(mine, sgd()(mine.parameters()), stream, drop_last=True)
    engine = Engine(net(), sgd(), epochs=EPOCHS, batch_size=BATCH, seed=SEED, drop_last=True)
    found, events = final(engine, stream)
    assert same(found, expected)
    assert [e["updates"] for e in events if e["event"] == "experience"] == [4, 4, 4]


def test_a_plugin_that_acts_breaks_the_identity() -> None:
    stream = class_stream()
    plain, _ = final(Engine(net(), sgd(), epochs=EPOCHS, batch_size=BATCH, seed=SEED), stream)
    held, _ = final(Engine(net(), sgd(), [EWC(strength=5)], epochs=EPOCHS, batch_size=BATCH, seed=SEED), stream)
    distilled, _ = final(Engine(net(), sgd(), [LwF(strength=5)], epochs=EPOCHS, batch_size=BATCH, seed=SEED), stream)
    assert not same(plain, held)
    assert not same(plain, distilled)


def test_same_engine_twice_and_equal_seeds_are_equal_and_other_seeds_are_not() -> None:
    stream = class_stream()
    engine = Engine(models.mlp(stream, hidden=(8,), dropout=0.2), sgd(), [EWC(strength=2)], batch_size=BATCH, seed=1)
    first, second = final(engine, stream), final(engine, stream)
    assert same(first, second)
    again = final(Engine(models.mlp(stream, hidden=(8,), dropout=0.2), sgd(), [EWC(strength=2)], batch_size=BATCH, seed=1), stream)
    assert same(first, again)
    other = final(Engine(models.mlp(stream, hidden=(8,), dropout=0.2), sgd(), [EWC(strength=2)], batch_size=BATCH, seed=2), stream)
    assert not any(torch.equal(first[0][name], other[0][name]) for name in first[0])


def test_a_factory_is_called_under_the_seed() -> None:
    stream = class_stream()
    torch.manual_seed(1)
    first, _ = final(Engine(lambda: models.mlp(stream, (8,)), sgd(), seed=4), stream)
    torch.manual_seed(2)
    second, _ = final(Engine(lambda: models.mlp(stream, (8,)), sgd(), seed=4), stream)
    third, _ = final(Engine(lambda: models.mlp(stream, (8,)), sgd(), seed=5), stream)
    assert same(first, second)
    assert not same(first, third)


def test_weights_set_by_the_user_are_kept_and_untouched_ones_are_drawn_from_the_seed() -> None:
    stream = class_stream()
    still = sgd(lr=0.0, weight_decay=0.0)
    model = models.mlp(stream, (8,))
    original = {name: p.clone() for name, p in model.named_parameters()}
    drawn, _ = final(Engine(model, still, seed=4), stream)
    assert not any(torch.equal(drawn[name], original[name]) for name in original)
    model = models.mlp(stream, (8,))
    with torch.no_grad():
        model.encoder[0].weight.mul_(2)
    mine = {name: p.clone() for name, p in model.named_parameters()}
    kept, _ = final(Engine(model, still, seed=4), stream)
    assert same(kept, mine)


def test_one_list_of_plugins_may_serve_several_engines_one_after_another() -> None:
    stream = class_stream()
    fresh, _ = final(Engine(net(), sgd(), [EWC(strength=3)], batch_size=BATCH), stream)
    plugins = [EWC(strength=3)]
    for _ in range(2):
        found, _ = final(Engine(net(), sgd(), plugins, batch_size=BATCH), stream)
        assert same(found, fresh)


def test_two_engines_that_share_a_plugin_do_not_see_each_other() -> None:
    stream, plugins = class_stream(), [EWC(strength=3)]
    first = Engine(net(), sgd(), plugins, batch_size=BATCH)
    second = Engine(net(), sgd(), plugins, batch_size=BATCH)
    assert same(final(first, stream), final(second, stream))
