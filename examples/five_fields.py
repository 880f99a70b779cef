"""Five fields in one training step: a strategy of seven methods that were published apart, starting from a learned prior.

python examples/five_fields.py

Each experience of the stream holds two tasks (which digit is at the upper left of an image, which at the lower right), labelled in a
source domain and unlabelled in a target domain of washed-out images, on which it is measured. In one step act: a task scheduler,
uncertainty weighting and PCGrad (multi-task learning), replay and EWC (continual learning), LwF (distillation) and DANN (domain
adaptation). The encoder starts from what MAML learned on episodes of other pairs of digits (meta-learning). It shows that they compose,
not that a network this small gains from all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from streamlearn import Engine, Plugin, models, streams
from streamlearn.plugins import DANN, EWC, MAML, LwF, PCGrad, Replay, TemperatureSampling, UncertaintyWeighting
from streamlearn.streams import Stream

HIDDEN = (48,)


def stream_of(seed: int = 0, experiences: int = 2) -> Stream:
    return streams.multitask("digits", experiences, target_domain=True, seed=seed)


def prior(stream: Stream, seed: int = 0, episodes: int = 200) -> Mapping[str, torch.Tensor]:
    """The weights of an encoder from which three classes are learned in one step of gradient descent, by second-order MAML."""
    batch = stream[0].data["train"].batch(torch.arange(len(stream[0].data["train"])))
    few = streams.episodes((batch.x, batch.targets["left"]), ways=3, shots=2, queries=4, train_episodes=episodes, held_out=0.4, seed=seed)
    inner = MAML(steps=1, rate=0.1)
    engine = Engine(models.mlp(few, HIDDEN), lambda p: torch.optim.Adam(p, lr=0.003), [inner], batch_size=4, evaluate="never", seed=seed)
    encoder = engine.run(few).model.encoder  # type: ignore[attr-defined]
    return {name: tensor.clone() for name, tensor in encoder.state_dict().items()}


def strategy() -> list[Plugin]:
    return [
        TemperatureSampling(temperature=2.0),
        Replay(capacity=100),
        EWC(strength=10.0),
        LwF(strength=0.5),
        DANN(strength=0.05),
        UncertaintyWeighting(),
        PCGrad(),
    ]


def engine_of(stream: Stream, start: Mapping[str, torch.Tensor], seed: int = 0, **options: Any) -> Engine:
    def model() -> models.Model:  # a function is called under the seed, so that the heads are the same in every run of it
        made = models.mlp(stream, HIDDEN)
        made.encoder.load_state_dict(start)
        return made

    return Engine(
        model, lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9), strategy(), seed=seed, **({"epochs": 3, "batch_size": 32} | options)
    )


def main() -> None:
    stream = stream_of()
    engine = engine_of(stream, prior(stream))
    print(engine.explain())
    result = engine.run(stream)
    print(result.table())
    result.save(Path("runs/five_fields"))


if __name__ == "__main__":
    main()
