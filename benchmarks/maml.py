"""Learning to learn on sinusoids (Finn et al. 2017, section 5.1): how good is a network on a new one after one gradient step?

    python benchmarks/maml.py [--seeds 3]

Second-order MAML with one inner step against a network that is trained on all episodes and then fine-tuned, once at MAML's rate and
once, as in the paper, at the best of several rates (chosen on 200 episodes more). 5 points to learn from, mean squared error on the
others of 600 new episodes. Writes benchmarks/results/maml.json; a seed that is in it already, for the same settings, is not run again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import save
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from streamlearn import Engine, models, streams
from streamlearn.plugins import MAML

SHOTS, QUERIES = 5, 10
SETTINGS: dict[str, Any] = {
    "shots": SHOTS, "queries": QUERIES, "train_episodes": 20000, "epochs": 3, "meta_batch": 5, "test_episodes": 600,
    "hidden": [40, 40], "learning_rate": 1e-3, "rate": 0.01,
}  # fmt: skip
METHODS = {"MAML": 1, "pre-trained": 0}
"""Inner steps in training."""
STEPS = (0, 1, 2, 5, 10)
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)


def episodes(seed: int) -> tuple[Tensor, Tensor]:
    """The test episodes of a seed as ``(episodes, rows, 1)``, support rows first."""
    data = streams.episodes("sinusoids", shots=SHOTS, queries=QUERIES, test_episodes=200, seed=seed).evaluation(0).data
    found = [data.batch(torch.tensor([number])) for number in range(len(data))]
    return torch.stack([batch.x for batch in found]), torch.stack([batch.targets["sinusoids"] for batch in found])


def error(model: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float) -> float:
    """Mean squared error on query rows after fine-tuning each episode on its support rows; all episodes at once, without the engine."""
    start = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.mse_loss(functional_call(model, parameters, (x, "sinusoids")), y)

    def after(x: Tensor, y: Tensor) -> Tensor:
        fast = start
        for _ in range(steps):
            fast = {name: fast[name] - rate * g for name, g in grad(loss)(fast, x[:SHOTS], y[:SHOTS]).items()}
        return loss(fast, x[SHOTS:], y[SHOTS:])

    return float(vmap(after)(x, y).mean())


def one(steps: int, seed: int) -> dict[str, Any]:
    """Train a network with ``steps`` inner steps; its errors on new episodes."""
    s = SETTINGS
    sizes = {name: s[name] for name in ("shots", "queries", "train_episodes", "test_episodes")}
    stream = streams.episodes("sinusoids", seed=seed, **sizes)
    started = time.process_time()
    engine = Engine(
        models.mlp(stream, hidden=s["hidden"]),
        lambda p: torch.optim.Adam(p, lr=s["learning_rate"]),
        [MAML(steps=steps, rate=s["rate"], evaluation_steps=1)],
        epochs=s["epochs"],
        batch_size=s["meta_batch"],
        seed=seed,
        evaluate="end",
    )
    result = engine.run(stream)
    seconds = time.process_time() - started
    data = stream.evaluation(0).data
    rows = data.batch(torch.arange(len(data)))
    support = len(data) * SHOTS

    def by_episode(column: Tensor) -> Tensor:
        return torch.cat([column[:support].view(len(data), SHOTS, 1), column[support:].view(len(data), QUERIES, 1)], 1)

    x, y = by_episode(rows.x), by_episode(rows.targets["sinusoids"])
    errors = {str(k): error(result.model, x, y, k, s["rate"]) for k in STEPS}
    measured = float(result.events[-1]["value"])
    assert abs(errors["1"] / measured - 1) < 1e-4, "the engine measures otherwise than this script"
    others = episodes(seed + 1000)
    best = min(RATES, key=lambda rate: error(result.model, *others, 1, rate))
    tuned = {"rate": best, "errors": {str(k): error(result.model, x, y, k, best) for k in STEPS}}
    return {"error": measured, "errors": errors, "tuned": tuned, "cpu_seconds": round(seconds, 1)}


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over seeds of the error after one step, at MAML's rate and at the tuned one."""
    values = {"after 1 step": [r["error"] for r in runs], "after 1 step, tuned rate": [r["tuned"]["errors"]["1"] for r in runs]}
    return {name: {"mean": float(np.mean(v)), "sd": float(np.std(v, ddof=1)) if len(v) > 1 else 0.0} for name, v in values.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    torch.set_num_threads(1)
    path = Path(__file__).parent / "results" / "maml.json"
    known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    kept = known.get("runs", {}) if known.get("settings") == SETTINGS else {}
    runs: dict[str, dict[str, Any]] = {name: {"seeds": dict(kept.get(name, {}).get("seeds", {}))} for name in METHODS}
    for name, steps in METHODS.items():
        for seed in seeds:
            if str(seed) not in runs[name]["seeds"]:
                runs[name]["seeds"][str(seed)] = one(steps, seed)
                save("maml", {"settings": SETTINGS, "runs": runs})  # a run takes a minute or two: none is made twice
        runs[name]["summary"] = summary([runs[name]["seeds"][str(seed)] for seed in seeds])
        print(f"{name:12s}" + "".join(f"  {m} {s['mean']:.3f} ± {s['sd']:.3f}" for m, s in runs[name]["summary"].items()), flush=True)
    print(f"mean squared error on new episodes; written to {save('maml', {'settings': SETTINGS, 'runs': runs})}")


if __name__ == "__main__":
    main()
