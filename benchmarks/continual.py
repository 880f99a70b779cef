"""What continual-learning methods cost: over loops written by hand, against Avalanche, by step, and over long streams.

    STREAMLEARN_DATA=... python benchmarks/continual.py [--rounds 5] [--only methods,steps,online,scale] [--methods si,mas]

CPU time, one thread, candidates interleaved within each round; ratios, never seconds, are the result. The same work for all: training one
epoch of split MNIST in five experiences and evaluating every test set after each, MLP 784-256-256-10, batch 128. Each part, and
each method, writes its figures into benchmarks/results/continual.json when it is done.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import loops
import loops_continual as by_hand
import torch
from engine import BATCH, WIDTHS, split_mnist
from loops import Pairs, mlp, sgd
from timing import interleaved, ratio, save

from streamlearn import Engine, Plugin, plugins, streams

CAPACITY = 500


def make() -> torch.nn.Module:
    return mlp(*WIDTHS)


Loop = Callable[[Pairs, Pairs], Any]
METHODS: dict[str, tuple[Loop, Callable[[], list[Plugin]], dict[str, Any]]] = {
    "naive": (lambda a, b: loops.naive(make, a, b, BATCH), list, {}),
    "ewc": (
        lambda a, b: loops.ewc(make, a, b, BATCH, 100.0),
        lambda: [plugins.EWC(strength=100.0, fisher="empirical")],
        {"ewc_lambda": 100.0},
    ),
    "replay": (lambda a, b: loops.replay(make, a, b, BATCH, CAPACITY), lambda: [plugins.Replay(capacity=CAPACITY)], {"mem_size": CAPACITY}),
    "lwf": (
        lambda a, b: by_hand.lwf(make, a, b, BATCH, 1.0, 2.0),
        lambda: [plugins.LwF(strength=1.0, temperature=2.0)],
        {"alpha": 1.0, "temperature": 2.0},
    ),
    "agem": (
        lambda a, b: by_hand.agem(make, a, b, BATCH, CAPACITY),
        lambda: [plugins.AGEM(capacity=CAPACITY)],
        {"patterns_per_exp": CAPACITY // 5, "sample_size": BATCH},
    ),
    "mas": (lambda a, b: by_hand.mas(make, a, b, BATCH, 0.01), lambda: [plugins.MAS(strength=0.01)], {"lambda_reg": 0.01, "alpha": 0.5}),
    "si": (
        lambda a, b: by_hand.si(make, a, b, BATCH, 1.0, 0.1),
        lambda: [plugins.SI(strength=1.0, damping=0.1, gradient="total")],
        {"si_lambda": 1.0},
    ),
    "gdumb": (lambda a, b: by_hand.gdumb(make, a, b, BATCH, CAPACITY), lambda: [plugins.GDumb(capacity=CAPACITY)], {"mem_size": CAPACITY}),
    "der": (
        lambda a, b: by_hand.der(make, a, b, BATCH, CAPACITY, 0.1, 0.5),
        lambda: [plugins.DER(capacity=CAPACITY, alpha=0.1, beta=0.5, fill="experience")],
        {"mem_size": CAPACITY, "alpha": 0.1, "beta": 0.5},
    ),
    "mir": (
        lambda a, b: by_hand.mir(make, a, b, BATCH, CAPACITY, 200, BATCH),
        lambda: [plugins.MIR(capacity=CAPACITY, candidates=200, batch_size=BATCH)],
        {"mem_size": CAPACITY, "subsample": 200, "batch_size_mem": BATCH},
    ),
}


def methods(rounds: int, wanted: list[str], keep: Callable[[str, Any], None]) -> None:
    """Each method by hand, by streamlearn, and by Avalanche with tensors in memory and with its classic benchmark."""
    import peers

    train, test, stream = split_mnist()
    fast, classic = peers.benchmark_of_tensors(train, test), peers.classic_benchmark()
    for name in wanted:
        loop, made, options = METHODS[name]
        candidates = {
            "by hand": lambda loop=loop: loop(train, test),
            "streamlearn": lambda made=made: Engine(make(), sgd, made(), batch_size=BATCH).run(stream),
            "avalanche": lambda n=name, o=options: peers.train_and_evaluate(n, make, fast, BATCH, **o),
        }
        seconds = interleaved(candidates, rounds)
        found = {
            "streamlearn / by hand": ratio(seconds, "streamlearn", "by hand"),
            "avalanche, tensors / streamlearn": ratio(seconds, "avalanche", "streamlearn"),
            "avalanche, tensors / by hand": ratio(seconds, "avalanche", "by hand"),
        }
        if name == "naive":
            slow = interleaved({"classic": lambda: peers.train_and_evaluate("naive", make, classic, BATCH)}, 1)
            seconds["classic"] = slow["classic"] * rounds
            found["avalanche, classic / streamlearn"] = ratio(seconds, "classic", "streamlearn")
        print(name, {what: round(value["median"], 3) for what, value in found.items()}, flush=True)
        keep(name, found)


def steps(rounds: int) -> dict[str, Any]:
    """A regulariser's step over the bare step, once it has something to hold."""
    torch.manual_seed(0)
    x, y = torch.randn(2 * 12_800, WIDTHS[0]), torch.randint(0, 10, (2 * 12_800,))
    stream = streams.data_incremental((x, y), experiences=2, test=(x[:10], torch.arange(10)))
    regularisers: dict[str, Callable[[], list[Plugin]]] = {
        "bare": list,
        "ewc": lambda: [plugins.EWC(strength=1.0, fisher="empirical")],
        "mas": lambda: [plugins.MAS(strength=1.0)],
        "si": lambda: [plugins.SI(strength=1.0)],
        "l2_anchor": lambda: [plugins.L2Anchor(strength=1.0)],
    }
    optimizers = {"SGD": sgd, "Adam": lambda p: torch.optim.Adam(p, lr=1e-3)}
    found: dict[str, Any] = {}
    for called, optimizer in optimizers.items():
        seconds: dict[str, list[float]] = {name: [] for name in regularisers}
        for number in range(3 * rounds + 1):
            for name, made in regularisers.items():
                spent = _second_experience(stream, optimizer, made())
                if number:
                    seconds[name].append(spent)
        found[called] = {f"{name} / bare step": ratio(seconds, name, "bare") for name in regularisers if name != "bare"}
    return found


def _second_experience(stream: streams.Stream, optimizer: Any, listed: list[Plugin]) -> float:
    """CPU time of its steps alone, without what happens when an experience ends."""
    marks = []

    def progress(event: str, run: Any) -> None:
        if event == "step" and run.clock.experience == 1:
            marks.append(time.process_time())

    Engine(make(), optimizer, listed, batch_size=BATCH, evaluate="never", progress=progress).run(stream)
    return marks[-1] - marks[0]


def online(rounds: int) -> dict[str, Any]:
    """Online replay: experiences of 10 rows, 784-100-10, capacity 1,000."""
    import peers

    train, _, _ = split_mnist()
    x, y = torch.cat([a for a, _ in train]), torch.cat([b for _, b in train])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:6000]
    x, y = x[order], y[order]
    stream = streams.data_incremental((x, y), rows=10, shuffle=False, test=(x[:1].repeat(10, 1), torch.arange(10)))
    small = [(a, b) for a, b in zip(x.split(10), y.split(10), strict=True)]
    benchmark = peers.benchmark_of_tensors(small, small[:1])

    def network() -> torch.nn.Module:
        return mlp(784, 100, 10)

    def ours() -> None:
        listed = [plugins.Replay(capacity=1000, batch_size=10)]
        Engine(network(), sgd, listed, batch_size=10, evaluate="never").run(stream)

    candidates = {
        "by hand": lambda: by_hand.online_replay(network, x, y, 10, 1000),
        "streamlearn": ours,
        "avalanche": lambda: peers.train_only("replay", network, benchmark, 10, mem_size=1000),
    }
    seconds = interleaved(candidates, rounds)
    return {
        "streamlearn / by hand": ratio(seconds, "streamlearn", "by hand"),
        "avalanche, tensors / streamlearn": ratio(seconds, "avalanche", "streamlearn"),
    }


def scale(rounds: int) -> dict[str, Any]:
    """1,000 experiences of 60 rows with ER and EWC-online: time and memory of the last 100 over the first 100 with a full memory."""
    torch.manual_seed(0)
    x, y = torch.randn(60_000, 784), torch.randint(0, 10, (60_000,))
    stream = streams.data_incremental((x, y), rows=60, test=(x[:10], torch.arange(10)))
    marks: list[float] = []
    memory: list[int] = []

    def progress(event: str, run: Any) -> None:
        if event == "experience":
            marks.append(time.process_time())
            memory.append(_resident())

    seconds: dict[str, list[float]] = {"first": [], "last": []}
    for _ in range(rounds):
        marks.clear()
        memory.clear()
        listed = [plugins.Replay(capacity=500), plugins.EWC(strength=1.0, mode="online", fisher="empirical")]
        Engine(mlp(784, 100, 10), sgd, listed, batch_size=10, evaluate="never", progress=progress).run(stream)
        each = [b - a for a, b in itertools.pairwise(marks)]
        seconds["first"].append(sum(each[10:110]))
        seconds["last"].append(sum(each[-100:]))
    return {
        "time of experiences 901 to 1,000 / 11 to 110": ratio(seconds, "last", "first"),
        "resident memory after 1,000 experiences / after 110": memory[-1] / memory[110],
    }


def _resident() -> int:
    """Bytes of the process that are in memory now; the largest so far where the system does not tell."""
    status = Path("/proc/self/statm")
    if status.exists():
        return int(status.read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="methods,steps,online,scale")
    parser.add_argument("--methods", default=",".join(METHODS))
    asked = parser.parse_args()
    if "STREAMLEARN_DATA" not in os.environ:
        sys.exit("benchmarks/continual.py needs MNIST: set STREAMLEARN_DATA to a folder in torchvision's layout")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    path = Path(__file__).parent / "results" / "continual.json"
    results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    results.pop("machine", None)
    for name in asked.only.split(","):
        if name == "methods":
            known = results.setdefault(name, {})

            def keep(method: str, found: Any, known: dict[str, Any] = known) -> None:
                known[method] = found
                save("continual", results)

            methods(asked.rounds, asked.methods.split(","), keep)
        else:
            results[name] = {"steps": steps, "online": online, "scale": scale}[name](asked.rounds)
            print(json.dumps({name: results[name]}, indent=1), flush=True)
        save("continual", results)
    print(f"written to {path}")


if __name__ == "__main__":
    main()
