"""Two tasks on overlaid digits: what weightings of losses and combiners of gradients do, next to equal weights and a model for each task.

    STREAMLEARN_DATA=... python benchmarks/multitask.py [--stream MultiDigits] [--method PCGrad] [--seeds 3]

Streams (`STREAMS`):

- "MultiDigits": two of scikit-learn's digits laid over one another (1,438 training, 359 test rows; the seed also draws the pairs). MLP
  144-64-64 with a linear head for each task, Adam 0.001, batches of 128, 30 epochs (360 updates).
- "MultiDigits, right x 0.01": the same runs, but the loss of the right digit is multiplied by 0.01: equal weights hear the left one
  alone. The models of single tasks are those of the first table.
- "MultiDigits, 120 epochs": equal scales again, four times as long. After 30 epochs no network has fitted its rows, so that a method that
  is merely slower looks worse.
- "MultiMNIST": the construction of Sener and Koltun 2018 from MNIST's files (see `streamlearn.streams`). Their LeNet: convolutions of 10
  and 20 channels, 5 by 5, each with max-pooling, a layer of 50 units, and for each task a head of 50 more units and 10 classes. Adam, whose
  learning rate falls exponentially from 0.01 to 0.001, batches of 256, 6 epochs (474 updates) of 20,000 rows, drawn by the seed; all
  10,000 test rows.

No match for published figures. The code of Kurin et al. 2022 has the same network, Adam at 0.01 that falls by 5 % an epoch, batches of 256
and the sum of the losses, but 100 epochs of 50,000 rows of standardised inputs, dropout behind the second convolution and in the heads, and
the best epoch by 10,000 validation rows. Here inputs lie in [0, 1], without dropout or validation, and with a fortieth of the updates.
Their MGDA divides each gradient by its loss and norm ("loss+"), which ours does not. Options are the plugins' defaults but where a row says
otherwise. Of the learning rates 0.01, 0.005 and 0.002 on MultiMNIST the first was best for equal weights, on test rows, with a seed that is
not reported; all rows have it, and none is tuned further. The model of a task alone has the same encoder and head and makes the same
updates. Task-specific layers always have their own plain gradient, that of the weighted loss.

Delta_m, the worst task and mean ranks are those of `streamlearn.results`; ranks are those of mean accuracies over seeds, among all rows but
the models of single tasks. "against equal" is the mean over seeds of the difference of delta_m to that of equal weights, with the half
width of its 95 % interval (Student's t). Conflicts are counted where a combiner acts: the share of updates in which the tasks' gradients
have a negative cosine. Writes benchmarks/results/multitask.json; a seed that is in it already, for the same settings, is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from timing import save, seeds_at
from torch import Tensor, nn

from streamlearn import Engine, Plugin, PluginConfig, PluginInfo, hookimpl, models, plugins, single_task_baselines, streams
from streamlearn.core.supervision import Supervision
from streamlearn.core.view import Step
from streamlearn.models import Heads, Model
from streamlearn.models.parts import PartedHeads, PartedModel
from streamlearn.results import Result, delta_m, mean_ranks
from streamlearn.results.multitask_metrics import final_values, worst_task
from streamlearn.streams import Stream

Strategy = Callable[[], Sequence[Plugin]]

DIGITS: dict[str, Any] = {"hidden": [64, 64], "learning_rate": 1e-3, "last_learning_rate": 1e-3, "batch_size": 128, "epochs": 30}
STREAMS: dict[str, dict[str, Any]] = {
    "MultiDigits": {**DIGITS, "source": "multi-digits", "factors": {}},
    "MultiDigits, right x 0.01": {**DIGITS, "source": "multi-digits", "factors": {"right": 0.01}},
    "MultiDigits, 120 epochs": {**DIGITS, "source": "multi-digits", "factors": {}, "epochs": 120},
    "MultiMNIST": {
        "source": "multi-mnist:construction=sener", "factors": {}, "part": 3, "network": "LeNet, heads of 50 units",
        "learning_rate": 0.01, "last_learning_rate": 0.001, "batch_size": 256, "epochs": 6,
    },
}  # fmt: skip
SEEDS = {"MultiDigits, 120 epochs": 5, "MultiMNIST": 3}
"""How many seeds a table has, where not 10."""
SINGLE, EQUAL = "single task", "equal weights"
STRATEGIES: dict[str, Strategy] = {
    SINGLE: lambda: [],
    EQUAL: lambda: [],
    "UncertaintyWeighting": lambda: [plugins.UncertaintyWeighting()],
    "UncertaintyWeighting, learning rate 0.025": lambda: [plugins.UncertaintyWeighting(learning_rate=0.025)],
    "DWA": lambda: [plugins.DWA()],
    "RLW": lambda: [plugins.RLW()],
    "GLS": lambda: [plugins.GLS()],
    "IMTL-L": lambda: [plugins.IMTLL()],
    "IMTL-L, learning rate 0.025": lambda: [plugins.IMTLL(learning_rate=0.025)],
    "GradNorm": lambda: [plugins.GradNorm()],
    "GradNorm, softmax": lambda: [plugins.GradNorm(weights="softmax")],
    "FAMO": lambda: [plugins.FAMO()],
    "PCGrad": lambda: [plugins.PCGrad()],
    "GradVac": lambda: [plugins.GradVac()],
    "CAGrad": lambda: [plugins.CAGrad()],
    "GradDrop": lambda: [plugins.GradDrop()],
    "Nash-MTL": lambda: [plugins.NashMTL()],
    "IMTL-G": lambda: [plugins.IMTLG()],
    "Aligned-MTL": lambda: [plugins.AlignedMTL()],
    "UPGrad": lambda: [plugins.UPGrad()],
    "MGDA": lambda: [plugins.MGDA()],
    "MGDA-UB": lambda: [plugins.MGDAUB()],
}
ON_MNIST = [
    SINGLE, EQUAL, "UncertaintyWeighting", "DWA", "GradNorm", "FAMO", "PCGrad", "CAGrad", "Nash-MTL", "IMTL-G", "Aligned-MTL", "UPGrad",
    "MGDA", "MGDA-UB",
]  # fmt: skip


class Scaled(Plugin):
    """Multiplies the losses of some tasks: no weighting, but what weightings find."""

    info = PluginInfo("scaled", "benchmark", "Multiplies the losses of some tasks.", "none")

    class Config(PluginConfig):
        """Options of `Scaled`."""

        factors: dict[str, float]

    @hookimpl
    def transform_supervision(self, supervision: tuple[Supervision, ...], step: Step) -> tuple[Supervision, ...]:
        return tuple(record.replace(scale=record.scale * self.config.factors.get(record.task, 1.0)) for record in supervision)


class DeepHeads(PartedHeads):
    """Heads with a layer of 50 ReLU units of their own."""

    def __init__(self, features: int, tasks: Iterable[streams.Task]) -> None:
        super().__init__(Heads(features, tasks))
        self.layers = nn.ModuleDict()
        self.complete()

    def add(self, task: str, key: str, like: Tensor) -> None:
        self.layers[key] = nn.Linear(self.features, self.features).to(like)

    def forward(self, features: Tensor, task: str) -> Tensor:
        return super().forward(self.layers[self.key_of(task)](features).relu(), task)


def lenet(stream: Stream) -> Model:
    convolutions = [nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()]
    return PartedModel(nn.Sequential(*convolutions, nn.Linear(320, 50), nn.ReLU()), DeepHeads(50, stream.tasks))


@lru_cache(maxsize=2)
def stream_of(source: str, part: int, seed: int) -> Stream:
    """Both tasks in one experience: all training rows, or one in ``part``."""
    if source == "multi-digits":
        source = f"{source}:seed={seed}"
    return streams.build("multitask", source=source, experiences=part, seed=seed)[:1]


def engine_of(settings: dict[str, Any], stream: Stream, listed: Sequence[Plugin], seed: int) -> Engine:
    updates = settings["epochs"] * -(-len(stream[0].data["train"]) // settings["batch_size"])
    fall = (settings["last_learning_rate"] / settings["learning_rate"]) ** (1 / updates)

    def optimizer(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        adam = torch.optim.Adam(parameters, lr=settings["learning_rate"])

        def slower(*_: Any) -> None:
            for group in adam.param_groups:
                group["lr"] *= fall

        adam.register_step_post_hook(slower)
        return adam

    return Engine(
        (lambda: models.mlp(stream, settings["hidden"])) if "hidden" in settings else (lambda: lenet(stream)),
        optimizer,
        listed,
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        evaluate="end",
        seed=seed,
    )


def accuracies(result: Result) -> dict[str, float]:
    return {task: round(by["accuracy"], 6) for task, by in final_values(result).items()}


def one(settings: dict[str, Any], method: str, seed: int) -> dict[str, Any]:
    """Accuracy of each task after training; with a combiner also how often gradients were in conflict."""
    started = time.process_time()
    stream = stream_of(settings["source"], settings.get("part", 1), seed)
    if method == SINGLE:
        alone = single_task_baselines(lambda stream: engine_of(settings, stream, [], seed), stream)
        return {"accuracies": {task: accuracies(found)[task] for task, found in alone.items()}, "cpu_seconds": _since(started)}
    scaled = [Scaled(factors=settings["factors"])] if settings["factors"] else []
    result = engine_of(settings, stream, [*scaled, *STRATEGIES[method]()], seed).run(stream)
    met = [event for event in result.events if event["event"] == "gradients"]
    losses = [event["losses"] for event in result.events if event["event"] == "epoch"][-1]
    found: dict[str, Any] = {"accuracies": accuracies(result), "training_losses": {task: round(loss, 4) for task, loss in losses.items()}}
    if met:
        rate = np.average([event["conflict_rate"] for event in met], weights=[event["updates"] for event in met])
        found |= {"conflict_rate": round(float(rate), 4), "at": met[0]["at"]}
    return {**found, "cpu_seconds": _since(started)}


def _since(started: float) -> float:
    return round(time.process_time() - started, 1)


def summarize(rows: dict[str, dict[str, Any]]) -> None:
    """Give each row of a table its summary, over the seeds that all rows have."""
    whole = {name: row for name, row in rows.items() if row["seeds"]}
    seeds = sorted(set.intersection(*(set(row["seeds"]) for row in whole.values())), key=int)
    if not seeds or SINGLE not in whole or EQUAL not in whole:
        return
    measured = {name: [row["seeds"][seed]["accuracies"] for seed in seeds] for name, row in whole.items()}
    means = {name: {task: float(np.mean([run[task] for run in runs])) for task in runs[0]} for name, runs in measured.items()}
    # shares of the same test rows: rounded, so that equal ones are ties
    ranks = mean_ranks({name: {task: round(value, 5) for task, value in by.items()} for name, by in means.items() if name != SINGLE})
    deltas = {
        name: np.array([float(delta_m(mine, base)) for mine, base in zip(runs, measured[SINGLE], strict=True)])
        for name, runs in measured.items()
    }
    for name, runs in measured.items():
        worst = [float(worst_task(run)) for run in runs]
        more = deltas[name] - deltas[EQUAL]
        summary = {
            "seeds": len(seeds),
            "accuracies": {task: [means[name][task], _deviation([run[task] for run in runs])] for task in runs[0]},
            "worst": [float(np.mean(worst)), _deviation(worst)],
        }
        if name != SINGLE:
            summary |= {"delta_m": [float(np.mean(deltas[name])), _deviation(deltas[name])], "rank": float(ranks[name])}
        if name not in (SINGLE, EQUAL):
            half = float(stats.t.ppf(0.975, len(seeds) - 1)) * _deviation(more) / len(seeds) ** 0.5 if len(seeds) > 1 else None
            summary["against_equal"] = [float(np.mean(more)), half]
        met = [row for seed in seeds if "conflict_rate" in (row := rows[name]["seeds"][seed])]
        if met:
            summary |= {"conflict_rate": float(np.mean([run["conflict_rate"] for run in met])), "at": met[0]["at"]}
        rows[name]["summary"] = summary


def _deviation(values: Sequence[float] | np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", action="append", choices=list(STREAMS))
    parser.add_argument("--method", action="append", choices=list(STRATEGIES))
    parser.add_argument("--seeds", type=int, help="of every row, in place of 10, or those of SEEDS")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    path = Path(__file__).parent / "results" / "multitask.json"
    tables: dict[str, dict[str, Any]] = json.loads(path.read_text())["tables"] if path.exists() else {}
    tables = {table: tables.get(table, {}) for table in STREAMS}
    for table in asked.stream or STREAMS:
        rows = tables[table]
        methods = asked.method or (ON_MNIST if table == "MultiMNIST" else list(STRATEGIES))
        for method in methods:
            settings = {**STREAMS[table], "plugins": [repr(plugin) for plugin in STRATEGIES[method]()]}
            seeds_at(rows, method, settings)
        for seed in range(asked.seeds or SEEDS.get(table, 10)):
            for method in methods:
                if str(seed) not in rows[method]["seeds"]:
                    found = rows[method]["seeds"][str(seed)] = one(STREAMS[table], method, seed)
                    print(f"{table}: {method}, seed {seed}: {found}", flush=True)
                    save("multitask", {"tables": tables})
        summarize(rows)
        save("multitask", {"tables": tables})
        for method in methods:
            print(f"{table}: {method}: {rows[method].get('summary')}", flush=True)


if __name__ == "__main__":
    main()
