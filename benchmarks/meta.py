"""Learning to learn: sinusoids by six methods, and what an outer step costs.

    python benchmarks/meta.py sinusoids [--shots 10] [--method MAML] [--seeds 1]
    python benchmarks/meta.py cost [--rounds 5]

*Sinusoids* (Finn et al. 2017, section 5.1): y = A sin(x - φ), A in [0.1, 5], φ in [0, π], x in [-5, 5]; a network 1-40-40-1; 30,000 outer
steps of Adam 1e-3 on 25 tasks each (drawn from 50,000, so that a task comes back 15 times), one inner step of rate 0.01, as many query
as support rows. Measured on 600 new tasks: mean squared error on query rows after 0, 1, 5 and 10 inner steps at the method's own
rates, with the 95 % interval of the mean over tasks. Pre-training is the same network without inner steps. Reptile takes 5 inner steps
of rate 0.02 on all rows, without which it would be pre-training.

*Cost*: one outer step of second order with 5 inner steps, 25 tasks of 10 + 10 rows, against a loop in plain torch that clones and adapts;
on convolutions, the executor chosen against the loop; memory of the adjoint at 20 inner steps against the unrolled gradient, resident
bytes over those before the step, each in a process of its own.

Writes benchmarks/results/meta.json; what is in it already, for the same settings, is not run again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from timing import ratio, save
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from streamlearn import Engine, Plugin, PluginInfo, hookimpl, models, streams
from streamlearn.core.rates import rate_key
from streamlearn.models import Heads, Model
from streamlearn.plugins import MAML, MetaSGD, Reptile

PATH = Path(__file__).parent / "results" / "meta.json"
STEPS = (0, 1, 5, 10)
SETTINGS: dict[str, Any] = {
    "iterations": 30000, "tasks": 25, "train_episodes": 50000, "test_episodes": 600, "hidden": [40, 40], "learning_rate": 1e-3,
    "rate": 0.01,
}  # fmt: skip
METHODS: dict[str, Callable[[], Plugin]] = {
    "MAML": lambda: MAML(steps=1, rate=0.01),
    "FOMAML": lambda: MAML(steps=1, rate=0.01, order=1),
    "ANIL": lambda: MAML(steps=1, rate=0.01, plastic=("heads.*",)),
    "Meta-SGD": lambda: MetaSGD(steps=1, rate=0.01),
    "pre-training": lambda: MAML(steps=0, evaluation_steps=1, rate=0.01),
    "Reptile": lambda: Reptile(steps=5, rate=0.02),
}


# ------------------------------------------------------------------------------------------------ sinusoids


class Keep(Plugin):
    """Keeps the rates that a method has learnt."""

    info = PluginInfo("keep", "tracking", "Keeps learnt rates.", "this benchmark")

    def __init__(self, rates: dict[str, Tensor]) -> None:
        super().__init__()
        self._rates = rates

    @hookimpl
    def after_run(self, run: Any) -> None:
        for name in run.model_parameter_names:
            module = run.modules.get(f"meta_sgd/{rate_key(name)}")
            if module is not None:
                self._rates[name] = module.value.detach().clone()


def error(model: nn.Module, rates: dict[str, Tensor], shots: int, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """Mean squared error on the query rows of each task after fine-tuning on its support rows, without the engine; ``(tasks,)``."""
    start = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(functional_call(model, parameters, (x, "sinusoids")), y)

    def after(x: Tensor, y: Tensor) -> Tensor:
        fast = start
        for _ in range(steps):
            found = grad(loss)(fast, x[:shots], y[:shots])
            fast = {name: fast[name] - rates[name] * found[name] for name in fast}
        return loss(fast, x[shots:], y[shots:])

    return vmap(after)(x, y)


def one(method: str, shots: int, seed: int) -> dict[str, Any]:
    s = SETTINGS
    sizes = {name: s[name] for name in ("train_episodes", "test_episodes")}
    stream = streams.episodes("sinusoids", shots=shots, queries=shots, seed=seed, **sizes)
    model = models.mlp(stream, hidden=s["hidden"])
    learnt: dict[str, Tensor] = {}
    started = time.process_time()
    engine = Engine(
        model,
        lambda p: torch.optim.Adam(p, lr=s["learning_rate"]),
        [METHODS[method](), Keep(learnt)],
        epochs=s["iterations"] * s["tasks"] // s["train_episodes"],
        batch_size=s["tasks"],
        seed=seed,
        evaluate="never",
    )
    found = engine.run(stream).model
    assert found is not None
    seconds = time.process_time() - started
    data: Any = stream.evaluation(0).data
    rows = data.batch(torch.arange(len(data)))
    x, y = (
        torch.cat([c[: len(data) * shots].view(len(data), shots, 1), c[len(data) * shots :].view(len(data), shots, 1)], 1)
        for c in (rows.x, rows.targets["sinusoids"])
    )
    rates = {name: learnt.get(name, torch.tensor(s["rate"])) for name, _ in found.named_parameters()}
    errors = {}
    for steps in STEPS:
        each = error(found, rates, shots, x, y, steps)
        errors[str(steps)] = {"mean": float(each.mean()), "half": float(1.96 * each.std() / len(each) ** 0.5)}
    return {"errors": errors, "cpu_seconds": round(seconds, 1)}


def sinusoids(shots: list[int], methods: list[str], seeds: int, known: dict[str, Any]) -> None:
    if known.get("settings") != SETTINGS:
        known |= {"settings": SETTINGS, "sinusoids": {}}
    runs = known["sinusoids"]
    for seed in range(seeds):
        for k in shots:
            for method in methods:
                row = runs.setdefault(f"{method}, {k} shots", {})
                if str(seed) in row:
                    continue
                row[str(seed)] = one(method, k, seed)
                save("meta", known)
                told = ", ".join(f"{s}: {e['mean']:.3f} ± {e['half']:.3f}" for s, e in row[str(seed)]["errors"].items())
                print(f"{method}, {k} shots, seed {seed}: {told} ({row[str(seed)]['cpu_seconds']} s)", flush=True)


# ------------------------------------------------------------------------------------------------ cost

TASKS, ROWS, INNER = 25, 10, 5


def plain_rows(count: int) -> Iterator[tuple[Tensor, ...]]:
    """Support x and y, query x and y of ``count`` batches, ``(tasks, rows, 1)`` each."""
    random = torch.Generator().manual_seed(0)
    for _ in range(count):
        size, shift = 0.1 + 4.9 * torch.rand(TASKS, 1, 1, generator=random), 3.14 * torch.rand(TASKS, 1, 1, generator=random)
        x = 10 * torch.rand(TASKS, 2 * ROWS, 1, generator=random) - 5
        y = size * (x - shift).sin()
        yield x[:, :ROWS], y[:, :ROWS], x[:, ROWS:], y[:, ROWS:]


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))


def clone_and_adapt(batches: int) -> float:
    """CPU seconds of an outer step: a loop over tasks, each a clone of the weights that adapts with a graph."""
    net = perceptron()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    started = time.process_time()
    for support_x, support_y, query_x, query_y in plain_rows(batches):
        total = torch.zeros(())
        for e in range(TASKS):
            fast = dict(net.named_parameters())
            for _ in range(INNER):
                loss = nn.functional.mse_loss(functional_call(net, fast, (support_x[e],)), support_y[e])
                found = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
                fast = {name: value - 0.01 * g for (name, value), g in zip(fast.items(), found, strict=True)}
            total = total + nn.functional.mse_loss(functional_call(net, fast, (query_x[e],)), query_y[e]) / TASKS
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return (time.process_time() - started) / batches


def by_functions(batches: int) -> float:
    """The same by torch.vmap and torch.func.grad, with nothing around it."""
    net = perceptron()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    loss = lambda p, x, y: nn.functional.mse_loss(functional_call(net, p, (x,)), y)  # noqa: E731

    def outer(support_x: Tensor, support_y: Tensor, query_x: Tensor, query_y: Tensor) -> Tensor:
        fast: dict[str, Tensor] = dict(net.named_parameters())
        for _ in range(INNER):
            found = grad(loss)(fast, support_x, support_y)
            fast = {name: value - 0.01 * found[name] for name, value in fast.items()}
        return loss(fast, query_x, query_y)

    started = time.process_time()
    for batch in plain_rows(batches):
        optimizer.zero_grad()
        vmap(outer)(*batch).mean().backward()
        optimizer.step()
    return (time.process_time() - started) / batches


def by_engine(make: Callable[[], Model], stream: streams.Stream, plugin: Callable[[], Plugin], batch: int) -> Callable[[int], float]:
    """A step of the engine with everything in it."""

    def run(batches: int) -> float:
        marks: list[float] = []

        def progress(event: str, _: Any) -> None:
            if event == "step":
                marks.append(time.process_time())

        adam = lambda p: torch.optim.Adam(p, lr=1e-3)  # noqa: E731
        Engine(make(), adam, [plugin()], batch_size=batch, iterations=batches + 3, evaluate="never", progress=progress).run(stream)
        return (marks[-1] - marks[2]) / (len(marks) - 3)

    return run


def convolutional(stream: streams.Stream) -> Model:
    """Four blocks of 64 filters, stride 2, on 28 x 28 pixels; without normalisation, which would leave nothing to choose."""
    blocks: list[nn.Module] = []
    for width in (1, 64, 64, 64):
        blocks += [nn.Conv2d(width, 64, 3, stride=2, padding=1), nn.ReLU()]
    return Model(nn.Sequential(*blocks, nn.Flatten()), Heads(256, stream.tasks))


def images(episodes: int) -> streams.Stream:
    """Five-way one-shot episodes of random pixels."""
    random = torch.Generator().manual_seed(0)
    source = streams.TensorSource(torch.rand(200, 1, 28, 28, generator=random), {"y": torch.arange(200) // 10}, "pixels")
    return streams.episodes(source, ways=5, shots=1, queries=5, train_episodes=episodes, test_episodes=5)


def resident(kind: str) -> float:
    """MiB of this process, ``"VmRSS"`` now or ``"VmHWM"`` at most since `forget_the_peak`."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(kind))
    return float(line.split()[1]) / 1024


def forget_the_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak(recompute: bool, answer: Any) -> None:
    torch.set_num_threads(1)
    stream, sgd = images(8), lambda p: torch.optim.SGD(p, lr=0.01)
    options: dict[str, Any] = {"batch_size": 4, "evaluate": "never"}
    Engine(convolutional(stream), sgd, [MAML(steps=1)], iterations=1, **options).run(stream)  # what is there once only
    before = resident("VmRSS")
    forget_the_peak()
    Engine(convolutional(stream), sgd, [MAML(steps=20, recompute=recompute, executor="loop")], iterations=2, **options).run(stream)
    answer.put(resident("VmHWM") - before)


def memory() -> dict[str, float]:
    """MiB over what was there, by estimator."""
    found = {}
    context = multiprocessing.get_context("spawn")
    for name, recompute in (("unrolled", False), ("adjoint", True)):
        answer: Any = context.Queue()
        process = context.Process(target=peak, args=(recompute, answer))
        process.start()
        found[name] = float(answer.get())
        process.join()
    return found | {"adjoint / unrolled": found["adjoint"] / found["unrolled"]}


def cost(rounds: int, known: dict[str, Any]) -> None:
    sines = streams.episodes("sinusoids", shots=ROWS, queries=ROWS, train_episodes=40 * TASKS, test_episodes=5)
    pictures = images(200)
    small = lambda: models.mlp(sines, hidden=(40, 40))  # noqa: E731
    candidates: dict[str, Callable[[int], float]] = {
        "clone and adapt": clone_and_adapt,
        "by functions": by_functions,
        "streamlearn": by_engine(small, sines, lambda: MAML(steps=INNER), TASKS),
        "streamlearn, loop": by_engine(small, sines, lambda: MAML(steps=INNER, executor="loop"), TASKS),
    }
    pairs = {
        "convolutions, auto": by_engine(lambda: convolutional(pictures), pictures, lambda: MAML(steps=1), 16),
        "convolutions, loop": by_engine(lambda: convolutional(pictures), pictures, lambda: MAML(steps=1, executor="loop"), 16),
        "convolutions, at once": by_engine(lambda: convolutional(pictures), pictures, lambda: MAML(steps=1, executor="vmap", chunk=8), 16),
    }
    seconds: dict[str, list[float]] = {name: [] for name in [*candidates, *pairs]}
    for number in range(rounds + 1):
        for name, run in [*candidates.items(), *pairs.items()]:
            spent = run(20 if name in candidates else 6)
            if number:
                seconds[name].append(spent)
    found: dict[str, Any] = {
        f"clone and adapt / {name}": ratio(seconds, "clone and adapt", name)
        for name in ("streamlearn", "by functions", "streamlearn, loop")
    }
    found |= {f"{name} / loop": ratio(seconds, name, "convolutions, loop") for name in ("convolutions, auto", "convolutions, at once")}
    known["cost"] = {"rounds": rounds, **found, "memory": memory()}
    save("meta", known)
    for name, value in known["cost"].items():
        print(name, {k: round(v, 3) for k, v in value.items()} if isinstance(value, dict) else value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sinusoids", "cost"))
    parser.add_argument("--shots", type=int, action="append")
    parser.add_argument("--method", action="append", choices=list(METHODS))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    known: dict[str, Any] = json.loads(PATH.read_text()) if PATH.exists() else {}
    known.pop("machine", None)
    if asked.what == "cost":
        cost(asked.rounds, known)
    else:
        sinusoids(asked.shots or [10, 5], asked.method or list(METHODS), asked.seeds, known)


if __name__ == "__main__":
    main()
