from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, Plugin
from streamlearn.core.randomness import seed_forward, subseed
from streamlearn.core.sampling import shuffled
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import EWC, SAM, LwF
from streamlearn.plugins.regularization.sam import ascended
from tests.core.support import Stop, class_stream, final, net, probe, same, sgd, stop_at


class Plain(nn.Module):
    """Without BatchNorm or dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.out = nn.Linear(6, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.body(x)))


def plain_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Plain()


def by_hand(model: nn.Module, rho: float, decay: float = 0.0) -> dict[str, Tensor]:
    """SAM as one writes it in plain torch: climb in place, differentiate, climb down, step. ``decay`` weighs a penalty ½ Σ θ²."""
    stream, update = class_stream(), 0
    optimizer = sgd()(model.parameters())

    def backward(x: Tensor, y: Tensor) -> None:
        seed_forward(subseed(4, "forward"), update)
        loss = nn.functional.cross_entropy(model(x), y)
        if decay:
            loss = loss + 0.5 * decay * sum(p.square().sum() for p in model.parameters())
        optimizer.zero_grad()
        loss.backward()

    for i in range(len(stream)):
        data = stream[i].data["train"]
        for positions in shuffled(len(data), 10, False, 0, 4, i, 0, 0).split(10):
            batch = data.batch(positions)
            backward(batch.x, batch.targets["blobs"])
            buffers = {n: b.clone() for n, b in model.named_buffers()}
            weights = [p.detach().clone() for p in model.parameters()]
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            with torch.no_grad():
                for p in model.parameters():
                    p.add_(rho / norm * p.grad)
            backward(batch.x, batch.targets["blobs"])
            with torch.no_grad():
                for p, w in zip(model.parameters(), weights, strict=True):
                    p.copy_(w)
                for n, b in model.named_buffers():
                    b.copy_(buffers[n])
            optimizer.step()
            update += 1
    return {f"encoder.{n}": v for n, v in model.state_dict().items()}


def trained(*plugins: Plugin, model: nn.Module | None = None) -> dict[str, Tensor]:
    return final(Engine(model or net(), sgd(), list(plugins), batch_size=10, seed=4), class_stream())[0]


@pytest.mark.parametrize("make", [plain_net, net])
def test_it_equals_a_hand_written_sam_bit_for_bit(make: Any) -> None:
    """With `net` also through BatchNorm, whose statistics move once a step at θ, and dropout, whose masks are the same twice."""
    found = trained(SAM(rho=0.1), model=make())
    assert same(found, by_hand(make(), 0.1))
    assert not same(found, trained(model=make()))


def test_penalties_belong_to_what_is_ascended() -> None:
    penalty = probe("penalty", collect_terms=lambda step: 0.25 * sum(p.square().sum() for p in step.parameters.values()))
    found = trained(SAM(rho=0.1), penalty, model=plain_net())
    for name, expected in by_hand(plain_net(), 0.1, decay=0.5).items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-6)
    without = by_hand(plain_net(), 0.1)
    assert float((found["encoder.out.weight"] - without["encoder.out.weight"]).abs().max()) > 1e-3


def test_the_formula_by_hand() -> None:
    theta = {"a": torch.tensor([1.0], requires_grad=True), "b": torch.tensor([2.0, 0.0]), "c": torch.ones(1)}
    moved = ascended(theta, {"a": torch.tensor([2.0]), "b": torch.tensor([1.0, 2.0])}, 3.0)  # the norm of (2, 1, 2) is 3
    assert {name: value.tolist() for name, value in moved.items()} == {"a": [3.0], "b": [3.0, 2.0]}
    moved["a"].square().backward()
    assert theta["a"].grad.tolist() == [6.0], "the gradient at the ascended point, with ε a constant"
    assert ascended(theta, {}, 1.0) == {}
    assert ascended(theta, {"c": torch.zeros(1)}, 1.0)["c"].tolist() == [1.0]


def test_batchnorm_moves_once_a_step_and_as_without_it() -> None:
    still = Engine(net(), sgd(lr=0.0, weight_decay=0.0), [SAM(rho=0.5)], batch_size=10)
    usual = Engine(net(), sgd(lr=0.0, weight_decay=0.0), batch_size=10)
    found, expected = final(still, class_stream())[0], final(usual, class_stream())[0]
    assert int(found["encoder.body.1.num_batches_tracked"]) == 6
    assert same(found, expected)


def test_rho_zero_passes_through() -> None:
    assert same(trained(SAM(rho=0)), trained())
    assert SAM(rho=0).passes.look_ahead == 0
    assert SAM().passes.look_ahead == 1


def test_what_does_not_train_does_not_ascend() -> None:
    model = net()
    model.body[0].weight.requires_grad_(False)
    norms: list[float] = []

    def look(objective: Any, step: Any) -> Any:
        if step.root is not step:
            moved = {name: float((value - step.root.parameters[name]).detach().norm()) for name, value in step.parameters.items()}
            assert moved["encoder.body.0.weight"] == 0
            norms.append(sum(size**2 for size in moved.values()) ** 0.5)
        return objective(step)

    trained(SAM(rho=0.2), probe("look", around_objective=look), model=model)
    assert norms == pytest.approx([0.2] * 6, rel=1e-4)


def test_it_stands_beside_terms_and_a_second_one_and_resumes(tmp_path: Path) -> None:
    def engine(**options: Any) -> Engine:
        plugins = [SAM(), SAM(rho=0.01, name="second"), EWC(strength=3), LwF()]
        return Engine(net(), sgd(), plugins, batch_size=10, checkpoint_every=2, **options)

    expected, events = final(engine(), class_stream())
    with pytest.raises(Stop):
        engine(progress=stop_at(3)).run(class_stream(), output=tmp_path)
    result = engine().resume(tmp_path, class_stream())
    assert same(dict(result.model.state_dict()), expected)
    assert result.events == events


def test_a_step_without_anything_to_minimise_is_left_alone() -> None:
    silent = probe("silent", transform_supervision=lambda supervision: ())
    start = net().state_dict()
    assert all(torch.equal(trained(SAM(), silent)[f"encoder.{name}"], start[name]) for name in ("out.weight", "body.0.bias"))


def test_bad_options_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="option 'rho' is -1"):
        SAM(rho=-1)
