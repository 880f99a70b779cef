"""What per-task gradients cost: steps of the engine with a combiner against one backward pass and three ways to take them by hand.

    python benchmarks/combiners.py [--rounds 5] [--tasks 2,5,10,40]

K tasks on every row of a batch of 128; MLP 784-256-256-128 and LeNet, a linear head of 10 classes for each task, SGD. All but the bare
step combine by MGDA: with this library's solver, but for TorchJD's aggregator with its own. CPU time, one thread, interleaved; the time of
a step with everything in it (batch, forward, gradients, combination, update). Writes benchmarks/results/combiners.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timing import ratio, save
from torch import Tensor, nn
from torchjd.aggregation import MGDA
from torchjd.autojac import jac_to_grad, mtl_backward

from streamlearn import Engine, plugins
from streamlearn.core.solvers import min_norm_weights
from streamlearn.models import Heads, Model
from streamlearn.streams import Data, Experience, Stream, Task, TensorSource
from streamlearn.streams.data import Target

BATCH, STEPS, CLASSES = 128, 20, 10
SHAPES = {"MLP 784-256-256-128": (784,), "LeNet": (1, 28, 28)}


def trunk(network: str) -> nn.Sequential:
    if network.startswith("MLP"):
        return nn.Sequential(nn.Linear(784, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU())
    convolutions = [nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*convolutions, nn.Linear(320, 50), nn.ReLU())


def width(network: str) -> int:
    return 128 if network.startswith("MLP") else 50


def rows(network: str, tasks: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(BATCH * STEPS, *SHAPES[network], generator=random), torch.randint(CLASSES, (BATCH * STEPS, tasks), generator=random)


class ByHand:
    """A network, its optimiser and a loop over batches; what differs is how gradients come about."""

    def __init__(self, network: str, tasks: int, gradients: Callable[[ByHand, Tensor, Tensor], None]) -> None:
        torch.manual_seed(0)
        self.trunk, self.heads = trunk(network), nn.ModuleList(nn.Linear(width(network), CLASSES) for _ in range(tasks))
        self.shared, self.own = list(self.trunk.parameters()), [list(head.parameters()) for head in self.heads]
        self.optimizer = torch.optim.SGD([*self.trunk.parameters(), *self.heads.parameters()], lr=0.01)
        self.x, self.y = rows(network, tasks)
        self.gradients = gradients

    def losses(self, x: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = self.trunk(x)
        return features, [F.cross_entropy(head(features), y[:, k]) for k, head in enumerate(self.heads)]

    def run(self) -> float:
        order = torch.randperm(len(self.x)).split(BATCH)
        start = time.process_time()
        for index in order:
            self.gradients(self, self.x.index_select(0, index), self.y.index_select(0, index))
            self.optimizer.step()
            self.optimizer.zero_grad()
        return (time.process_time() - start) / len(order)

    def combine(self, matrix: Tensor) -> None:
        flat = min_norm_weights(matrix @ matrix.T).to(matrix) @ matrix
        for parameter, piece in zip(self.shared, flat.split([p.numel() for p in self.shared]), strict=True):
            parameter.grad = piece.view_as(parameter)


def one_backward(net: ByHand, x: Tensor, y: Tensor) -> None:
    _, losses = net.losses(x, y)
    torch.stack(losses).sum().backward()


def loop_over_tasks(net: ByHand, x: Tensor, y: Tensor) -> None:
    _, losses = net.losses(x, y)
    matrix = torch.empty(len(losses), sum(p.numel() for p in net.shared))
    for k, loss in enumerate(losses):
        found = torch.autograd.grad(loss, [*net.shared, *net.own[k]], retain_graph=True)
        torch.cat([g.flatten() for g in found[: len(net.shared)]], out=matrix[k])
        for parameter, gradient in zip(net.own[k], found[len(net.shared) :], strict=True):
            parameter.grad = gradient
    net.combine(matrix)


def as_libmtl(net: ByHand, x: Tensor, y: Tensor) -> None:
    """backward() once for each task, reading and clearing what it leaves in the shared parameters."""
    _, losses = net.losses(x, y)
    matrix = torch.zeros(len(losses), sum(p.numel() for p in net.shared))
    for k, loss in enumerate(losses):
        loss.backward(retain_graph=k + 1 < len(losses))
        matrix[k] = torch.cat([p.grad.flatten() for p in net.shared if p.grad is not None])
        for parameter in net.shared:
            parameter.grad = None
    net.combine(matrix)


def by_torchjd(net: ByHand, x: Tensor, y: Tensor, chunk: int | None) -> None:
    features, losses = net.losses(x, y)
    mtl_backward(losses, features=features, parallel_chunk_size=chunk)
    jac_to_grad(net.shared, MGDA())


def stream_of(network: str, tasks: int) -> Stream:
    x, y = rows(network, tasks)
    names = [f"t{k}" for k in range(tasks)]
    source = TensorSource(x, dict(zip(names, y.T.contiguous(), strict=True)), "random")
    asked = tuple(Task(name, size=CLASSES) for name in names)
    data = Data(source, torch.arange(len(x)), asked, {name: Target(name) for name in names})

    def experience(index: int) -> Experience:
        return Experience(index, asked, {"train": data}, "all", {name: tuple(range(CLASSES)) for name in names})

    return Stream(
        "random", 1, experience, None, tasks=asked, input_shape=SHAPES[network], description={"by": "benchmark"}, fingerprints=("random",)
    )


def engine_step(network: str, tasks: int, plugin: Callable[[], Any], stream: Stream) -> Callable[[], float]:
    def run() -> float:
        marks: list[float] = []
        torch.manual_seed(0)
        model = Model(trunk(network), Heads(width(network), stream.tasks))

        def progress(event: str, run: Any) -> None:
            if event == "step":
                marks.append(time.process_time())

        listed = [plugin()] if plugin is not None else []
        optimizer = lambda p: torch.optim.SGD(p, lr=0.01)  # noqa: E731
        Engine(model, optimizer, listed, batch_size=BATCH, evaluate="never", progress=progress).run(stream)
        return (marks[-1] - marks[0]) / (len(marks) - 1)

    return run


def measure(network: str, tasks: int, rounds: int) -> dict[str, Any]:
    stream = stream_of(network, tasks)
    hands = {
        "one backward": one_backward,
        "loop over tasks": loop_over_tasks,
        "LibMTL's way": as_libmtl,
        "torchjd, sequential": lambda net, x, y: by_torchjd(net, x, y, 1),
        "torchjd, vmap": lambda net, x, y: by_torchjd(net, x, y, None),
    }
    candidates: dict[str, Callable[[], float]] = {name: ByHand(network, tasks, way).run for name, way in hands.items()}
    candidates["streamlearn, no combiner"] = engine_step(network, tasks, None, stream)
    candidates["streamlearn, MGDA"] = engine_step(network, tasks, plugins.MGDA, stream)
    candidates["streamlearn, MGDA-UB"] = engine_step(network, tasks, plugins.MGDAUB, stream)
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, run in candidates.items():
            spent = run()
            if number:
                seconds[name].append(spent)
    found: dict[str, Any] = {
        f"{name} / one backward": ratio(seconds, name, "one backward") for name in candidates if name != "one backward"
    }
    by_hand = [name for name in hands if name != "one backward"]
    best = min(by_hand, key=lambda name: sorted(seconds[name])[len(seconds[name]) // 2])
    return {"best by hand": best, **found, "streamlearn, MGDA / best by hand": ratio(seconds, "streamlearn, MGDA", best)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", default="2,5,10,40")
    parser.add_argument("--network", action="append", choices=list(SHAPES))
    asked = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for network in asked.network or SHAPES:
        for tasks in map(int, asked.tasks.split(",")):
            found = results[f"{network}, {tasks} tasks"] = measure(network, tasks, asked.rounds)
            shown = {name: round(value["median"], 2) if isinstance(value, dict) else value for name, value in found.items()}
            print(f"{network}, {tasks} tasks: {shown}", flush=True)
            save("combiners", {"rounds": asked.rounds, "steps": results})


if __name__ == "__main__":
    main()
