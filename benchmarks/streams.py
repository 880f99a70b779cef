"""What streams cost: batches a second against Avalanche's own loader on the same rows, and the memory of a long stream.

    STREAMLEARN_DATA=... python benchmarks/streams.py [--rounds 5] [--only batches|memory]

Batches: one epoch of the first experience of Split MNIST, and of the second of permuted MNIST, with the loader that Avalanche's
strategies use, and with the one of the engine; ratios of CPU time, one thread, interleaved. Memory: resident bytes in a process of its
own, over those of MNIST alone. Writes benchmarks/results/streams.json.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from timing import interleaved, ratio, save

from streamlearn import streams

DATA = os.environ.get("STREAMLEARN_DATA", "")
EXPERIENCES = 1000
BATCH_SIZES = (32, 128)


def theirs(experience: Any, batch_size: int) -> int:
    """One epoch with the loader that `SupervisedTemplate.make_train_dataloader` makes."""
    from avalanche.benchmarks.utils.data_loader import TaskBalancedDataLoader

    loader = TaskBalancedDataLoader(experience.dataset.train(), oversample_small_groups=True, batch_size=batch_size, shuffle=True)
    return sum(len(batch[0]) for batch in loader)


def ours(experience: streams.Experience, batch_size: int) -> int:
    """One epoch as the engine reads it."""
    data = experience.data["train"]
    return sum(len(batch) for batch in data.in_order(torch.randperm(len(data)), batch_size))


def batches(rounds: int) -> dict[str, Any]:
    from avalanche.benchmarks.classic import PermutedMNIST, SplitMNIST

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        split = SplitMNIST(5, return_task_id=False, seed=0, dataset_root=DATA)
        permuted = PermutedMNIST(3, seed=0, dataset_root=DATA)
    cases = {
        "split MNIST": (split.train_stream[0], streams.from_avalanche(split)[0], None),
        "permuted MNIST": (
            permuted.train_stream[1],
            streams.from_avalanche(permuted)[1],
            streams.domain_incremental("mnist", 3)[1],
        ),
    }
    found: dict[str, Any] = {}
    for name, (avalanche, converted, own) in cases.items():
        native = own or streams.class_incremental("mnist", classes=[_classes(converted)])[0]
        for size in BATCH_SIZES:
            candidates = {
                "avalanche": lambda a=avalanche, s=size: theirs(a, s),
                "streamlearn": lambda e=native, s=size: ours(e, s),
                "from_avalanche": lambda e=converted, s=size: ours(e, s),
            }
            rows = {what: work() for what, work in candidates.items()}
            assert len(set(rows.values())) == 1, f"the same rows are read: {rows}"
            seconds = interleaved(candidates, rounds)
            found[f"{name}, batch {size}"] = {
                "avalanche / streamlearn": ratio(seconds, "avalanche", "streamlearn"),
                "avalanche / from_avalanche": ratio(seconds, "avalanche", "from_avalanche"),
            }
    return found


def _classes(experience: streams.Experience) -> list[int]:
    return [*next(iter(experience.classes.values()))]


def memory() -> dict[str, Any]:
    """Measured in a process that has done nothing else."""
    answer = subprocess.run([sys.executable, __file__, "--measure-memory"], check=True, capture_output=True, text=True)
    return dict(json.loads(answer.stdout.splitlines()[-1]))


def measure_memory() -> dict[str, Any]:
    import psutil

    from streamlearn.streams.sources import named_source

    process = psutil.Process()

    def resident() -> int:
        gc.collect()
        return int(process.memory_info().rss)

    torch.zeros(1).index_select(0, torch.tensor([0]))
    streams.domain_incremental("digits", 2)[1].data["train"].batch(torch.arange(32))  # imports and first uses are not what is measured
    start = resident()
    sources = named_source("mnist")
    alone = resident() - start
    held = sum(column.nbytes for source in sources for column in (source._x, *source.targets.values()))  # type: ignore[union-attr]
    stream = streams.domain_incremental("mnist", EXPERIENCES, seed=0)
    kept = list(stream)  # all experiences at once, as nobody needs them
    built = resident() - start
    del kept
    walked = []
    for experience in stream:
        experience.data["train"].batch(torch.arange(128))
        stream.evaluation(experience.index).data.batch(torch.arange(128))
        if (experience.index + 1) % 100 == 0:
            walked.append(resident() - start)
    return {
        "bytes of MNIST's tensors": held,
        "loaded / MNIST's tensors": alone / held,
        "stream built / MNIST's tensors": built / held,
        "walked 400 / MNIST's tensors": walked[3] / held,
        "walked 1000 / MNIST's tensors": walked[-1] / held,
        "walked 1000 / walked 400": walked[-1] / walked[3],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", choices=("batches", "memory"))
    parser.add_argument("--measure-memory", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.measure_memory:
        print(json.dumps(measure_memory()))
        return
    if not DATA:
        sys.exit("STREAMLEARN_DATA is not set: it names the folder that holds MNIST as torchvision lays it out")
    results = Path(__file__).parent / "results" / "streams.json"
    found = json.loads(results.read_text()) if results.exists() else {}
    parts = {"batches": lambda: batches(asked.rounds), "memory": memory}
    for name, work in parts.items():
        if asked.only in (None, name):
            found[name] = work()
            print(json.dumps({name: found[name]}, indent=1))
    print(f"written to {save('streams', {**found, 'rounds': asked.rounds})}")


if __name__ == "__main__":
    main()
