"""What sharing the passes of a step saves: plugins that read one forward pass, against the same plugins each making its own.

    python benchmarks/forwards.py [--rounds 7]

A small convolutional network on overlaid digits with an unlabelled target domain; LwF twice, many teachers, DANN and CORAL. CPU time, one
thread, interleaved. Writes benchmarks/results/forwards.json.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from timing import interleaved, ratio, save
from torch import nn

from streamlearn import Engine, Plugin, hookimpl, streams
from streamlearn.core.view import Step
from streamlearn.models import Heads, Model
from streamlearn.plugins import CORAL, DANN, LwF, MultiTeacher
from streamlearn.streams import Stream


def network(stream: Stream) -> Model:
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten()]
    return Model(nn.Sequential(*layers, nn.Linear(32 * 5 * 5, 32), nn.ReLU()), Heads(32, stream.tasks))


def alone(kind: type[Plugin]) -> type[Plugin]:
    """The same plugin, blind to what others have computed: its terms come from a step of its own."""

    @hookimpl
    def collect_terms(self: Any, step: Step) -> Any:
        return kind.collect_terms(self, Step(step.run, step.batch))  # type: ignore[attr-defined]

    return type(kind.__name__, (kind,), {"collect_terms": collect_terms})


def plugins(stream: Stream, shared: bool) -> list[Plugin]:
    make = (lambda kind: kind) if shared else alone
    teachers = {task.name: network(stream) for task in stream.tasks}
    return [
        make(LwF)(), make(LwF)(name="second", temperature=1.0), make(MultiTeacher)(teachers=teachers), make(DANN)(), make(CORAL)(),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    stream = streams.multitask("digits", 2, target_domain=True)

    def run(chosen: list[Plugin]) -> None:
        Engine(network(stream), lambda p: torch.optim.SGD(p, lr=0.01), chosen, batch_size=64, evaluate="never").run(stream)

    candidates = {"shared": lambda: run(plugins(stream, True)), "alone": lambda: run(plugins(stream, False)), "none": lambda: run([])}
    seconds = interleaved(candidates, rounds)
    found = {
        "each with its own passes / shared": ratio(seconds, "alone", "shared"),
        "shared / no plugin": ratio(seconds, "shared", "none"),
    }
    print(json.dumps(found, indent=1))
    print(f"written to {save('forwards', {'rounds': rounds, **found})}")


if __name__ == "__main__":
    main()
