"""Adapters: without effect at the start, alone in moving, equal to PEFT called by hand, and the same after a resume."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

peft = pytest.importorskip("peft", reason="peft is not installed")

from streamlearn import Engine, models, streams  # noqa: E402
from streamlearn.errors import ConfigurationError  # noqa: E402
from streamlearn.models import Heads, Model  # noqa: E402
from streamlearn.plugins import EWC, LwF, MultiHead, PCGrad, Replay  # noqa: E402
from streamlearn.streams import Task  # noqa: E402

from streamlearn_peft import PEFT  # noqa: E402
from streamlearn_peft.model import Adapted, PerTask, adapter_of  # noqa: E402
from streamlearn_peft.recipe import METHODS, Recipe  # noqa: E402

OPTIONS: dict[str, dict[str, Any]] = {
    "miss": {"r": 4},
    "oft": {"oft_block_size": 4, "r": 0},
    "road": {"group_size": 4},
    "gralora": {"r": 4, "gralora_k": 2},
}
STREAM = streams.class_incremental("digits", experiences=3)
TASKS = streams.task_incremental("digits", experiences=3)


def encoder() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))


def model() -> Model:
    torch.manual_seed(0)
    return Model(encoder(), Heads(8, [Task("a", size=3), Task("b", size=2)]))


def rows(number: int = 5) -> Tensor:
    return torch.randn(number, 8, generator=torch.Generator().manual_seed(1))


def recipe(method: str = "lora", **options: Any) -> Recipe:
    return Recipe(method, ("0", "2"), options or OPTIONS.get(method, {}))


def engine(stream: Any, *plugins: Any, progress: Any = None, **options: Any) -> Engine:
    optimizer = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01)  # noqa: E731
    build = lambda: models.mlp(stream, (16, 16), dropout=0.1)  # noqa: E731
    return Engine(build, optimizer, list(plugins), batch_size=128, checkpoint_every=1, progress=progress, **options)


def disturb(adapted: Adapted) -> None:
    """As if it had been trained."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.encoder.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("number", [1, 3])
def test_it_starts_without_effect(method: str, number: int) -> None:
    plain = model()
    expected = plain(rows(), "a")
    adapted = Adapted(plain, recipe(method), [f"experience {k}" for k in range(number)])
    adapted.use(number)
    found = adapted(rows(), "a")
    if method == "hra":
        torch.testing.assert_close(found, expected)
    else:
        assert torch.equal(found, expected)
    assert torch.equal(plain(rows(), "a"), expected), "the model that was given keeps its layers"
    disturb(adapted)
    assert not torch.allclose(adapted(rows(), "a"), expected, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_it_is_peft_called_by_hand(method: str) -> None:
    """Two steps of SGD from the same draws give the same weights and outputs, bit for bit."""
    base = model()
    torch.manual_seed(3)
    ours = Adapted(copy.deepcopy(base), recipe(method), ["run 0"]).encoder
    torch.manual_seed(3)
    config = peft.PEFT_TYPE_TO_CONFIG_MAPPING[peft.PeftType[method.upper()]]
    feedforward = {"feedforward_modules": []} if method == "ia3" else {}
    options = {"target_modules": ["0", "2"], **feedforward, **OPTIONS.get(method, {})}
    theirs = peft.get_peft_model(copy.deepcopy(base.encoder), config(**options), "run 0")
    for module in (ours, theirs):
        optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            module(rows()).square().sum().backward()
            optimizer.step()
    mine, own = ([p for p in module.parameters() if p.requires_grad] for module in (ours, theirs))
    assert len(mine) == len(own) > 0
    assert all(torch.equal(one, two) for one, two in zip(mine, own, strict=True))
    assert torch.equal(ours(rows()), theirs(rows()))
    assert not torch.equal(ours(rows()), base.encoder(rows()))


def test_lora_by_its_formula() -> None:
    adapted = Adapted(model(), Recipe("lora", ("0",), {"r": 2, "lora_alpha": 6}), ["experience 0", "experience 1"])
    adapted.use(2)
    layer: Any = adapted.encoder[0]  # type: ignore[index]
    with torch.no_grad():
        for name in ("experience 0", "experience 1"):
            layer.lora_B[name].weight.normal_(generator=torch.Generator().manual_seed(4))
    x = rows()
    added = sum(3.0 * x @ layer.lora_A[name].weight.T @ layer.lora_B[name].weight.T for name in ("experience 0", "experience 1"))
    torch.testing.assert_close(layer(x), layer.base_layer(x) + added)


@pytest.mark.parametrize("adapters", ["run", "experience", "task"])
def test_only_adapters_and_heads_move(adapters: str) -> None:
    start: dict[str, Tensor] = {}
    moved: list[set[str]] = []

    def look(event: str, run: Any) -> None:
        now = run.snapshot()
        if event != "step":
            if start:
                moved.append({name for name in now if not torch.equal(now[name], start[name])})
            start.update(now)

    engine(TASKS, PEFT(adapters=adapters, rank=2), progress=look).run(TASKS)
    moved = [names for names in moved if names]
    assert len(moved) == 3
    for number, names in enumerate(moved):
        task = TASKS[number].tasks[0].name
        own = {"run": "run 0", "experience": f"experience {number}", "task": adapter_of(task)}[adapters]
        for name in names:
            assert own in name.split(".") or name.startswith("heads.")
        learnt = {name for name in start if own in name.split(".") and name.startswith("encoder.")}
        assert learnt <= names, "and all of them do"


def test_the_statistics_of_batch_normalisation_rest() -> None:
    normalized = Model(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout()), Heads(8, [Task("a", size=3)]))
    adapted = Adapted(normalized, Recipe("lora", ("0",), {}), ["run 0"])
    before = {name: buffer.clone() for name, buffer in adapted.named_buffers()}
    adapted.train()(rows(), "a")
    assert all(torch.equal(buffer, before[name]) for name, buffer in adapted.named_buffers())
    assert adapted.encoder[2].training  # type: ignore[index]


class Stop(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize("adapters", ["run", "experience", "task"])
@pytest.mark.parametrize("beside", [[LwF], [EWC, Replay]])
@pytest.mark.parametrize("update", [3, 9, 10])
def test_a_resume_goes_on_bit_for_bit(adapters: str, beside: list[Any], update: int, tmp_path: Path) -> None:
    stream = TASKS if adapters == "task" else STREAM

    def plugins() -> list[Any]:
        return [PEFT(adapters=adapters, rank=2, options={"lora_dropout": 0.2}), *(kind() for kind in beside)]

    def stop(event: str, run: Any) -> None:
        if run.clock.update == update:
            raise Stop

    straight = engine(stream, *plugins()).run(stream)
    with pytest.raises(Stop):
        engine(stream, *plugins(), progress=stop).run(stream, output=tmp_path / "run")
    resumed = engine(stream, *plugins()).resume(tmp_path / "run", stream)
    one, two = straight.model.state_dict(), resumed.model.state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert straight.events == resumed.events


def test_copies_of_an_earlier_shape_apply_what_they_applied() -> None:
    """A teacher is restored from the first model: the structure tells it how many adapters are in use."""
    adapted = Adapted(model(), recipe(), [f"experience {k}" for k in range(3)])
    disturb(adapted)
    adapted.use(2)
    disturb(adapted)
    teacher = copy.deepcopy(adapted)
    adapted.use(3)
    disturb(adapted)
    fresh = Adapted(model(), recipe(), [f"experience {k}" for k in range(3)])
    fresh.requires_grad_(False)
    fresh.restore_structure(teacher.structure())
    assert not any(parameter.requires_grad for parameter in fresh.parameters()), "a copy that does not learn stays one"
    fresh.load_state_dict(teacher.state_dict())
    assert torch.equal(fresh(rows(), "a"), teacher(rows(), "a"))
    assert not torch.allclose(fresh(rows(), "a"), adapted(rows(), "a"))


def test_each_task_has_its_own_and_a_new_one_gets_it() -> None:
    adapted = PerTask(model(), recipe())
    assert adapted.grow([Task("c.d", size=2)])
    assert not adapted.grow([Task("c.d", size=2)])
    before = {task: adapted(rows(), task) for task in ("a", "b", "c.d")}
    adapted(rows(), "b").sum().backward()
    learning = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert learning
    assert all(adapter_of("b") in name.split(".") or name.startswith("heads.by_task.b.") for name in learning)
    assert not any(p.requires_grad for name, p in adapted.named_parameters() if name in adapted.shared_names())
    with torch.no_grad():
        for key in adapted.owned[adapter_of("b")]:
            adapted.encoder.get_parameter(key).add_(1.0)
    assert torch.equal(adapted(rows(), "a"), before["a"])
    assert torch.equal(adapted(rows(), "c.d"), before["c.d"])
    assert not torch.equal(adapted(rows(), "b"), before["b"])


def test_a_frozen_copy_stays_frozen_when_a_task_comes() -> None:
    teacher = PerTask(model(), recipe()).requires_grad_(False)
    assert teacher.grow([Task("c", size=2)])
    assert not any(parameter.requires_grad for parameter in teacher.encoder.parameters())


def test_what_is_shared_is_declared() -> None:
    adapted = Adapted(model(), recipe(), ["run 0"])
    assert {f"encoder.{key}" for key in adapted.owned["run 0"]} <= adapted.shared_names()
    assert not any(name.startswith("heads.") for name in adapted.shared_names())


@pytest.mark.parametrize("adapters", ["run", "experience", "task"])
def test_it_learns_beside_others(adapters: str) -> None:
    stream = streams.multitask("digits")
    optimizer = lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)  # noqa: E731
    plugins = [PEFT(adapters=adapters, rank=8), PCGrad()]
    result = Engine(models.mlp(stream, (32,)), optimizer, plugins, batch_size=64, epochs=10).run(stream)
    assert float(result.matrix()[-1].mean()) > 0.7


def test_a_plain_module_is_refused_and_multi_head_helps() -> None:
    stream, optimizer = STREAM, lambda p: torch.optim.SGD(p, lr=0.1)
    build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))  # noqa: E731
    with pytest.raises(ConfigurationError, match=r"plugin peft needs a Model with a head for each task, but the model is a plain module"):
        Engine(build, optimizer, [PEFT()]).run(stream)
    assert isinstance(Engine(build, optimizer, [PEFT(), MultiHead()], batch_size=500).run(stream).model, Adapted)


def test_what_peft_refuses_is_told() -> None:
    with pytest.raises(ConfigurationError, match=r"plugin peft: PEFT refuses method 'lora' on layers 1: Target module ReLU\(\) is not"):
        Adapted(model(), Recipe("lora", ("1",), {}), ["run 0"])


def test_a_second_run_starts_as_the_first() -> None:
    made = models.mlp(STREAM, (16,))
    both = Engine(made, lambda p: torch.optim.SGD(p, lr=0.1), [PEFT(adapters="experience")], batch_size=128)
    first = {name: tensor.clone() for name, tensor in both.run(STREAM).model.state_dict().items()}
    second = both.run(STREAM).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
