"""Continual-learning methods written by hand: the loops of `loops.py` for seven more, with nothing around them."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from loops import Make, Pairs, evaluate, sgd
from torch import Tensor, nn

Rows = tuple[Tensor, Tensor]


def reservoir(memory: Rows | None, seen: int, x: Tensor, y: Tensor, capacity: int) -> Rows:
    """A uniform sample of everything seen: as many of the old stay as a hypergeometric draw says."""
    chosen = torch.randperm(seen + len(x))[:capacity]
    fresh = chosen[chosen >= seen] - seen
    if memory is None:
        return x[fresh], y[fresh]
    old = torch.randperm(len(memory[0]))[: capacity - len(fresh)]
    return torch.cat([memory[0][old], x[fresh]]), torch.cat([memory[1][old], y[fresh]])


def lwf(make: Make, train: Pairs, test: Pairs, batch_size: int, strength: float, temperature: float) -> list[list[float]]:
    model = make()
    optimizer, teacher, classes = sgd(model.parameters()), None, []
    rows = [evaluate(model, test)]
    for x, y in train:
        known = torch.tensor(classes)
        for index in torch.randperm(len(x)).split(batch_size):
            a = x.index_select(0, index)
            outputs = model(a)
            loss = F.cross_entropy(outputs, y.index_select(0, index))
            if teacher is not None:
                with torch.no_grad():
                    target = (teacher(a).index_select(1, known) / temperature).softmax(1)
                loss = loss + strength * F.cross_entropy(outputs.index_select(1, known) / temperature, target)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        teacher = copy.deepcopy(model).eval()
        classes = sorted({*classes, *y.unique().tolist()})
        rows.append(evaluate(model, test))
    return rows


def agem(make: Make, train: Pairs, test: Pairs, batch_size: int, capacity: int) -> list[list[float]]:
    model = make()
    parameters = list(model.parameters())
    optimizer, memory, seen = sgd(parameters), None, 0
    rows = [evaluate(model, test)]
    for x, y in train:
        for index in torch.randperm(len(x)).split(batch_size):
            F.cross_entropy(model(x.index_select(0, index)), y.index_select(0, index)).backward()
            if memory is not None:
                drawn = torch.randperm(len(memory[0]))[: len(index)]
                loss = F.cross_entropy(model(memory[0].index_select(0, drawn)), memory[1].index_select(0, drawn))
                reference = torch.autograd.grad(loss, parameters)
                product = sum(torch.dot(p.grad.flatten(), r.flatten()) for p, r in zip(parameters, reference, strict=True))
                if product < 0:
                    factor = product / sum(r.square().sum() for r in reference)
                    for p, r in zip(parameters, reference, strict=True):
                        p.grad -= factor * r
            optimizer.step()
            optimizer.zero_grad()
        memory, seen = reservoir(memory, seen, x, y, capacity), seen + len(x)
        rows.append(evaluate(model, test))
    return rows


def _penalty(model: nn.Module, importance: list[Tensor], anchor: list[Tensor]) -> Tensor:
    moved = zip(importance, anchor, model.parameters(), strict=True)
    return sum((f * (p - a).square()).sum() for f, a, p in moved)


def mas(make: Make, train: Pairs, test: Pairs, batch_size: int, strength: float) -> list[list[float]]:
    model = make()
    optimizer = sgd(model.parameters())
    rows = [evaluate(model, test)]
    importance: list[Tensor] = []
    anchor: list[Tensor] = []
    for x, y in train:
        for index in torch.randperm(len(x)).split(batch_size):
            loss = F.cross_entropy(model(x.index_select(0, index)), y.index_select(0, index))
            if importance:
                loss = loss + strength * _penalty(model, importance, anchor)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        fresh = sensitivity_by_batch(model, x, 512)
        importance = [f + g for f, g in zip(importance, fresh, strict=True)] if importance else fresh
        anchor = [p.detach().clone() for p in model.parameters()]
        rows.append(evaluate(model, test))
    return rows


def sensitivity_by_batch(model: nn.Module, x: Tensor, batch_size: int) -> list[Tensor]:
    """Absolute per-row gradients of the squared norm of the outputs, for a stack of linear layers and ReLUs."""
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    sums = [torch.zeros_like(p) for p in model.parameters()]
    with torch.no_grad():
        for a in x.split(batch_size):
            inputs = [a]
            for layer in layers[:-1]:
                inputs.append(layer(inputs[-1]).relu())
            gradient = 2 * layers[-1](inputs[-1])
            for number in reversed(range(len(layers))):
                size = gradient.abs()
                sums[2 * number] += size.T @ inputs[number].abs()
                sums[2 * number + 1] += size.sum(0)
                if number:
                    gradient = (gradient @ layers[number].weight) * (inputs[number] > 0)
    return [total / len(x) for total in sums]


def si(make: Make, train: Pairs, test: Pairs, batch_size: int, strength: float, damping: float) -> list[list[float]]:
    """Synaptic intelligence, with the gradient of the whole loss, as in a well-known code."""
    model = make()
    parameters = list(model.parameters())
    optimizer = sgd(parameters)
    rows = [evaluate(model, test)]
    importance: list[Tensor] = []
    anchor = [p.detach().clone() for p in parameters]
    for x, y in train:
        path = [torch.zeros_like(p) for p in parameters]
        for index in torch.randperm(len(x)).split(batch_size):
            loss = F.cross_entropy(model(x.index_select(0, index)), y.index_select(0, index))
            if importance:
                loss = loss + strength * _penalty(model, importance, anchor)
            loss.backward()
            with torch.no_grad():
                before = [p.clone() for p in parameters]
                optimizer.step()
                for w, p, old in zip(path, parameters, before, strict=True):
                    w.addcmul_(p.grad, old.sub_(p))
            optimizer.zero_grad()
        with torch.no_grad():
            fresh = [w.clamp_min(0) / ((p - a).square() + damping) for w, p, a in zip(path, parameters, anchor, strict=True)]
        importance = [f + g for f, g in zip(importance, fresh, strict=True)] if importance else fresh
        anchor = [p.detach().clone() for p in parameters]
        rows.append(evaluate(model, test))
    return rows


def gdumb(make: Make, train: Pairs, test: Pairs, batch_size: int, capacity: int) -> list[list[float]]:
    rows = [evaluate(make(), test)]
    pool: dict[int, Rows] = {}
    for x, y in train:
        for number in y.unique().tolist():
            pool[number] = (x[y == number], y[y == number])
        each = capacity // len(pool)
        for number, (a, b) in pool.items():
            kept = torch.randperm(len(a))[:each]
            pool[number] = (a[kept], b[kept])
        memory_x, memory_y = torch.cat([a for a, _ in pool.values()]), torch.cat([b for _, b in pool.values()])
        model = make()
        optimizer = sgd(model.parameters())
        for index in torch.randperm(len(memory_x)).split(batch_size):
            F.cross_entropy(model(memory_x.index_select(0, index)), memory_y.index_select(0, index)).backward()
            optimizer.step()
            optimizer.zero_grad()
        rows.append(evaluate(model, test))
    return rows


def der(make: Make, train: Pairs, test: Pairs, batch_size: int, capacity: int, alpha: float, beta: float) -> list[list[float]]:
    """Dark experience replay ++, with the outputs of the model when an experience ends."""
    model = make()
    optimizer, memory, told, seen = sgd(model.parameters()), None, None, 0
    rows = [evaluate(model, test)]
    for x, y in train:
        for index in torch.randperm(len(x)).split(batch_size):
            a, b, count = x.index_select(0, index), y.index_select(0, index), len(index)
            if memory is None:
                loss = F.cross_entropy(model(a), b)
            else:
                first, second = (torch.randperm(len(memory[0]))[:batch_size] for _ in range(2))
                outputs = model(torch.cat([a, memory[0].index_select(0, first), memory[0].index_select(0, second)]))
                now, soft, hard = outputs.split([count, len(first), len(second)])
                loss = F.cross_entropy(now, b) + alpha * F.mse_loss(soft, told.index_select(0, first))
                loss = loss + beta * F.cross_entropy(hard, memory[1].index_select(0, second))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        with torch.no_grad():
            chosen = torch.randperm(seen + len(x))[:capacity]
            fresh = chosen[chosen >= seen] - seen
            outputs = model(x[fresh])
            if memory is None:
                memory, told = (x[fresh], y[fresh]), outputs
            else:
                old = torch.randperm(len(memory[0]))[: capacity - len(fresh)]
                memory = torch.cat([memory[0][old], x[fresh]]), torch.cat([memory[1][old], y[fresh]])
                told = torch.cat([told[old], outputs])
        seen += len(x)
        rows.append(evaluate(model, test))
    return rows


def mir(make: Make, train: Pairs, test: Pairs, batch_size: int, capacity: int, candidates: int, drawn: int) -> list[list[float]]:
    """Maximally interfered retrieval: of some candidates, those whose loss a step on the incoming rows would raise most."""
    model = make()
    parameters = dict(model.named_parameters())
    optimizer, memory, seen = sgd(model.parameters()), None, 0
    rows = [evaluate(model, test)]
    for x, y in train:
        for index in torch.randperm(len(x)).split(batch_size):
            a, b = x.index_select(0, index), y.index_select(0, index)
            if memory is not None:
                chosen = torch.randperm(len(memory[0]))[:candidates]
                c, d = memory[0].index_select(0, chosen), memory[1].index_select(0, chosen)
                gradients = torch.autograd.grad(F.cross_entropy(model(a), b), list(parameters.values()))
                rate = optimizer.param_groups[0]["lr"]
                with torch.no_grad():
                    ahead = {name: p - rate * g for (name, p), g in zip(parameters.items(), gradients, strict=True)}
                    later = F.cross_entropy(torch.func.functional_call(model, ahead, (c,)), d, reduction="none")
                    worst = (later - F.cross_entropy(model(c), d, reduction="none")).topk(min(drawn, len(c))).indices
                a, b = torch.cat([a, c[worst]]), torch.cat([b, d[worst]])
            F.cross_entropy(model(a), b).backward()
            optimizer.step()
            optimizer.zero_grad()
        memory, seen = reservoir(memory, seen, x, y, capacity), seen + len(x)
        rows.append(evaluate(model, test))
    return rows


def online_replay(make: Make, x: Tensor, y: Tensor, rows: int, capacity: int) -> None:
    """Experiences of a few rows, each seen once, with as many rows of a reservoir."""
    model = make()
    optimizer = sgd(model.parameters())
    memory_x, memory_y = x.new_empty(capacity, *x.shape[1:]), y.new_empty(capacity)
    kept = 0
    for start in range(0, len(x), rows):
        a, b = x[start : start + rows], y[start : start + rows]
        fresh = a, b
        if kept:
            drawn = torch.randperm(kept)[:rows]
            a, b = torch.cat([a, memory_x.index_select(0, drawn)]), torch.cat([b, memory_y.index_select(0, drawn)])
        F.cross_entropy(model(a), b).backward()
        optimizer.step()
        optimizer.zero_grad()
        for number in range(len(fresh[0])):  # algorithm R
            seen = start + number
            place = seen if seen < capacity else int(torch.randint(0, seen + 1, ()))
            if place < capacity:
                memory_x[place], memory_y[place] = fresh[0][number], fresh[1][number]
        kept = min(capacity, start + rows)
