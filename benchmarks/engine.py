"""What the engine costs: over a bare loop, over loops written by hand for one method, and Avalanche over it.

    python benchmarks/engine.py [--rounds 7] [--only overhead,methods,importance,growth]

CPU time, one thread, candidates interleaved within each round; ratios, never seconds, are the result. Needs MNIST below
STREAMLEARN_DATA (torchvision's layout) for the parts other than `overhead`. Writes benchmarks/results/engine.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from loops import Pairs, bare, convolutional, evaluate, ewc, fisher_row_by_row, mlp, naive, replay, sgd
from timing import interleaved, ratio, save

from streamlearn import Engine, Plugin, PluginInfo, hookimpl, streams
from streamlearn.models import Model
from streamlearn.plugins import EWC, Replay

BATCH = 128
WIDTHS = (784, 256, 256, 10)
NETWORKS = (WIDTHS, (784, 100, 10))


class Trivial(Plugin):
    """A plugin that does nothing at the four places where most methods act."""

    info = PluginInfo("trivial", "none", "Does nothing.", "none")

    @hookimpl
    def transform_batch(self, batch, step):
        return batch

    @hookimpl
    def before_step(self, step):
        pass

    @hookimpl
    def collect_terms(self, step):
        return None

    @hookimpl
    def after_step(self, step):
        pass


def overhead(rounds: int) -> dict[str, Any]:
    """The engine over a bare loop: nothing but SGD on tensors in memory."""
    found = {}
    # long enough for the ten milliseconds in which a run is set up not to count
    for widths, batch_size, rows, epochs in (((784, 256, 256, 10), 128, 12_800, 8), ((64, 100, 10), 32, 6_400, 20)):
        torch.manual_seed(0)
        x, y = torch.randn(rows, widths[0]), torch.randint(0, widths[-1], (rows,))
        stream = streams.data_incremental((x, y), experiences=1, test=(x[:10], torch.arange(10)))

        def run(plugins: Sequence[Plugin], widths=widths, epochs=epochs, batch_size=batch_size, stream=stream) -> None:
            Engine(mlp(*widths), sgd, plugins, epochs=epochs, batch_size=batch_size, evaluate="never").run(stream)

        five = [Trivial(name=f"trivial_{number}") for number in range(5)]
        seconds = interleaved(
            {
                "bare": lambda w=widths, x=x, y=y, b=batch_size, e=epochs: bare(mlp(*w), x, y, b, e),
                "engine": lambda run=run: run([]),
                "five": lambda run=run, five=five: run(five),
            },
            rounds * 3,  # what disturbs a shared machine comes in bursts
        )
        name = f"{'-'.join(map(str, widths))}, batch {batch_size}"
        found[name] = {
            "engine / bare loop": ratio(seconds, "engine", "bare"),
            "with five plugins / bare loop": ratio(seconds, "five", "bare"),
        }
    return found


def split_mnist() -> tuple[Pairs, Pairs, Any]:
    """Split MNIST as pairs of float tensors in memory, and the same tensors as a stream."""
    from streamlearn.streams.sources import named_source

    train, test = named_source("mnist")
    tensors = []
    for source in (train, test):
        columns = source.take(torch.arange(len(source)))
        tensors.append((columns.x.flatten(1), next(iter(columns.targets.values()))))
    groups = [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    pairs = [[(x[mask], y[mask]) for mask in ((y == a) | (y == b) for a, b in groups)] for x, y in tensors]
    stream = streams.class_incremental(tensors[0], classes=groups, shuffle=False, test=tensors[1])
    return pairs[0], pairs[1], stream


def methods(rounds: int) -> dict[str, Any]:
    """Split MNIST: one epoch per experience, every test set after each; by hand, by streamlearn, by Avalanche twice.

    With two networks: how far any loop can lead depends on how much of the time goes into matrix products, which cost all alike.
    """
    import peers

    train, test, stream = split_mnist()
    fast, classic = peers.benchmark_of_tensors(train, test), peers.classic_benchmark()
    found = {}
    for widths in NETWORKS:
        compared = _methods(rounds, lambda widths=widths: mlp(*widths), train, test, stream, fast, classic)
        found[f"{'-'.join(map(str, widths))}, batch {BATCH}"] = compared
    return found


def _methods(rounds: int, make: Any, train: Pairs, test: Pairs, stream: Any, fast: Any, classic: Any) -> dict[str, Any]:
    import peers

    def ours(plugins: Sequence[Plugin]) -> None:
        Engine(make(), sgd, plugins, batch_size=BATCH).run(stream)

    work = {
        "naive": (lambda: naive(make, train, test, BATCH), list, {}),
        "ewc": (lambda: ewc(make, train, test, BATCH, 100.0), lambda: [EWC(strength=100.0, fisher="empirical")], {"ewc_lambda": 100.0}),
        "replay": (lambda: replay(make, train, test, BATCH, 500), lambda: [Replay(capacity=500)], {"mem_size": 500}),
    }
    found = {}
    for name, (by_hand, plugins, options) in work.items():
        candidates = {
            "by hand": by_hand,
            "streamlearn": lambda plugins=plugins: ours(plugins()),
            "avalanche, tensors": lambda n=name, o=options: peers.train_and_evaluate(n, make, fast, BATCH, **o),
        }
        seconds = interleaved(candidates, rounds)
        slow = interleaved({"avalanche, classic": lambda n=name, o=options: peers.train_and_evaluate(n, make, classic, BATCH, **o)}, 1)
        found[name] = _compared(seconds | {"avalanche, classic": slow["avalanche, classic"] * rounds})
    found["evaluation alone"] = _evaluation(rounds, make, test, stream, fast, classic)
    return found


def _evaluation(rounds: int, make: Any, test: Pairs, stream: Any, fast: Any, classic: Any) -> dict[str, Any]:
    import peers

    from streamlearn.core.evaluation import Evaluator
    from streamlearn.core.run import Run
    from streamlearn.results import Record

    model = make()
    engine = Engine(model, sgd)
    run = Run(engine.options, engine.composition, stream, Record(), Record())
    run.model = Model.of(model)
    run.model.grow(stream.tasks)
    evaluator = Evaluator(stream, 1024)
    strategy = peers.strategy("naive", make, BATCH)
    candidates = {
        "by hand": lambda: evaluate(model, test),
        "streamlearn": lambda: evaluator.measure(run, 0),
        "avalanche, tensors": lambda: strategy.eval(fast.test_stream),
        "avalanche, classic": lambda: strategy.eval(classic.test_stream),
    }
    return _compared(interleaved(candidates, rounds))


def _compared(seconds: dict[str, list[float]]) -> dict[str, Any]:
    return {
        "streamlearn / by hand": ratio(seconds, "streamlearn", "by hand"),
        "avalanche, tensors / streamlearn": ratio(seconds, "avalanche, tensors", "streamlearn"),
        "avalanche, classic / streamlearn": ratio(seconds, "avalanche, classic", "streamlearn"),
        "avalanche, tensors / by hand": ratio(seconds, "avalanche, tensors", "by hand"),
    }


def importance(rounds: int) -> dict[str, Any]:
    """One importance pass over 2,000 digits: closed form, per-row loop, and Avalanche's (which squares batch means)."""
    train, _, _ = split_mnist()
    x, y = train[0][0][:2000], train[0][1][:2000]
    networks = {"-".join(map(str, widths)): mlp(*widths) for widths in NETWORKS} | {"two convolutions": convolutional()}
    return {name: _importance(rounds, network, x, y) for name, network in networks.items()}


def _importance(rounds: int, network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    import peers

    from streamlearn.core.importance import importance as importance_pass
    from streamlearn.streams import Batch, Task

    model = Model.of(network)
    model.grow([Task("y", size=10)])
    names = frozenset(name for name, _ in model.named_parameters())

    def closed(labels: str) -> dict[str, torch.Tensor]:
        batches = (Batch.uniform(a, "y", b, torch.arange(len(a))) for a, b in zip(x.split(512), y.split(512), strict=True))
        return importance_pass(model, batches, labels, names)

    reference = fisher_row_by_row(network, x[:200], y[:200])
    batch = Batch.uniform(x[:200], "y", y[:200], torch.arange(200))
    found = importance_pass(model, iter([batch]), "empirical", names)
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found.values(), reference, strict=True))
    seconds = interleaved(
        {
            "closed form": lambda: closed("empirical"),
            "closed form, exact Fisher": lambda: closed("exact"),
            "row by row": lambda: fisher_row_by_row(network, x, y),
            "avalanche, batch 1": lambda: peers.importance_of(network, x, y, 1),
            "avalanche, batch 128": lambda: peers.importance_of(network, x, y, 128),
        },
        rounds,
    )
    return {
        "largest relative error against row by row": error,
        "row by row / closed form": ratio(seconds, "row by row", "closed form"),
        "avalanche batch 1 / closed form": ratio(seconds, "avalanche, batch 1", "closed form"),
        "avalanche batch 128 / closed form": ratio(seconds, "avalanche, batch 128", "closed form"),
        "exact / empirical": ratio(seconds, "closed form, exact Fisher", "closed form"),
    }


def growth(rounds: int) -> dict[str, Any]:
    """Separate EWC after 2 and after 40 experiences: the cost of its steps must not grow."""
    import time

    torch.manual_seed(0)
    x, y = torch.randn(40 * 640, 784), torch.randint(0, 10, (40 * 640,))
    stream = streams.data_incremental((x, y), experiences=40, test=(x[:10], torch.arange(10)))
    marks: list[float] = []

    def progress(event: str, run: object) -> None:
        if event == "experience":
            marks.append(time.process_time())

    seconds: dict[str, list[float]] = {"first": [], "last": []}
    for _ in range(rounds):
        marks.clear()
        engine = Engine(mlp(*WIDTHS), sgd, [EWC(strength=1.0, fisher="empirical")], batch_size=32, evaluate="never", progress=progress)
        engine.run(stream)
        each = [b - a for a, b in itertools.pairwise(marks)]
        seconds["first"].append(sum(each[:8]))
        seconds["last"].append(sum(each[-8:]))
    return {"experiences 32 to 40 / experiences 2 to 10": ratio(seconds, "last", "first")}


PARTS = {"overhead": overhead, "methods": methods, "importance": importance, "growth": growth}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default=",".join(PARTS))
    arguments = parser.parse_args()
    wanted = arguments.only.split(",")
    if "STREAMLEARN_DATA" not in os.environ and {"methods", "importance"} & set(wanted):
        sys.exit(
            "benchmarks/engine.py needs MNIST: set STREAMLEARN_DATA to a folder in torchvision's layout, or use --only overhead,growth"
        )
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results = {}
    for name in wanted:
        results[name] = PARTS[name](arguments.rounds)
        print(json.dumps({name: results[name]}, indent=1), flush=True)
    if set(wanted) == set(PARTS):
        print(f"written to {save('engine', {'rounds': arguments.rounds, **results})}")


if __name__ == "__main__":
    main()
