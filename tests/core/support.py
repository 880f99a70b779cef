"""Small streams, nets and plugins on which the engine's rules are checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, Plugin, PluginInfo
from streamlearn.core.checkpoint import latest_checkpoint, read_checkpoint
from streamlearn.core.hooks import HOOKS
from streamlearn.core.plugin import hookimpl
from streamlearn.models import Heads, Model
from streamlearn.streams import EvaluationSet, Experience, Stream, Task
from streamlearn.streams.data import Data, JoinedData, Target
from streamlearn.streams.sources import TensorSource


class Stop(Exception):  # noqa: N818 - it is no error but the end of a test's patience
    """Raised by a test to stop a run at some place."""


def blobs(
    rows: int = 60, classes: int = 6, features: int = 6, seed: int = 3, name: str = "blobs", dtype: Any = torch.float32
) -> TensorSource:
    """Well separated classes, row i of class i mod ``classes``; drawn from a generator of its own."""
    draw = torch.Generator().manual_seed(seed)
    centres = 2.0 * torch.randn(classes, features, generator=draw, dtype=dtype)
    y = torch.arange(rows) % classes
    return TensorSource(centres[y] + 0.5 * torch.randn(rows, features, generator=draw, dtype=dtype), {"y": y}, name)


def stream_of(
    pieces: Sequence[tuple[Data | JoinedData, tuple[Task, ...]]], tasks: tuple[Task, ...], name: str = "hand", features: int = 6
) -> Stream:
    """A stream written by hand: experience i trains and is measured on piece i."""

    def experience(i: int) -> Experience:
        data, present = pieces[i]
        found: dict[str, set[int]] = {}
        for part in data.parts():
            batch = part.batch(torch.arange(len(part)))
            for task in part.tasks:
                if task.kind == "classification" and task.name in batch.targets:
                    found.setdefault(task.name, set()).update(batch.targets[task.name].tolist())
        return Experience(i, present, {"train": data}, f"part {i}", {task: tuple(sorted(known)) for task, known in found.items()})

    return Stream(
        name, len(pieces), experience, lambda i: EvaluationSet(i, pieces[i][0], f"part {i}"), tasks=tasks, input_shape=(features,),
        description={"by": "hand"}, fingerprints=("hand",),
    )  # fmt: skip


def class_stream(experiences: int = 3, rows: int = 60, classes: int = 6) -> Stream:
    """Class-incremental blobs: one task with all classes, two classes an experience."""
    source = blobs(rows, classes)
    task = Task("blobs", size=classes)
    per = classes // experiences
    pieces = []
    for i in range(experiences):
        wanted = (source.targets["y"] // per == i).nonzero().flatten()
        pieces.append((Data(source, wanted, (task,), {"blobs": Target("y")}), (task,)))
    return stream_of(pieces, (task,))


def growing_stream(sizes: Sequence[int] = (2, 4, 6), known: bool = False) -> Stream:
    """The task "t" has 2, then 4, then 6 classes; each experience brings the new ones. A second task arrives last."""
    source = blobs(60, 6)
    pieces, start = [], 0
    for size in sizes:
        task = Task("t", size=size)
        wanted = ((source.targets["y"] >= start) & (source.targets["y"] < size)).nonzero().flatten()
        pieces.append((Data(source, wanted, (task,), {"t": Target("y")}), (task,)))
        start = size
    other = Task("other", size=3)
    relabel = torch.arange(6) % 3
    pieces.append((Data(source, torch.arange(0, 60, 3), (other,), {"other": Target("y", relabel)}), (other,)))
    tasks = (Task("t", size=sizes[-1]), other) if known else (Task("t", size=sizes[0]),)
    return stream_of(pieces, tasks)


def two_task_stream(dtype: Any = torch.float32, experiences: int = 1, rows: int = 24) -> Stream:
    """Every row is asked on both tasks "a" (6 classes) and "b" (3 classes)."""
    source = blobs(rows * experiences, 6, dtype=dtype)
    a, b = Task("a", size=6), Task("b", size=3)
    targets = {"a": Target("y"), "b": Target("y", torch.arange(6) % 3)}
    pieces = [(Data(source, torch.arange(i * rows, (i + 1) * rows), (a, b), targets), (a, b)) for i in range(experiences)]
    return stream_of(pieces, (a, b))


def separate_task_stream(experiences: int = 2) -> Stream:
    """One experience holds task "a" and task "b" on different rows."""
    source = blobs(24 * experiences, 6)
    a, b = Task("a", size=6), Task("b", size=6)
    pieces = []
    for i in range(experiences):
        base = torch.arange(i * 24, (i + 1) * 24)
        joined = JoinedData([Data(source, base[:16], (a,), {"a": Target("y")}), Data(source, base[16:], (b,), {"b": Target("y")})])
        pieces.append((joined, (a, b)))
    return stream_of(pieces, (a, b))


class Net(nn.Module):
    """A plain module with everything that makes identity hard: BatchNorm, dropout."""

    def __init__(self, features: int = 6, outputs: int = 6, dropout: float = 0.3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(features, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(dropout))
        self.out = nn.Linear(12, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(x))


def net(seed: int = 0, **options: Any) -> Net:
    """The same `Net` for the same seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(**options)


def sgd(**options: Any) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """A factory of SGD with momentum and weight decay."""
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01} | options
    return lambda parameters: torch.optim.SGD(parameters, **settings)


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Adam with weight decay."""
    return torch.optim.Adam(parameters, lr=0.01, weight_decay=0.01)


OPTIMIZERS = {"sgd": sgd(momentum=0.0, weight_decay=0.0), "momentum": sgd(), "adam": adam}


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal bit for bit."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)


def final(engine: Engine, stream: Stream, **options: Any) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Final weights and buffers of a run, and its events."""
    result = engine.run(stream, **options)
    return {name: value.clone() for name, value in result.model.state_dict().items()}, result.events


class Spy(Plugin):
    """Keeps the run of the last `before_run`, so that a test can look inside."""

    info = PluginInfo("spy", "test", "Looks.", "none")

    @hookimpl
    def before_run(self, run: Any) -> None:
        self.run = run


def probe(name: str = "probe", **hooks: Callable[..., Any]) -> Plugin:
    """A plugin instance whose hooks are the given functions; each takes exactly the hook's arguments that it names."""
    made: dict[str, Any] = {"info": PluginInfo(name, "test", "A probe.", "none")}
    for hook, function in hooks.items():
        assert hook in HOOKS
        made[hook] = _method(hook, function)
    return type(name.title().replace("_", ""), (Plugin,), made)()


def _method(hook: str, function: Callable[..., Any]) -> Any:
    arguments = ", ".join(function.__code__.co_varnames[: function.__code__.co_argcount])
    space: dict[str, Any] = {"function": function}
    exec(f"def {hook}(self{', ' if arguments else ''}{arguments}): return function({arguments})", space)
    return hookimpl(space[hook])


def stop_at(update: int, event: str = "step") -> Callable[[str, Any], None]:
    """A progress callback that stops the run after an update."""

    def progress(happened: str, run: Any) -> None:
        if happened == event and run.clock.update == update:
            raise Stop

    return progress


def stopped_or_straight(
    engine: Callable[..., Engine], stream: Callable[[], Stream], folder: Path, stop: int | None = None
) -> tuple[dict[str, Any], str]:
    """The last checkpoint, without its times, and the log of a run that goes through, or is stopped after update ``stop`` and resumed."""
    if stop is None:
        engine().run(stream(), output=folder)
    else:
        with pytest.raises(Stop):
            engine(progress=stop_at(stop)).run(stream(), output=folder)
        engine().resume(folder, stream())
    state = read_checkpoint(latest_checkpoint(folder / "checkpoints")[0])
    state.pop("times")
    return state, (folder / "events.jsonl").read_text()


def resumes_bit_for_bit(engine: Callable[..., Engine], stream: Stream, update: int, folder: Path) -> None:
    """A run that is stopped after ``update`` and resumed ends with the weights and events of one that goes through."""
    straight, events = final(engine(), stream, output=folder / "straight")
    with pytest.raises(Stop):
        engine(progress=stop_at(update)).run(stream, output=folder / "cut")
    resumed = engine().resume(folder / "cut", stream)
    assert resumed.model is not None
    assert same(dict(resumed.model.state_dict()), straight)
    assert resumed.events == events


def keeps_its_state(engine: Callable[..., Engine], stream: Stream, updates: Iterable[int], folder: Path) -> None:
    """The last checkpoint of a run that is stopped after each of ``updates`` and resumed is that of one that goes through."""
    engine().run(stream, output=folder / "straight")
    for update in updates:
        cut = folder / str(update)
        with pytest.raises(Stop):
            engine(progress=stop_at(update)).run(stream, output=cut)
        engine().resume(cut, stream)
        states = [read_checkpoint(latest_checkpoint(f / "checkpoints")[0]) for f in (folder / "straight", cut)]
        for what in ("model", "modules", "optimization", "plugins"):
            assert same(states[0][what], states[1][what]), (update, what)


def smooth(tasks: Iterable[Task], dtype: torch.dtype = torch.float64, width: int = 5) -> Model:
    """A small net that is twice differentiable everywhere; the same one each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Model(nn.Sequential(nn.Linear(6, width), nn.Tanh()), Heads(width, tasks)).to(dtype)
