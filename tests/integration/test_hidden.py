"""What is hidden from training cannot be reached by it: not from anything that any hook is handed.

A plugin that implements every hook walks over all that it is given: attributes, slots, containers, closures, partials, bound methods,
frames of generators, what autograd has saved. It asks every source that it meets for all rows, and every stream for all experiences.
Modules, classes and the globals of functions are left out: through them the whole process can be reached.
"""

from __future__ import annotations

import functools
import gc
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from streamlearn import Engine, streams
from streamlearn.core.hooks import HOOKS
from streamlearn.core.supervision import unreduced
from streamlearn.errors import DataError
from streamlearn.plugins import EWC, LwF, Replay
from streamlearn.streams import Stream
from streamlearn.streams.data import Data, JoinedData
from streamlearn.streams.sealing import Sealed
from tests.core.support import probe, sgd

CLASSES, WINDOW = 7, 12
OF_LABELS = frozenset({"provide_task_losses", "provide_weighting", "provide_gradient_combination"})
PLAIN = (types.ModuleType, type, types.FrameType, types.CodeType, str, bytes, int, float, complex, range, torch.dtype, torch.device)


# ---------------------------------------------------------------------------------------------------- the walk


def walk(start: Any, beyond: tuple[Any, ...] = ()) -> Iterator[Any]:
    """Every object that can be reached from ``start``, but not through ``beyond``."""
    seen, todo, kept = {id(item) for item in beyond}, [start], []
    while todo:
        item = todo.pop()
        if item is None or isinstance(item, PLAIN) or id(item) in seen:
            continue
        seen.add(id(item))
        kept.append(item)  # alive, so that no number is used twice
        yield item
        todo += list(_next(item))


def _next(item: Any) -> Iterator[Any]:
    if isinstance(item, Tensor):
        yield from (item.grad if item.is_leaf else None, item._base, item.grad_fn)
        yield from getattr(item, "__dict__", {}).values()
    elif hasattr(item, "next_functions"):  # a node of autograd
        yield from (function for function, _ in item.next_functions)
        yield from _saved(item)
    elif isinstance(item, types.FunctionType):
        yield from _cells(item)
        yield from (item.__defaults__, item.__kwdefaults__, item.__dict__)
    elif isinstance(item, types.GeneratorType):
        yield from () if item.gi_frame is None else item.gi_frame.f_locals.values()
    elif isinstance(item, weakref.ref):
        yield item()
    elif isinstance(item, functools.partial):
        yield from (item.func, item.args, item.keywords)
    elif isinstance(item, Stream):
        yield from gc.get_referents(item)
        yield from () if item.endless else iter(item)
    else:
        yield from gc.get_referents(item)


def _cells(function: types.FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue


def _saved(node: Any) -> Iterator[Any]:
    for name in dir(node):
        if name.startswith("_saved_"):
            try:
                yield getattr(node, name)
            except RuntimeError:  # freed
                continue


def numbers(item: Any) -> np.ndarray | None:
    """The whole numbers that ``item`` holds as such, if it is a tensor, an array or a list."""
    if isinstance(item, Tensor):
        found = item.detach().cpu().flatten().numpy()
    elif isinstance(item, np.ndarray):
        found = item.ravel()
    elif isinstance(item, (list, tuple)) and len(item) >= WINDOW and all(isinstance(value, (int, float)) for value in item):
        found = np.asarray(item)
    else:
        return None
    if found.dtype.kind not in "biuf" or len(found) < WINDOW or not np.isfinite(found).all():
        return None
    return found.astype(np.int64) if (found == np.round(found)).all() else None


def hashes(values: np.ndarray) -> np.ndarray:
    """A number for each run of ``WINDOW`` neighbours, which tells what they are and in which order."""
    powers = np.array([pow(1_000_003, k, 2**63) for k in range(WINDOW)], np.int64)
    with np.errstate(over="ignore"):
        return np.lib.stride_tricks.sliding_window_view(values, WINDOW) @ powers


class Secret:
    """Labels that are hidden: of the rows ``hidden`` of a source called ``name``, in the order in which they come up.

    Args:
        name: of the source.
        y: the true labels of all its rows.
        orders: rows in orders in which hidden labels might lie side by side.
    """

    def __init__(self, name: str, y: Tensor, *orders: Tensor) -> None:
        self.name, self.y = name, y
        self.hidden = torch.cat(orders).unique()
        assert len(self.hidden) >= 2 * WINDOW
        assert len(y[self.hidden].unique()) >= 3, "too few to tell truth from chance"
        runs = [y[order].numpy() for order in orders if len(order) >= WINDOW]
        self._windows = np.unique(np.concatenate([hashes(run.astype(np.int64)) for run in runs]))

    def is_in(self, item: Any) -> bool:
        """Whether ``item`` gives hidden labels away."""
        found = numbers(item)
        if found is not None:
            at_rows = len(found) == len(self.y) and (found[self.hidden] == self.y[self.hidden].numpy()).mean() > 0.6
            return bool(at_rows) or bool(np.isin(hashes(found), self._windows).any())
        if isinstance(item, Dataset):
            return True
        return not isinstance(item, type) and callable(getattr(item, "take", None)) and hasattr(item, "fingerprint") and self._known(item)

    def _known(self, source: Any) -> bool:
        if source.name != self.name:
            return False
        for rows in (torch.arange(len(source)), self.hidden.flip(0)):
            given = source.take(rows).targets.values()
            if any(bool(column[torch.isin(rows, self.hidden)].any()) for column in given):
                return True
        return False


def neutral(look: Callable[[str, dict[str, Any]], None]) -> Any:
    """A plugin that implements every hook, changes nothing, and lets ``look`` at what it is handed."""
    answers: dict[str, Callable[..., Any]] = {
        "transform_stream": lambda stream, run: stream,
        "transform_model": lambda model, run: model,
        "collect_modules": lambda run: {},
        "collect_teachers": lambda run: {},
        "collect_taps": lambda run: {},
        "transform_phases": lambda phases, experience, run: phases,
        "provide_task_probabilities": lambda step: dict.fromkeys(_tasks(step.run), 1.0),
        "transform_batch": lambda batch, step: batch,
        "transform_supervision": lambda supervision, step: supervision,
        "provide_task_losses": lambda supervision, step: [unreduced(record, step.run.tasks) for record in supervision],
        "collect_terms": lambda step: {task: 0.01 * step.outputs[task].square().mean() for task in step.batch.tasks},
        "around_objective": lambda objective, step: objective(step),
        "provide_weighting": lambda losses, step: sum(losses.values()),
        "provide_gradient_combination": lambda rows, step: dict.fromkeys(rows.names, 1.0),
        "transform_gradients": lambda gradients, step: gradients,
        "around_update": lambda update, gradients, step: update(gradients),
        "provide_predictions": lambda batch, evaluation: {task: evaluation.run.model(batch.x, task) for task in batch.tasks},
        "collect_metrics": lambda run: {},
    }
    return probe("walker", **{hook: _looking(hook, answers.get(hook), look) for hook in HOOKS})


def _tasks(run: Any) -> list[str]:
    data = run.experience.data[run.experience.main_role]
    return [task.name for part in data.parts() for task in part.tasks]


def _looking(hook: str, answer: Any, look: Callable[[str, dict[str, Any]], None]) -> Any:
    from streamlearn.core.registration import arguments_of

    names = arguments_of(hook)
    space: dict[str, Any] = {"look": look, "answer": answer or (lambda *given: None)}
    arguments = ", ".join(names)
    given = ", ".join(f"{name!r}: {name}" for name in names)
    exec(f"def hook({arguments}):\n    look({hook!r}, {{{given}}})\n    return answer({arguments})", space)
    return space["hook"]


class Leaks:
    """Walks what each hook is handed, when it is first called in each experience."""

    def __init__(self, *secrets: Secret) -> None:
        self.secrets, self.found, self.walked = secrets, set[str](), dict[str, int]()
        self.plugin = neutral(self.look)

    def look(self, hook: str, given: dict[str, Any]) -> None:
        run = given.get("run") or getattr(given.get("step") or given.get("evaluation"), "run", None)
        place = f"{hook} {run.clock.experience}"
        if place in self.walked:
            return
        self.walked[place] = 0
        for item in walk(given, (self, self.plugin)):
            self.walked[place] += 1
            if isinstance(item, Stream):
                self._ask(item, place)
            if any(secret.is_in(item) for secret in self.secrets):
                self.found.add(f"{place}: {type(item).__name__}")

    def _ask(self, stream: Stream, place: str) -> None:
        for question in (stream.evaluation, stream.evaluation_set, stream.truth):
            try:
                if question(0) is not None:
                    self.found.add(f"{place}: {question}")
            except DataError as error:
                assert "out of reach" in str(error)  # noqa: PT017 - an answer is a leak, and so it is collected

    def check(self, silent: frozenset[str] = frozenset()) -> None:
        """Every hook but the ``silent`` ones has been walked from, and nothing hidden was found."""
        assert not self.found
        called = {place.split()[0] for place in self.walked}
        assert called == set(HOOKS) - silent, "a hook that was not called proves nothing"
        assert min(self.walked.values()) > 50


# ---------------------------------------------------------------------------------------------------- the data


def arrays(rows: int = 140, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows whose inputs tell their class, in random order."""
    draw = torch.Generator().manual_seed(seed)
    y = torch.cat([torch.arange(CLASSES), torch.randint(0, CLASSES, (rows - CLASSES,), generator=draw)])
    centres = 3 * torch.randn(CLASSES, 5, generator=torch.Generator().manual_seed(9))
    return centres[y] + 0.3 * torch.randn(rows, 5, generator=draw), y


class Mapped(Dataset[Any]):
    """A map-style data set, which keeps its labels in an attribute or only in its rows."""

    def __init__(self, x: Tensor, y: Tensor, tells: bool) -> None:
        self._x, self._y = x, y
        if tells:
            self.targets = y.tolist()

    def __len__(self) -> int:
        return len(self._x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self._x[i], int(self._y[i])


KINDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "arrays": lambda x, y: (x, y),
    "numpy": lambda x, y: (x.numpy(), y.numpy()),
    "data set that keeps targets": lambda x, y: Mapped(x, y, True),
    "data set": lambda x, y: Mapped(x, y, False),
}


def train_rows(stream: Stream, role: str = "train") -> list[Tensor]:
    return [part.indices for experience in stream if role in experience.data for part in experience.data[role].parts()]


def hidden_rows(stream: Stream, whole: Stream) -> list[Tensor]:
    """The rows of each experience of ``stream`` that have no label in any, in orders in which their labels might lie."""
    shown: set[int] = set()
    for experience in stream:
        for data in experience.data.values():
            for part in data.parts():
                for task in part.targets:
                    shown |= set(part.indices[part.labelled.get(task, torch.ones(len(part), dtype=torch.bool))].tolist())
    hidden = [order[[row not in shown for row in order.tolist()]] for order in train_rows(whole)]
    return [*hidden, torch.cat(hidden), torch.cat(hidden).sort().values]


def run(stream: Stream, *plugins: Any, **options: Any) -> Any:
    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, CLASSES))

    return Engine(model, sgd(lr=0.05), list(plugins), **({"batch_size": 16, "epochs": 3} | options)).run(stream)


def accuracy_by_hand(result: Any, x: Tensor, y: Tensor) -> float:
    model = result.model.eval()
    return float((model(x, "class").argmax(1) == y).float().mean())


# ---------------------------------------------------------------------------------------------------- the walk is no fake


def test_the_walk_finds_what_there_is() -> None:
    class Slotted:
        __slots__ = ("inside",)

    x, y = arrays()
    secret = Secret("data", y, torch.arange(len(y)))
    slotted = Slotted()
    slotted.inside = {"a": (y,)}

    def closure() -> Tensor:
        return y

    def generator() -> Iterator[int]:
        local = y
        yield 0
        yield int(local[0])

    running = generator()
    next(running)
    loss = nn.functional.cross_entropy(torch.zeros(len(y), CLASSES, requires_grad=True), y)
    for holder in (
        slotted, closure, running, functools.partial(min, y), [y.tolist()], y.numpy().astype(np.uint8), y[20:50].double(), loss,
        types.MethodType(lambda self: None, y), Mapped(x, y, False), streams.TensorSource(x, {"y": y}, "data"), weakref.ref(y),
        streams.data_incremental((x, y), 2), {1: iter([y])}, torch.stack([y, y])[:, :3],
    ):  # fmt: skip
        assert any(secret.is_in(item) for item in walk(holder)), holder
    for innocent in (x, torch.arange(140), torch.zeros(140, dtype=torch.int64), Sealed(y), [1, 2, 3], y.flip(0) % 3):
        assert not any(secret.is_in(item) for item in walk(innocent, (y,))), innocent


def test_labels_that_are_not_hidden_are_found() -> None:
    x, y = arrays()
    whole = streams.data_incremental((x, y), 2, test=arrays(40, 1))
    leaks = Leaks(Secret("data", y, *train_rows(whole)))
    run(whole, leaks.plugin, epochs=1)
    hooks = {place.split()[0] for place in leaks.found}
    assert {"before_experience", "before_step", "after_step", "transform_batch", "after_run"} <= hooks


# ---------------------------------------------------------------------------------------------------- policies


@pytest.mark.parametrize(("kind", "validated"), [*((kind, False) for kind in KINDS), ("arrays", True)])
def test_labels_outside_a_sparse_choice(kind: str, validated: bool) -> None:
    (x, y), (test_x, test_y) = arrays(), arrays(60, 1)
    whole = streams.data_incremental(KINDS[kind](x, y), 2, test=(test_x, test_y))
    whole = streams.validation(whole, 0.2) if validated else whole
    stream = streams.label_policy(whole, "sparse", per_class=2)
    leaks = Leaks(
        Secret("data", y, *hidden_rows(stream, whole)), Secret("data/test", test_y, torch.arange(60))
    )  # fmt: skip
    result = run(stream, leaks.plugin, Replay(capacity=20), LwF(), EWC(strength=1.0))
    leaks.check()
    assert result.accuracy_matrix[-1, 0] == pytest.approx(accuracy_by_hand(result, test_x, test_y))


@pytest.mark.parametrize("kind", ["arrays", "data set that keeps targets"])
@pytest.mark.parametrize("options", [{"policy": "never"}, {"policy": "delayed", "steps": 2}])
def test_labels_that_arrive_late_or_never(kind: str, options: dict[str, Any]) -> None:
    (x, y), (test_x, test_y) = arrays(), arrays(60, 1)
    whole = streams.data_incremental(KINDS[kind](x, y), 4, test=(test_x, test_y))
    stream = streams.label_policy(whole, **options)
    late = train_rows(whole)[-2:] if "steps" in options else train_rows(whole)
    assert not set(torch.cat(late).tolist()) & {row for order in train_rows(stream) for row in order.tolist()}
    leaks = Leaks(
        Secret("data", y, *late, torch.cat(late), torch.cat(late).sort().values), Secret("data/test", test_y, torch.arange(60))
    )  # fmt: skip
    result = run(stream, leaks.plugin, epochs=1)
    leaks.check(OF_LABELS if options["policy"] == "never" else frozenset())
    assert result.accuracy_matrix[-1, 0] == pytest.approx(accuracy_by_hand(result, test_x, test_y))
    scored = [event for event in result.events if event["event"] == "prequential"]
    assert [event["count"] for event in scored] == [len(order) for order in train_rows(whole)], "every row is predicted once"


def test_predictions_are_scored_against_the_truth() -> None:
    x, y = arrays()
    whole = streams.data_incremental((x, y), 4, test=arrays(60, 1))
    told = [event for event in run(streams.label_policy(whole, "never")).events if event["event"] == "prequential"]
    result = run(streams.label_policy(whole, "never"))
    rows = torch.cat(train_rows(whole))
    average = sum(event["value"] * event["count"] for event in told) / len(rows)
    assert average == pytest.approx(accuracy_by_hand(result, x[rows], y[rows])), "a model that never moves is as good before as after"
    late = [event for event in run(streams.label_policy(whole, "delayed", steps=1)).events if event["event"] == "prequential"]
    assert late[0]["value"] == told[0]["value"], "nothing has been learnt yet"
    assert late[-1]["value"] > told[-1]["value"] + 0.3


def test_few_labels_teach_and_many_are_measured() -> None:
    (x, y), test = arrays(), arrays(60, 1)
    stream = streams.label_policy(streams.data_incremental((x, y), 1, test=test), "sparse", per_class=3)
    result = run(stream, epochs=20)
    assert result.accuracy_matrix[-1, 0] == pytest.approx(accuracy_by_hand(result, *test))
    assert result.accuracy_matrix[-1, 0] > 0.7


# ---------------------------------------------------------------------------------------------------- with plugins


def test_rows_without_a_label_are_replayed_without_one() -> None:
    x, y = arrays()
    stream = streams.label_policy(streams.data_incremental((x, y), 2, test=arrays(40, 1)), "sparse", per_class=1)
    shown = {int(row) for piece in pieces(stream) for row in piece.indices[piece.labelled["class"]]}
    replayed: dict[int, tuple[bool, int]] = {}

    def look(step: Any) -> None:
        rows = step.batch.rows("memory")
        labelled = step.batch.labelled_rows("class")[rows].tolist()
        labels = step.batch.targets["class"][rows].tolist()
        replayed.update(zip(step.batch.index[rows].tolist(), zip(labelled, labels, strict=True), strict=True))

    for policy in ("reservoir", "class_balanced"):
        replayed.clear()
        run(stream, Replay(capacity=30, policy=policy), probe("look", before_step=look))
        assert {known for known, _ in replayed.values()} == {True, False}
        for row, (known, label) in replayed.items():
            assert (known, label) == ((True, int(y[row])) if row in shown else (False, 0))


@pytest.mark.parametrize("plugins", [[], [EWC(strength=1.0)], [LwF()], [Replay(capacity=10), EWC(strength=1.0), LwF()]])
def test_batches_without_any_label_train_nothing(plugins: list[Any]) -> None:
    stream = streams.label_policy(streams.data_incremental(arrays(), 1, test=arrays(40, 1)), "sparse", per_class=1)
    moved: dict[bool, set[bool]] = {True: set(), False: set()}
    before: dict[str, Tensor] = {}

    def remember(step: Any) -> None:
        before.update(step.run.snapshot())

    def compare(step: Any) -> None:
        same = all(torch.equal(before[name], value) for name, value in step.run.snapshot().items())
        moved[bool(step.batch.labelled_rows("class").any())].add(not same)

    run(stream, *plugins, probe("watch", before_step=remember, after_step=compare), batch_size=4)
    assert moved == {True: {True}, False: {False}}


# ---------------------------------------------------------------------------------------------------- other hidden labels


@pytest.mark.parametrize("source_free", [False, True])
def test_labels_of_a_target_domain(source_free: bool) -> None:
    (x, y), (there, secret) = arrays(), arrays(90, 2)
    stream = streams.adaptation((x, y), (there, secret), source_free=source_free)
    leaks = Leaks(Secret("target", secret, torch.arange(90)))

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 12), nn.ReLU(), nn.Linear(12, CLASSES))

    result = Engine(model, sgd(), [leaks.plugin], batch_size=16).run(stream)
    leaks.check()
    assert {event["count"] for event in result.events if event["event"] == "evaluation" and event["set_name"] == "target"} == {90}


@pytest.mark.parametrize(
    ("kind", "builder"),
    [*((kind, streams.data_incremental) for kind in KINDS), ("arrays", streams.class_incremental), ("arrays", streams.domain_incremental)],
)
def test_labels_of_test_rows_that_were_split_off(kind: str, builder: Callable[..., Stream]) -> None:
    x, y = arrays(160)
    stream = builder(KINDS[kind](x, y), 2, test_fraction=0.3)
    held_out = {row for k in range(len(stream.sets)) for part in stream.evaluation_set(k).data.parts() for row in part.indices.tolist()}
    leaks = Leaks(Secret("data", y, torch.tensor(sorted(held_out))))
    run(stream, leaks.plugin, Replay(capacity=20), epochs=1)
    leaks.check()


@pytest.mark.parametrize(
    "then",
    [
        lambda s: streams.online(s, 20),
        lambda s: streams.augmented(s, lambda row: row + 0.1 * torch.randn(5)),
        lambda s: s[1:],
        lambda s: streams.label_policy(s, "sparse", per_class=1),
        lambda s: streams.label_policy(s, "delayed", steps=1),
    ],
)
def test_labels_stay_hidden_under_other_operators(then: Callable[[Stream], Stream]) -> None:
    x, y = arrays()
    whole = streams.data_incremental((x, y), 3, test=arrays(40, 1))
    stream = then(streams.label_policy(whole, "sparse", per_class=2))
    leaks = Leaks(Secret("data", y, *hidden_rows(stream, whole)))
    run(stream, leaks.plugin, epochs=1)
    assert not leaks.found


def test_batches_of_provide_predictions_carry_no_label() -> None:
    met: set[str] = set()

    def predictions(batch: Any, evaluation: Any) -> dict[str, Tensor]:
        met.update(batch.roles)
        assert not batch.targets
        assert not batch.labelled
        return {"class": evaluation.run.model(batch.x, "class")}

    whole = streams.data_incremental(arrays(), 2, test=arrays(40, 1))
    run(streams.label_policy(whole, "delayed", steps=1), probe("predictor", provide_predictions=predictions), epochs=1)
    assert met == {"evaluation", "target", "train"}, "rows of evaluations, and those that are predicted before they are learnt"


def pieces(stream: Stream) -> list[Data]:
    return [part for experience in stream for data in experience.data.values() for part in data.parts()]


def test_no_piece_of_a_policys_stream_knows_more_than_it_shows() -> None:
    x, y = arrays()
    whole = streams.validation(streams.domain_incremental((x, y), 3, transform=[torch.neg, torch.abs, torch.neg]), 0.2)
    for stream in (streams.label_policy(whole, "sparse", fraction=0.2), streams.label_policy(whole, "delayed", steps=1)):
        for piece in pieces(stream):
            assert not isinstance(piece, JoinedData)
            known = torch.zeros(len(y), dtype=torch.bool)
            for task in piece.targets:
                known[piece.indices[piece.labelled.get(task, torch.ones(len(piece), dtype=torch.bool))]] = True
            for column in piece.source.take(torch.arange(len(y))).targets.values():
                assert not bool(column[~known].any())
