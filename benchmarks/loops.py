"""Loops written by hand: what somebody who knows the method would write for one experiment, with nothing around it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Pairs = Sequence[tuple[Tensor, Tensor]]
Make = Callable[[], nn.Module]


def mlp(*widths: int) -> nn.Module:
    layers: list[nn.Module] = []
    for width, following in itertools.pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutional() -> nn.Module:
    """Two strided convolutions and a linear layer, for flattened 28 x 28 digits."""
    first, second = nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.Conv2d(16, 32, 3, stride=2, padding=1)
    return nn.Sequential(nn.Unflatten(1, (1, 28, 28)), first, nn.ReLU(), second, nn.ReLU(), nn.Flatten(), nn.Linear(32 * 7 * 7, 10))


def sgd(parameters) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


def bare(model: nn.Module, x: Tensor, y: Tensor, batch_size: int, epochs: int) -> None:
    """The loop of every tutorial over tensors in memory."""
    optimizer = sgd(model.parameters())
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(x)).split(batch_size):
            loss = F.cross_entropy(model(x.index_select(0, index)), y.index_select(0, index))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()


@torch.no_grad()
def evaluate(model: nn.Module, sets: Pairs, batch_size: int = 1024) -> list[float]:
    model.eval()
    accuracies = []
    for x, y in sets:
        correct = sum((model(a).argmax(1) == b).sum() for a, b in zip(x.split(batch_size), y.split(batch_size), strict=True))
        accuracies.append(float(correct) / len(x))
    model.train()
    return accuracies


def naive(make: Make, train: Pairs, test: Pairs, batch_size: int) -> list[list[float]]:
    model = make()
    optimizer = sgd(model.parameters())
    rows = [evaluate(model, test)]
    for x, y in train:
        for index in torch.randperm(len(x)).split(batch_size):
            loss = F.cross_entropy(model(x.index_select(0, index)), y.index_select(0, index))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        rows.append(evaluate(model, test))
    return rows


def replay(make: Make, train: Pairs, test: Pairs, batch_size: int, capacity: int) -> list[list[float]]:
    model = make()
    optimizer = sgd(model.parameters())
    rows = [evaluate(model, test)]
    memory_x, memory_y, seen = None, None, 0
    for x, y in train:
        for index in torch.randperm(len(x)).split(batch_size):
            a, b = x.index_select(0, index), y.index_select(0, index)
            if memory_x is not None:
                drawn = torch.randperm(len(memory_x))[:batch_size]
                a, b = torch.cat([a, memory_x.index_select(0, drawn)]), torch.cat([b, memory_y.index_select(0, drawn)])
            loss = F.cross_entropy(model(a), b)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        # a uniform sample of everything seen: keep as many of the old as a hypergeometric draw says
        chosen = torch.randperm(seen + len(x))[:capacity]
        fresh = chosen[chosen >= seen] - seen
        kept = capacity - len(fresh) if memory_x is not None else 0
        old = torch.randperm(len(memory_x))[:kept] if memory_x is not None else None
        memory_x = x[fresh] if old is None else torch.cat([memory_x[old], x[fresh]])
        memory_y = y[fresh] if old is None else torch.cat([memory_y[old], y[fresh]])
        seen += len(x)
        rows.append(evaluate(model, test))
    return rows


def ewc(make: Make, train: Pairs, test: Pairs, batch_size: int, strength: float) -> list[list[float]]:
    model = make()
    optimizer = sgd(model.parameters())
    rows = [evaluate(model, test)]
    importance: list[Tensor] = []
    anchor: list[Tensor] = []
    for x, y in train:
        for index in torch.randperm(len(x)).split(batch_size):
            loss = F.cross_entropy(model(x.index_select(0, index)), y.index_select(0, index))
            if importance:
                moved = zip(importance, anchor, model.parameters(), strict=True)
                loss = loss + 0.5 * strength * sum((f * (p - a).square()).sum() for f, a, p in moved)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        fresh = fisher_by_batch(model, x, y, 512)
        weights = [p.detach().clone() for p in model.parameters()]
        if importance:  # two quadratics are one
            total = [f + g for f, g in zip(importance, fresh, strict=True)]
            anchor = [
                torch.where(t > 0, (f * a + g * w) / t, w) for f, a, g, w, t in zip(importance, anchor, fresh, weights, total, strict=True)
            ]
            importance = total
        else:
            importance, anchor = fresh, weights
        rows.append(evaluate(model, test))
    return rows


def fisher_by_batch(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> list[Tensor]:
    """Squared per-row gradients of a stack of linear layers and ReLUs, written out for exactly that."""
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    sums = [torch.zeros_like(p) for p in model.parameters()]
    with torch.no_grad():
        for a, b in zip(x.split(batch_size), y.split(batch_size), strict=True):
            inputs = [a]
            for layer in layers[:-1]:
                inputs.append(layer(inputs[-1]).relu())
            outputs = layers[-1](inputs[-1])
            gradient = outputs.softmax(1)
            gradient[torch.arange(len(b)), b] -= 1
            for number in reversed(range(len(layers))):
                squares = gradient.square()
                sums[2 * number] += squares.T @ inputs[number].square()
                sums[2 * number + 1] += squares.sum(0)
                if number:
                    gradient = (gradient @ layers[number].weight) * (inputs[number] > 0)
    return [total / len(x) for total in sums]


def fisher_row_by_row(model: nn.Module, x: Tensor, y: Tensor) -> list[Tensor]:
    """The same by one backward pass for each row, as most codes do."""
    sums = [torch.zeros_like(p) for p in model.parameters()]
    for a, b in zip(x.split(1), y.split(1), strict=True):
        gradients = torch.autograd.grad(F.cross_entropy(model(a), b), list(model.parameters()))
        for total, gradient in zip(sums, gradients, strict=True):
            total.add_(gradient.square())
    return [total / len(x) for total in sums]
