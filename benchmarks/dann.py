"""What DANN gains on two moons turned by 35 degrees: accuracy on the target rows, whose labels training never sees.

    python benchmarks/dann.py [--seeds 5]

An encoder of one layer of 15 sigmoids with a linear head, as in the shallow networks of Ganin et al. 2016, with and without DANN
(discriminator 15-15-1, ReLU). The seed is that of the moons and of the engine. Writes benchmarks/results/dann.json; a seed that is in
it already, for the same settings, is not run again.

DANN is run in both published variants: the ramped weight on the domain loss of both players (algorithm 1 of the paper, the default), and
on what the features get of it alone (its section 5.2.2). In the second the discriminator outruns the encoder on some seeds, and the
features settle where it still tells the domains apart.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import save, seeds_at
from torch import nn

from streamlearn import Engine, Plugin, models, streams
from streamlearn.plugins import DANN
from streamlearn.streams import Stream

SETTINGS: dict[str, Any] = {
    "rows": 150, "noise": 0.05, "degrees": 35.0, "centred": True, "hidden": 15, "learning_rate": 0.05, "momentum": 0.9, "batch_size": 30,
    "epochs": 500,
}  # fmt: skip
STRATEGIES: dict[str, Callable[[], Sequence[Plugin]]] = {
    "source only": list,
    "DANN": lambda: [DANN(hidden=(15,))],
    "DANN, ramp on the features alone": lambda: [DANN(hidden=(15,), ramped="features")],
}


def model_of(stream: Stream) -> models.Model:
    width = SETTINGS["hidden"]
    return models.Model(nn.Sequential(nn.Linear(2, width), nn.Sigmoid()), models.Heads(width, stream.tasks))


def one(plugins: Sequence[Plugin], seed: int) -> dict[str, float]:
    """Accuracy and loss on the target rows after training."""
    moons = {name: SETTINGS[name] for name in ("rows", "noise", "degrees", "centred")}
    stream = streams.adaptation("moons", seed=seed, **moons)
    engine = Engine(
        lambda: model_of(stream),
        lambda p: torch.optim.SGD(p, lr=SETTINGS["learning_rate"], momentum=SETTINGS["momentum"]),
        plugins,
        epochs=SETTINGS["epochs"],
        batch_size=SETTINGS["batch_size"],
        seed=seed,
        evaluate="end",
    )
    line = [event for event in engine.run(stream).events if event["event"] == "evaluation"][-1]
    return {"accuracy": float(line["value"]), "loss": float(line["loss"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    path = Path(__file__).parent / "results" / "dann.json"
    runs: dict[str, dict[str, Any]] = json.loads(path.read_text())["runs"] if path.exists() else {}
    for name, plugins in STRATEGIES.items():
        settings = {**SETTINGS, "plugins": [repr(plugin) for plugin in plugins()]}
        found = seeds_at(runs, name, settings)
        for seed in seeds:
            if str(seed) not in found:
                found[str(seed)] = one(plugins(), seed)
                save("dann", {"runs": runs})
        values = [found[str(seed)]["accuracy"] for seed in seeds]
        runs[name]["summary"] = {"seeds": len(values), "mean": float(np.mean(values)), "sd": float(np.std(values))}
        print(f"{name:34s}  {np.mean(values):.3f} ± {np.std(values):.3f}   {' '.join(f'{v:.3f}' for v in values)}", flush=True)
    print(f"written to {save('dann', {'runs': runs})}")


if __name__ == "__main__":
    main()
