"""In a run: beside each other and beside built-in methods, on streams whose tasks change, stopped and resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from streamlearn import Engine, Plugin, PluginInfo, hookimpl, models, streams
from streamlearn.plugins import EWC, Replay
from streamlearn.streams import Stream
from torchjd.aggregation import AlignedMTL

from streamlearn_torchjd import TorchJDAggregator, TorchJDScalarizer

X = torch.randn(48, 6, generator=torch.Generator().manual_seed(0))
Y = {"a": (X.sum(1) > 0).long(), "b": X[:, 0].clone(), "c": (X[:, 1] > X[:, 2]).long()}


class Look(Plugin):
    """Keeps what the last step had."""

    info = PluginInfo("look", "test", "Looks.", "none")
    seen: list[Any]

    @hookimpl
    def before_run(self) -> None:
        self.seen = []

    @hookimpl
    def transform_gradients(self, gradients: Any, step: Any) -> Any:
        losses = step.at().losses
        shared = {name: p for name, p in step.parameters.items() if name.startswith("encoder.")}
        rows = [torch.cat([g.flatten() for g in torch.autograd.grad(losses[t], list(shared.values()), retain_graph=True)]) for t in losses]
        self.seen.append((torch.stack(rows), torch.cat([gradients[name].flatten() for name in shared])))
        return gradients


def three_tasks(experiences: int = 1) -> Stream:
    return streams.multitask((X, Y), experiences)


def engine(*plugins: Plugin, stream: Stream, **options: Any) -> Engine:
    return Engine(models.mlp(stream, (8,)), lambda p: torch.optim.SGD(p, lr=0.05), plugins, **{"batch_size": 8, "seed": 1, **options})


def test_shared_parameters_get_what_torchjd_makes_of_the_jacobian() -> None:
    look, stream = Look(), three_tasks()
    engine(TorchJDAggregator(method="aligned_mtl"), look, stream=stream).run(stream)
    assert len(look.seen) > 3
    for matrix, found in look.seen:
        torch.testing.assert_close(found, AlignedMTL()(matrix), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("aggregator", "scalarizer"),
    [("gradvac", "famo"), ("pcd", "dwa"), ("excess_mtl", "imtl_l"), ("graddrop", "random")],
)
def test_a_run_that_is_stopped_and_resumed_is_the_same_bit_for_bit(aggregator: str, scalarizer: str, tmp_path: Path) -> None:
    stream = three_tasks(2)

    def made(progress: Any = None) -> Engine:
        pair = (TorchJDAggregator(method=aggregator), TorchJDScalarizer(method=scalarizer))
        return engine(*pair, stream=stream, epochs=2, checkpoint_every=1, progress=progress)

    class Stop(Exception):  # noqa: N818
        pass

    def stop(event: str, run: Any) -> None:
        if run.clock.update == 7:
            raise Stop

    straight = made().run(stream)
    with pytest.raises(Stop):
        made(stop).run(stream, output=tmp_path / "run")
    resumed = made().resume(tmp_path / "run", stream)
    one, two = straight.model, resumed.model
    assert one is not None
    assert two is not None
    assert resumed.events == straight.events
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


@pytest.mark.parametrize("method", ["uw", "imtl_l"])
def test_what_is_learned_moves_and_belongs_to_tasks(method: str) -> None:
    stream = three_tasks()

    class Keep(Look):
        @hookimpl
        def after_step(self, step: Any) -> None:
            self.last = {name: float(p.detach()) for name, p in step.run.parameters().items() if name.startswith("torchjd")}

        @hookimpl
        def transform_gradients(self, gradients: Any, step: Any) -> Any:
            return gradients

    keep = Keep()
    engine(TorchJDScalarizer(method=method), keep, stream=stream).run(stream)
    assert set(keep.last) == {f"torchjd_scalarizer/{task}.value" for task in "abc"}
    assert all(keep.last.values())


def test_tasks_come_one_after_another_beside_built_in_methods() -> None:
    stream = streams.task_incremental("digits", experiences=3)
    plugins = [TorchJDAggregator(method="gradvac"), TorchJDScalarizer(method="imtl_l"), Replay(capacity=60), EWC(strength=1.0)]
    result = Engine(models.mlp(stream, (16,)), lambda p: torch.optim.SGD(p, lr=0.05), plugins, batch_size=32).run(stream)
    assert float(result.matrix()[-1].mean()) > 0.6


def test_explain_counts_the_pass_of_famo() -> None:
    stream = three_tasks()
    assert "2 forward" in engine(TorchJDScalarizer(method="famo"), stream=stream).explain()
    assert "1 forward" in engine(TorchJDScalarizer(method="stch", mu=1.0), stream=stream).explain()
