from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from streamlearn import Engine, Plugin, streams
from streamlearn.core.sampling import shuffled
from streamlearn.errors import CompositionError, ConfigurationError, TrainingError
from streamlearn.models import Heads, Model
from streamlearn.plugins import EWC, MAML, LwF, Replay
from streamlearn.streams import Stream, Task
from streamlearn.streams.data import Target
from streamlearn.streams.protocols.episodes import Episodes
from streamlearn.streams.sources import TensorSource
from tests.core.support import Stop, class_stream, final, net, probe, same, sgd, stop_at, stream_of

SGD = sgd(lr=0.05, momentum=0.0, weight_decay=0.0)


def sinusoids(episodes: int = 12, **options: Any) -> Stream:
    return streams.episodes("sinusoids", shots=5, queries=4, train_episodes=episodes, **({"test_episodes": 7} | options))


def tanh_net(stream: Stream, *layers: nn.Module) -> Model:
    """A smooth net, so that second derivatives are not zero; the same one each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(nn.Sequential(nn.Linear(1, 8), *layers, nn.Tanh()), Heads(8, stream.tasks))


def by_hand(stream: Stream, rate: float, steps: int, order: int, plastic: str = "") -> dict[str, Tensor]:
    """MAML in plain torch, three episodes an update."""
    model = tanh_net(stream)
    optimizer = SGD(model.parameters())
    data = stream[0].data["train"]
    for positions in shuffled(len(data), 3, False, 0, 4, 0, 0, 0).split(3):
        losses = []
        for number in positions.tolist():
            rows = data.batch(torch.tensor([number]))
            x, y = rows.x, rows.targets["sinusoids"]
            fast = dict(model.named_parameters())
            for _ in range(steps):
                loss = nn.functional.mse_loss(functional_call(model, fast, (x[:5], "sinusoids")), y[:5])
                names = [name for name in fast if name.startswith(plastic)]
                found = torch.autograd.grad(loss, [fast[name] for name in names], create_graph=order == 2)
                fast = fast | {name: fast[name] - rate * g for name, g in zip(names, found, strict=True)}
            losses.append(nn.functional.mse_loss(functional_call(model, fast, (x[5:], "sinusoids")), y[5:]))
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
    return dict(model.state_dict())


def trained(*plugins: Plugin, stream: Stream | None = None, model: Any = None, **options: Any) -> dict[str, Tensor]:
    stream = stream or sinusoids()
    options = {"batch_size": 3, "seed": 4} | options
    return final(Engine(model or tanh_net(stream), SGD, list(plugins), **options), stream)[0]


@pytest.mark.parametrize(("steps", "order", "plastic"), [(1, 2, ""), (3, 2, ""), (3, 1, ""), (2, 2, "heads.")])
def test_it_equals_a_hand_written_maml(steps: int, order: Any, plastic: str) -> None:
    found = trained(MAML(steps=steps, rate=0.1, order=order, plastic=(f"{plastic}*",)))
    expected = by_hand(sinusoids(), 0.1, steps, order, plastic)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    other = by_hand(sinusoids(), 0.1, steps, 3 - order, plastic)
    assert float((other["encoder.0.weight"] - expected["encoder.0.weight"]).abs().max()) > 1e-4, "the order makes a difference"


def test_a_batch_without_roles_learns_from_and_is_asked_on_all_rows() -> None:
    stream = class_stream()[:1]
    model = net(dropout=0.0)
    model.body[1] = nn.Identity()
    found = trained(MAML(rate=0.5), stream=stream, model=model, batch_size=10)

    mine = net(dropout=0.0)
    mine.body[1] = nn.Identity()
    optimizer = SGD(mine.parameters())
    for positions in shuffled(20, 10, False, 0, 4, 0, 0, 0).split(10):
        batch = stream[0].data["train"].batch(positions)
        weights = dict(mine.named_parameters())
        loss = nn.functional.cross_entropy(mine(batch.x), batch.targets["blobs"])
        inner = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        fast = {name: p - 0.5 * g for (name, p), g in zip(weights.items(), inner, strict=True)}
        optimizer.zero_grad()
        nn.functional.cross_entropy(functional_call(mine, fast, (batch.x,)), batch.targets["blobs"]).backward()
        optimizer.step()
    for name, value in mine.state_dict().items():
        torch.testing.assert_close(found[f"encoder.{name}"], value, rtol=0, atol=1e-6)


def test_no_steps_are_the_plain_step() -> None:
    assert same(trained(MAML(steps=0, evaluation_steps=1)), trained())
    assert not same(trained(MAML(steps=1)), trained())
    assert (MAML(steps=0).passes.look_ahead, MAML(steps=4).passes.look_ahead) == (0, 4)


@pytest.mark.parametrize("plastic", ["*", "heads.*"])
def test_an_evaluation_adapts_to_each_episode_and_forgets_it(plastic: str) -> None:
    stream = sinusoids(test_episodes=5)
    plugin = MAML(steps=0, rate=0.05, evaluation_steps=2, plastic=(plastic,))
    seen: list[Any] = []

    def look(evaluation: Any) -> None:
        model = evaluation.run.model
        before = {n: v.clone() for n, v in model.state_dict().items()}
        rows = stream.evaluation(0).data
        errors = []
        for batch in rows.in_order(slice(None), 3, "evaluation"):
            found = plugin.provide_predictions(batch, evaluation)["sinusoids"]
            for number, (domain, episode) in enumerate(batch.by_domain().items()):
                x, y = episode.x, episode.targets["sinusoids"]
                fast = dict(model.named_parameters())
                for _ in range(2):
                    loss = nn.functional.mse_loss(functional_call(model, fast, (x[:5], "sinusoids")), y[:5])
                    names = [n for n in fast if plastic == "*" or n.startswith("heads.")]
                    inner = torch.autograd.grad(loss, [fast[n] for n in names])
                    fast = fast | {n: (fast[n] - 0.05 * g).detach().requires_grad_() for n, g in zip(names, inner, strict=True)}
                expected = functional_call(model, fast, (x, "sinusoids")).detach()
                # support rows of all episodes come first, then the query rows: each output lies where its row is
                count = len(batch.by_domain())
                torch.testing.assert_close(found[number * 5 : number * 5 + 5], expected[:5])
                start = count * 5 + number * 4
                torch.testing.assert_close(found[start : start + 4], expected[5:], msg=domain)
                errors.append((expected[5:] - y[5:]).square())
        assert not found.requires_grad
        assert same(dict(model.state_dict()), before)
        assert all(p.grad is None for p in model.parameters())
        seen.append(float(torch.cat(errors).mean()))

    watch = probe("watch", after_evaluation=look)
    result = Engine(tanh_net(stream), SGD, [plugin, watch], batch_size=3).run(stream)
    lines = [event for event in result.events if event["event"] == "evaluation"]
    assert [line["value"] for line in lines] == pytest.approx(seen, rel=1e-5)
    assert {line["count"] for line in lines} == {5 * 4}, "support rows are not scored"


def test_rows_without_support_get_the_models_own_outputs() -> None:
    def values(*plugins: Plugin) -> list[float]:
        events = final(Engine(net(), SGD, list(plugins), batch_size=10), class_stream())[1]
        return [event["value"] for event in events if event["event"] == "evaluation"]

    assert values(MAML(steps=0, evaluation_steps=3)) == values()


def two_lines() -> Stream:
    """Two episodes of y = w x with losses ½ h (w - w*)²: h = 1, w* = 0, and h = 4, w* = 3; they are the test episodes too."""
    x = torch.tensor([[0.5**0.5], [0.5**0.5], [2.0**0.5], [2.0**0.5]])
    task = Task("lines", "regression", 1)
    source = TensorSource(x, {"y": x * torch.tensor([[0.0], [0.0], [3.0], [3.0]])}, "lines")
    data = Episodes(source, torch.arange(4), (task,), {"lines": Target("y")}, domain="line ", support=1, size=2)
    return stream_of([(data, (task,))], (task,), features=1)


def test_it_learns_to_learn() -> None:
    """It ends at argmin Σ h (1 - α h)² (w - w*)² = 0.6, from where one step leads farther than from the joint optimum 2.4."""
    found = {}
    for steps in (0, 1):
        model, plugin = nn.Linear(1, 1, bias=False), MAML(steps=steps, rate=0.2, evaluation_steps=1)
        engine = Engine(model, sgd(lr=0.5, momentum=0.0, weight_decay=0.0), [plugin], batch_size=2, epochs=60, evaluate="end")
        result = engine.run(two_lines())
        found[steps] = float(result.model.state_dict()["encoder.weight"]), float(result.events[-1]["value"])
    assert found[0][0] == pytest.approx(2.4, abs=1e-4)
    assert found[1][0] == pytest.approx(0.6, abs=1e-4)
    # the mean of ½ h (1 - α h)² (w - w*)² over both lines
    assert found[0][1] == pytest.approx((0.32 * 2.4**2 + 0.08 * 0.6**2) / 2, abs=1e-4)
    assert found[1][1] == pytest.approx((0.32 * 0.6**2 + 0.08 * 2.4**2) / 2, abs=1e-4)


@pytest.mark.parametrize("episodes", [1, 3])
def test_batchnorm_moves_once_a_step(episodes: int) -> None:
    stream = sinusoids()
    moved: list[tuple[int, Tensor, Tensor]] = []

    def before(step: Any) -> None:
        layer = step.run.model.encoder[1]
        rows = step.batch.x[step.batch.rows("support")] if episodes == 1 else step.batch.x
        expected = 0.9 * layer.running_mean + 0.1 * step.run.model.encoder[0](rows).detach().mean(0)
        moved.append((int(layer.num_batches_tracked), layer.running_mean, expected))

    def after(step: Any) -> None:
        count, mean, expected = moved[-1]
        assert int(step.run.model.encoder[1].num_batches_tracked) == count + 1
        torch.testing.assert_close(mean, expected)

    watch = probe("watch", before_step=before, after_step=after)
    trained(MAML(steps=2), watch, stream=stream, model=tanh_net(stream, nn.BatchNorm1d(8)), batch_size=episodes)
    assert len(moved) == 12 // episodes


def test_replay_with_look_ahead_on_the_incoming_rows_is_c_maml() -> None:
    """Support "train" and query "*": inner rows are the incoming ones, outer rows those and the memory's."""
    sizes: set[tuple[int, ...]] = set()
    here: list[int] = []

    def look(objective: Any, step: Any) -> Any:
        here.append(len(step.batch))
        return objective(step)

    def after(step: Any) -> None:
        sizes.add(tuple(here))
        here.clear()

    watch = probe("watch", around_objective=look, after_step=after)
    plugins = [MAML(steps=2, support="train", query="*"), Replay(capacity=30), watch]
    final(Engine(net(), SGD, plugins, batch_size=10), class_stream())
    assert sizes == {(10, 10, 10), (10, 10, 20)}


def test_it_resumes_bit_for_bit(tmp_path: Path) -> None:
    stream = class_stream()

    def engine(**options: Any) -> Engine:
        return Engine(net(), sgd(), [MAML(rate=0.1), EWC(strength=3), LwF()], batch_size=10, checkpoint_every=2, **options)

    expected, events = final(engine(), stream)
    with pytest.raises(Stop):
        engine(progress=stop_at(3)).run(stream, output=tmp_path)
    result = engine().resume(tmp_path, stream)
    assert same(dict(result.model.state_dict()), expected)
    assert result.events == events


def test_what_cannot_be_right_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="option 'rate' is 0"):
        MAML(rate=0)
    with pytest.raises(ConfigurationError, match="option 'order' is 3"):
        MAML(order=3)
    with pytest.raises(CompositionError, match="2 plugins bring 'inner-loop', of which there can be one: maml, second"):
        Engine(net(), SGD, [MAML(), MAML(name="second")])
    with pytest.raises(ConfigurationError, match=r"no parameter matches plastic=\('head.\*',\); there are encoder.0.weight, "):
        trained(MAML(plastic=("head.*",)))
    with pytest.raises(TrainingError, match=r"episode 'train/[0-9]+' has no rows of role 'answers' in a batch, it has support, query: "):
        trained(MAML(query="answers"))
    with pytest.raises(TrainingError, match="has no rows of role 'hints' in a batch, it has support, query: "):
        trained(MAML(support="hints"))
    extra = probe("extra", transform_batch=lambda batch: batch.with_rows("memory", batch.select("query")))
    with pytest.raises(TrainingError, match="rows of role 'memory' would be neither learnt from nor asked on"):
        trained(MAML(), extra)


def test_micro_batches_of_whole_episodes_make_the_same_step() -> None:
    found, whole = trained(MAML(rate=0.1), microbatches=3), trained(MAML(rate=0.1))
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
