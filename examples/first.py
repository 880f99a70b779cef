"""The script of the README: a composed strategy on five experiences of handwritten digits.

python examples/first.py
"""

import torch

from streamlearn import Engine, models, streams
from streamlearn.plugins import EWC, Replay


def main() -> None:
    stream = streams.class_incremental("digits", experiences=5, seed=0)
    engine = Engine(
        model=models.mlp(stream, hidden=(100,)),
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.05, momentum=0.9),
        plugins=[Replay(capacity=200), EWC(strength=10.0)],
        epochs=5,
        batch_size=32,
        seed=0,
    )
    print(engine.explain())
    result = engine.run(stream)
    print(result.table())
    result.save("runs/first")


if __name__ == "__main__":
    main()
