from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamlearn.core import importance as module
from streamlearn.core.closed_forms import has_closed_form
from streamlearn.core.importance import importance
from streamlearn.models import Model
from streamlearn.streams import Batch, Segment, Task

ROWS, CLASSES = 5, 3


class Sequences(nn.Module):
    """(rows, positions, features): a linear layer acts at every position, then positions are averaged."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.at_each, self.out = nn.Sequential(*layers), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.at_each(x).mean(1))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.two(self.one(x).tanh()).tanh())


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(self.layer(x).tanh()))


class Functional(nn.Module):
    """Its layer is called once, and its weight is read once more besides; another is never called at all."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.quiet, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.linear(self.layer(x).tanh(), self.layer.weight)
        return self.out(F.linear(hidden, self.quiet.weight, self.quiet.bias))


class PositionsFirst(nn.Module):
    """As `Sequences`, with positions before rows within, and as many of them as there are rows."""

    def __init__(self) -> None:
        super().__init__()
        self.at_each, self.out = nn.Linear(3, 4), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.at_each(x.transpose(0, 1)).tanh().mean(0))


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(4, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(input=self.layer(input=x).tanh())


class Recurrent(nn.Module):
    """Cannot be traced by vmap."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.GRU(3, 4, batch_first=True), nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x)[0][:, -1])


def flat(*layers: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width, CLASSES))


CLOSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES, bias=False)), (4,)),
    "conv1d": (lambda: flat(nn.Conv1d(2, 3, 3, stride=2, padding=1), nn.ReLU(), width=12), (2, 8)),
    "conv1d dilated": (lambda: flat(nn.Conv1d(2, 3, 2, dilation=3, bias=False), nn.ReLU(), width=15), (2, 8)),
    "conv2d": (lambda: flat(nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0)), nn.ReLU(), width=3 * 3 * 4), (2, 5, 5)),
    "conv2d dilated same": (lambda: flat(nn.Conv2d(2, 3, 3, padding="same", dilation=2, bias=False), width=75), (2, 5, 5)),
    "norm 1d": (lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, CLASSES)), (4,)),
    "norm of sequences": (lambda: flat(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), width=18), (2, 8)),
    "norm 2d": (lambda: flat(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), width=27), (2, 5, 5)),
    "sequences": (lambda: Sequences(nn.Linear(3, 4), nn.Tanh()), (6, 3)),
    "dropout is off": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Dropout(0.5), nn.Linear(6, CLASSES)), (4,)),
}  # fmt: skip
OTHER: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "groups": (lambda: flat(nn.Conv1d(4, 4, 3, groups=2), width=24), (4, 8)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, CLASSES)), (4,)),
    "tied": (Tied, (4,)),
    "twice": (Twice, (4,)),
    "in place": (lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, CLASSES)), (4,)),
    "functional": (Functional, (4,)),
    "positions first": (PositionsFirst, (ROWS, 3)),
    "by keyword": (ByKeyword, (4,)),
    "recurrent": (Recurrent, (6, 3)),
}  # fmt: skip


def made(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> tuple[Model, Batch]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = Model.of(build()).double()
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
        x = torch.randn(ROWS, *shape, dtype=torch.float64)
    return model.train(), Batch.uniform(x, "t", torch.arange(ROWS) % CLASSES, torch.arange(ROWS))


def by_loop(model: Model, batch: Batch, labels: str) -> dict[str, Tensor]:
    model.eval()
    named = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for row in range(ROWS):
        log = torch.log_softmax(model(batch.x[row : row + 1], "t"), 1)[0]
        for c in range(CLASSES):
            weight = float(log[c].exp().detach()) if labels == "exact" else float(c == int(batch.targets["t"][row]))
            found = torch.autograd.grad(log[c], list(named.values()), retain_graph=True)
            for name, gradient in zip(named, found, strict=True):
                total[name] += weight * gradient.square() / ROWS
    return total


def computed(model: Model, batch: Batch, labels: Any = "exact", size: int = ROWS) -> dict[str, Tensor]:
    pieces = (Batch.uniform(batch.x[s], "t", batch.targets["t"][s], s) for s in torch.arange(ROWS).split(size))
    return importance(model, pieces, labels, frozenset(name for name, p in model.named_parameters() if p.requires_grad))


@pytest.mark.parametrize("labels", ["exact", "empirical"])
@pytest.mark.parametrize("name", [*CLOSED, *OTHER])
def test_it_equals_a_loop_over_single_rows(name: str, labels: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in CLOSED:

        def refuse(*given: Any, **named: Any) -> None:
            raise AssertionError("this model has a closed form")

        monkeypatch.setattr(module, "_by_vmap", refuse)
    model, batch = made(*(CLOSED | OTHER)[name])
    found, expected = computed(model, batch, labels), by_loop(model, batch, labels)
    assert found.keys() == expected.keys()
    for key in expected:
        assert bool((expected[key] > 0).any()), key
        torch.testing.assert_close(found[key], expected[key], rtol=1e-9, atol=1e-14)


def test_without_parameters_there_is_none() -> None:
    model, batch = made(*CLOSED["linear"])
    assert importance(model, iter([batch]), "exact", frozenset()) == {}


@pytest.mark.parametrize("name", ["norm 1d", "layer norm"])
def test_it_does_not_depend_on_the_batch_size(name: str) -> None:
    model, batch = made(*(CLOSED | OTHER)[name])
    whole = computed(model, batch)
    for size in (1, 2):
        for key, value in computed(model, batch, size=size).items():
            torch.testing.assert_close(value, whole[key], rtol=1e-10, atol=1e-15)


@pytest.mark.parametrize("name", ["norm 1d", "layer norm", "dropout is off"])
def test_modes_gradients_buffers_and_random_state_are_left(name: str) -> None:
    model, batch = made(*(CLOSED | OTHER)[name])
    model.encoder[1].eval()
    first = next(model.parameters())
    first.requires_grad_(False)
    first.grad = torch.ones_like(first)
    modes, buffers = [m.training for m in model.modules()], {n: b.clone() for n, b in model.named_buffers()}
    state = torch.get_rng_state()
    found = computed(model, batch)
    assert "encoder.0.weight" not in found
    assert len(found) == len(list(model.parameters())) - 1
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(b, buffers[n]) for n, b in model.named_buffers())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.grad, torch.ones_like(first))
    assert not first.requires_grad
    assert all(p.grad is None for p in list(model.parameters())[1:])


def test_which_models_have_a_closed_form() -> None:
    for name, (build, _) in CLOSED.items():
        model = Model.of(build())
        assert has_closed_form(model, frozenset(n for n, _ in model.named_parameters())), name
    model = Model.of(OTHER["layer norm"][0]())
    assert not has_closed_form(model, frozenset(n for n, _ in model.named_parameters()))
    assert has_closed_form(model, frozenset({"encoder.0.weight"})), "the layer without one is not asked for"


def test_regression_is_gaussian_with_unit_variance() -> None:
    model = Model.of(nn.Linear(2, 2, bias=False)).double()
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0]], dtype=torch.float64)
    batch = Batch.uniform(x, "t", torch.zeros(2, 2, dtype=torch.float64), torch.arange(2))
    names = frozenset({"encoder.weight"})
    exact = importance(model, iter([batch]), "exact", names, frozenset({"t"}))["encoder.weight"]
    torch.testing.assert_close(exact, (x**2).mean(0).expand(2, 2).contiguous())
    residual = (model(x, "t") ** 2).detach()
    empirical = importance(model, iter([batch]), "empirical", names, frozenset({"t"}))["encoder.weight"]
    torch.testing.assert_close(empirical, (residual.T @ x**2) / 2)


def test_empirical_importance_counts_labelled_rows_only() -> None:
    """A row without a label is no row of class 0."""
    x, y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
    model = Model.of(nn.Linear(4, 3))
    model.grow((Task("t", size=3),))
    names = frozenset(dict(model.named_parameters()))
    shown = torch.arange(12) < 5
    segment = (Segment("train", 0, 12, ("t",)),)
    partly = Batch(x, {"t": y.masked_fill(~shown, 0)}, {"t": shown}, segment, torch.arange(12))
    alone = Batch.uniform(x[:5], "t", y[:5], torch.arange(5))
    found, expected = (importance(model, iter([batch]), "empirical", names) for batch in (partly, alone))
    for name in names:
        torch.testing.assert_close(found[name], expected[name])
    assert importance(model, iter([Batch(x, {"t": y * 0}, {"t": shown & False}, segment, torch.arange(12))]), "empirical", names) == {}


def outputs_by_loop(model: Model, batch: Batch) -> dict[str, Tensor]:
    model.eval()
    named = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in named.items()}
    for row in range(ROWS):
        found = torch.autograd.grad(model(batch.x[row : row + 1], "t").square().sum(), list(named.values()))
        for name, gradient in zip(named, found, strict=True):
            total[name] += gradient.abs() / ROWS
    return total


@pytest.mark.parametrize("name", [*CLOSED, *OTHER])
def test_the_sensitivity_of_outputs_equals_a_loop_over_single_rows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in CLOSED:

        def refuse(*given: Any, **named: Any) -> None:
            raise AssertionError("this model has a closed form")

        monkeypatch.setattr(module, "_by_vmap", refuse)
    model, batch = made(*(CLOSED | OTHER)[name])
    found, expected = computed(model, batch, "outputs"), outputs_by_loop(model, batch)
    assert found.keys() == expected.keys()
    for key in expected:
        assert bool((expected[key] > 0).any()), key
        torch.testing.assert_close(found[key], expected[key], rtol=1e-9, atol=1e-14)
    for key, value in computed(model, batch, "outputs", size=2).items():
        torch.testing.assert_close(value, found[key], rtol=1e-10, atol=1e-14)


def test_the_sensitivity_of_outputs_reads_no_labels_and_adds_up_over_tasks() -> None:
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model = Model.of(nn.Linear(4, 3)).double()
    names = frozenset(dict(model.named_parameters()))
    index = torch.arange(6)
    labelled = Batch.uniform(x, "t", index % 3, index)
    without = Batch(x, {}, {}, (Segment("train", 0, 6, ("t",)),), index)
    twice = Batch(x, {}, {}, (Segment("train", 0, 6, ("t", "u")),), index)
    once, bare, both = (importance(model, iter([batch]), "outputs", names) for batch in (labelled, without, twice))
    assert once.keys() == names
    for name, value in once.items():
        assert torch.equal(value, bare[name])
        torch.testing.assert_close(both[name], 2 * value)  # of a plain module both tasks read the same outputs
    regression = importance(model, iter([without]), "outputs", names, frozenset({"t"}))
    assert all(torch.equal(value, regression[name]) for name, value in once.items())
