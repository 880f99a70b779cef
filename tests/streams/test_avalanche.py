"""Avalanche's benchmarks as streams and back, against Avalanche itself."""

from __future__ import annotations

import functools
import importlib
import json
import os
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from streamlearn import Engine, models, streams
from streamlearn.errors import ConfigurationError, DataError, MissingExtraError, UnknownNameError
from streamlearn.streams import Stream, TensorSource, from_avalanche, to_avalanche
from streamlearn.streams.avalanche.exporting import _library
from streamlearn.streams.avalanche.rows import ItemSource

real_data = pytest.mark.skipif("STREAMLEARN_DATA" not in os.environ, reason="STREAMLEARN_DATA is not set: it names the folder of real data")


@functools.cache
def library(module: str) -> Any:
    """A module of Avalanche, whose imports warn of much that is not ours."""
    with warnings.catch_warnings(record=True):  # recorded, because Avalanche forces some through every filter
        warnings.simplefilter("ignore")
        return pytest.importorskip(f"avalanche.{module}")


def quietly(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    with warnings.catch_warnings(record=True):  # recorded, because Avalanche forces some through every filter
        warnings.simplefilter("ignore")
        return function(*args, **options)


@pytest.fixture(autouse=True, scope="module")
def _installed() -> None:
    library("benchmarks")


def scenarios() -> Any:
    return library("benchmarks")


class Pairs(TensorDataset):
    """Tensors with the attribute that Avalanche looks for; counts the rows that are read."""

    def __init__(self, rows: int, classes: int = 6, first: int = 0) -> None:
        x = torch.arange(first, first + rows, dtype=torch.float32).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous()
        super().__init__(x, torch.arange(rows) % classes)
        self.targets = self.tensors[1].tolist()
        self.read = 0

    def __getitem__(self, row: int) -> Any:
        self.read += 1
        return super().__getitem__(row)


def pair() -> tuple[Pairs, Pairs]:
    return Pairs(48), Pairs(24, first=1000)


def nc(**options: Any) -> Any:
    return quietly(scenarios().nc_benchmark, *pair(), 3, **{"task_labels": False, "seed": 0, **options})


def class_incremental_new() -> Any:
    train, test = map(scenarios().utils.as_classification_dataset, pair())
    return scenarios().class_incremental_benchmark({"train": train, "test": test}, num_experiences=3, seed=1)


def online_new(**options: Any) -> Any:
    bench, base = scenarios(), class_incremental_new()
    cut = bench.split_online_stream(base.train_stream, 5, seed=0, **options)
    return bench.scenarios.CLScenario([cut, base.test_stream])


def mixed_labels() -> Any:
    """Rows of two tasks in one experience, each experience a data set of its own."""
    make = library("benchmarks.utils.classification_dataset")._make_taskaware_tensor_classification_dataset
    first = make(torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1]), task_labels=[7, 2, 7, 2, 7])
    second = make(torch.randn(4, 3), torch.tensor([0, 1, 2, 3]), task_labels=4)
    test = make(torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 3]), task_labels=[2, 2, 7, 7, 2, 4])
    return scenarios().benchmark_from_datasets(train=[first, second], test=[test])


BENCHMARKS: dict[str, Callable[[], Any]] = {
    "nc": nc,
    "nc with task labels": lambda: nc(task_labels=True),
    "nc from zero": lambda: nc(task_labels=True, class_ids_from_zero_in_each_exp=True),
    "nc renumbered": lambda: nc(class_ids_from_zero_from_first_exp=True),
    "ni": lambda: quietly(scenarios().ni_benchmark, *pair(), 3, seed=0),
    "class incremental": class_incremental_new,
    "task incremental": lambda: scenarios().task_incremental_benchmark(class_incremental_new()),
    "new instances": lambda: scenarios().new_instances_benchmark(
        *map(scenarios().utils.as_classification_dataset, pair()), num_experiences=4, seed=0
    ),
    "online": online_new,
    "online scenario": lambda: quietly(scenarios().OnlineCLScenario, list(nc().streams.values()), experience_size=5),
    "mixed labels": mixed_labels,
}


def compare(benchmark: Any, stream: Stream, rows: int | None = None) -> None:
    """Counts, classes, task labels, and inputs and targets row by row, with what Avalanche gives; ``rows`` of each experience."""
    names = benchmark.streams
    train = list(names.get("train") or names["train_online"])
    test = list(names.get("test") or names["original_test"])
    assert len(stream) == len(train)
    numbers = sorted({label for e in [*train, *test] for label in getattr(e.dataset, "targets_task_labels", [0])})
    label_of = {task.name: label for task, label in zip(stream.tasks, numbers, strict=True)}
    for i, experience in enumerate(train):
        data = stream[i].data["train"]
        same_rows(experience.dataset.train(), data, label_of, rows)
        found = {c for classes in stream[i].classes.values() for c in classes}
        assert found == set(experience.dataset.targets)
        if hasattr(experience, "classes_in_this_experience"):
            assert found == set(experience.classes_in_this_experience)
        if hasattr(experience, "task_labels"):
            assert {label_of[task.name] for task in stream[i].tasks} == set(experience.task_labels)
    assert stream.sets == tuple(range(len(test)))
    for j, experience in enumerate(test):
        same_rows(experience.dataset.eval(), stream.evaluation_set(j).data, label_of, rows)


def same_rows(theirs: Any, ours: Any, label_of: dict[str, int], rows: int | None) -> None:
    assert len(theirs) == len(ours)
    whole = len(ours.parts()) == 1  # else rows are grouped by piece, and all are compared, as sets
    places = torch.linspace(0, len(theirs) - 1, rows).long() if rows and whole else torch.arange(len(theirs))
    expected = [theirs[int(place)] for place in places]
    batch = ours.batch(places)
    task = [label_of[batch.tasks[int(number)]] for number in batch.task]
    targets = torch.stack([batch.targets[name] for name in batch.tasks]).sum(0).tolist()
    triples = list(zip(batch.x.flatten(1).tolist(), targets, task, strict=True))
    wanted = [(x.flatten().tolist(), int(y), int(t[0]) if t else 0) for x, y, *t in expected]
    assert triples == wanted if whole else sorted(triples) == sorted(wanted)
    assert batch.x.dtype == expected[0][0].dtype


# ---------------------------------------------------------------------- from Avalanche


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_stream_has_the_rows_classes_and_task_labels_of_its_benchmark(name: str) -> None:
    benchmark = BENCHMARKS[name]()
    stream = from_avalanche(benchmark)
    compare(benchmark, stream)
    assert all(isinstance(part.source, TensorSource) for e in stream for part in e.data["train"].parts())
    result = Engine(models.mlp(stream, (4,)), functools.partial(torch.optim.SGD, lr=0.001)).run(stream)
    assert result is not None


@pytest.mark.data
@real_data
@pytest.mark.parametrize(
    ("classic", "options"),
    [
        ("SplitMNIST", {"n_experiences": 5}),
        ("SplitMNIST", {"n_experiences": 5, "return_task_id": True, "class_ids_from_zero_in_each_exp": True}),
        ("PermutedMNIST", {"n_experiences": 2}),
        ("RotatedMNIST", {"n_experiences": 2, "return_task_id": True}),
        ("SplitFMNIST", {"n_experiences": 5}),
    ],
)
def test_classic_benchmarks_keep_one_source_and_give_the_same_inputs(classic: str, options: dict[str, Any], data_folder: Path) -> None:
    benchmark = quietly(getattr(library("benchmarks.classic"), classic), **options, seed=1, dataset_root=str(data_folder))
    stream = from_avalanche(benchmark)
    compare(benchmark, stream, rows=25)
    sources = {id(e.data["train"].source) for e in stream}
    assert len(sources) == 1
    assert isinstance(stream[0].data["train"].source, TensorSource)
    name = "fashionmnist" if classic == "SplitFMNIST" else "mnist"
    assert stream.name == f"{name}/from_avalanche"
    assert [task.name for task in stream.tasks] == ([f"{name}/{i}" for i in range(len(stream))] if "return_task_id" in options else [name])
    domains = [e.data["train"].domain for e in stream]
    changing = classic in ("PermutedMNIST", "RotatedMNIST")
    assert domains == ([f"transform/{i}" for i in range(len(stream))] if changing else [""] * len(stream))
    assert [stream.evaluation(i).data.domain for i in range(len(stream))] == domains
    if changing:
        assert len({e.data["train"].indices.data_ptr() for e in stream}) == 1, "equal index vectors are kept once"


@pytest.mark.data
@real_data
def test_an_engine_learns_split_mnist(data_folder: Path) -> None:
    classic = library("benchmarks.classic")
    benchmark = quietly(classic.SplitMNIST, n_experiences=5, fixed_class_order=list(range(10)), dataset_root=str(data_folder))
    stream = from_avalanche(benchmark)[:1]
    result = Engine(models.mlp(stream, (32,)), functools.partial(torch.optim.SGD, lr=0.05), evaluate="end").run(stream)
    assert float(result.metrics["average_accuracy"]) > 0.95


def test_evaluation_sets_belong_to_the_experience_that_a_piece_was_cut_from() -> None:
    stream = from_avalanche(online_new())
    assert [stream.sets_of(i)[0] for i in range(len(stream))] == sorted([0, 1, 2] * (len(stream) // 3))
    assert [e.origin for e in stream] == [None] * len(stream), "training is not told"
    told = from_avalanche(online_new(access_task_boundaries=True))
    assert [e.origin for e in told] == [told.sets_of(i)[0] for i in range(len(told))]
    assert [e.classes for e in stream] != [e.classes for e in stream][::-1]


@pytest.mark.parametrize(
    ("trained", "tested", "expected"),
    [
        (3, 3, [(0,), (1,), (2,)]),
        (4, 1, [(0,)] * 4),
        (4, 2, [(0,), (0,), (1,), (1,)]),
        (2, 5, [(0, 1, 2), (3, 4)]),
        (1, 3, [(0, 1, 2)]),
    ],
)
def test_streams_of_different_length_belong_together_by_position(trained: int, tested: int, expected: list[tuple[int, ...]]) -> None:
    dataset = scenarios().utils.AvalancheDataset
    benchmark = scenarios().benchmark_from_datasets(
        train=[dataset([Pairs(4)]) for _ in range(trained)], test=[dataset([Pairs(3)]) for _ in range(tested)]
    )
    stream = from_avalanche(benchmark)
    assert [stream.sets_of(i) for i in range(len(stream))] == expected
    assert len(stream.sets) == tested


def test_a_validation_stream_becomes_a_role() -> None:
    benchmark = scenarios().benchmark_with_validation_stream(class_incremental_new(), 0.25, shuffle=True, seed=0)
    stream = from_avalanche(benchmark, validation="valid")
    compare(benchmark, stream)
    rows = []
    for theirs, ours in zip(benchmark.streams["valid"], stream, strict=True):
        same_rows(theirs.dataset.eval(), ours.data["validation"], {"avalanche": 0}, None)
        rows += [*ours.data["train"].indices.tolist(), *ours.data["validation"].indices.tolist()]
    assert sorted(rows) == list(range(48))
    train, held_out = stream[0].data["train"], stream[0].data["validation"]
    assert int(train.source.targets["y"][held_out.indices].sum()) == 0, "training does not meet labels of validation rows"
    assert int(held_out.source.targets["y"][held_out.indices].sum()) > 0
    assert "validation" not in from_avalanche(benchmark)[0].data


def test_test_labels_are_out_of_reach_where_one_data_set_holds_all_rows() -> None:
    whole = Pairs(40)
    dataset = scenarios().utils.as_classification_dataset(whole)
    benchmark = scenarios().benchmark_from_datasets(
        train=[dataset.subset(list(range(0, 20))), dataset.subset(list(range(20, 30)))], test=[dataset.subset(list(range(30, 40)))]
    )
    stream = from_avalanche(benchmark)
    compare(benchmark, stream)
    source = stream[0].data["train"].source
    assert int(source.targets["y"][30:].sum()) == 0
    assert source.take(torch.arange(30, 40)).targets["y"].tolist() == [0] * 10
    assert not set(torch.cat([e.data["train"].indices for e in stream]).tolist()) & set(stream.evaluation(0).data.indices.tolist())


def test_a_row_may_have_another_target_in_another_experience() -> None:
    whole, make = Pairs(6, classes=3), scenarios().utils.as_classification_dataset
    turned = [(y + 1) % 3 for y in whole.targets]
    attribute = library("benchmarks.utils.data_attribute").DataAttribute
    data = scenarios().utils.AvalancheDataset([[(x, y) for x, y in zip(whole.tensors[0], turned, strict=True)]])
    plain = make(whole)
    swap = make(whole, transform_groups={group: (None, lambda y: (y + 1) % 3) for group in ("train", "eval")})
    swap = swap.update_data_attribute("targets", attribute(turned, "targets"))
    stream = from_avalanche(scenarios().benchmark_from_datasets(train=[plain, swap, plain], test=[data]))
    assert [e.data["train"].column("avalanche").tolist() for e in stream] == [whole.targets, turned, whole.targets]
    assert [e.data["train"].targets["avalanche"].column for e in stream] == ["y", "y/1", "y"]


def test_targets_are_those_in_the_rows() -> None:
    whole = Pairs(6, classes=3)
    swap = scenarios().utils.as_classification_dataset(whole, transform_groups={"train": (None, lambda y: y + 1), "eval": (None, None)})
    stream = from_avalanche(scenarios().benchmark_from_datasets(train=[swap], test=[swap]))
    assert stream[0].data["train"].column("avalanche").tolist() == [y + 1 for y in whole.targets]
    assert stream.evaluation(0).data.column("avalanche").tolist() == whole.targets
    assert stream.tasks[0].size == 4


def halved(x: Tensor) -> Tensor:
    return x / 2


def noisy(x: Tensor) -> Tensor:
    return x + torch.rand(())


@pytest.mark.parametrize("workers", [0, 2])
def test_unknown_transforms_are_called_row_by_row(workers: int) -> None:
    train, test = pair()
    benchmark = quietly(
        scenarios().nc_benchmark, train, test, 3, task_labels=False, seed=0, train_transform=halved, eval_transform=lambda x: x / 4
    )
    train.read = test.read = 0
    stream = from_avalanche(benchmark, workers=workers)
    assert train.read <= 8, "a few rows are read to see what they are"
    assert isinstance(stream[0].data["train"].source, streams.Source)
    compare(benchmark, stream)
    data = stream[0].data["train"]
    assert torch.equal(data.batch(torch.arange(4)).x * 2, train.tensors[0][data.indices[:4]])
    evaluated = stream.evaluation(0).data
    assert torch.equal(evaluated.batch(torch.arange(4)).x * 4, test.tensors[0][evaluated.indices[:4]])
    assert data.draws


def test_random_transforms_draw_from_the_global_generator_when_rows_are_read_and_not_before() -> None:
    benchmark = quietly(scenarios().nc_benchmark, *pair(), 3, task_labels=False, seed=0, train_transform=noisy)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    stream = from_avalanche(benchmark)
    assert torch.equal(torch.get_rng_state(), before)
    first, again = (stream[0].data["train"].batch(torch.arange(4)).x for _ in range(2))
    assert not torch.equal(first, again)


def test_usual_transforms_of_images_become_transforms_of_batches() -> None:
    transforms = library("benchmarks.classic.cmnist")

    class Images(Dataset[Any]):
        """As torchvision keeps CIFAR."""

        def __init__(self, rows: int) -> None:
            self.data = torch.randint(256, (rows, 5, 4, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
            self.targets = [i % 4 for i in range(rows)]

        def __len__(self) -> int:
            return len(self.data)

        def __getitem__(self, row: int) -> Any:
            image = importlib.import_module("PIL.Image").fromarray(self.data[row])
            return image, self.targets[row]

    pixels = transforms.PixelsPermutation(torch.randperm(60))
    change = transforms.Compose([transforms.ToTensor(), pixels, transforms.Normalize((0.4, 0.5, 0.6), (0.2, 0.3, 0.4))])
    benchmark = quietly(
        scenarios().nc_benchmark, Images(24), Images(12), 2, task_labels=False, seed=0, train_transform=change, eval_transform=change
    )
    stream = from_avalanche(benchmark)
    assert isinstance(stream[0].data["train"].source, TensorSource)
    assert stream.input_shape == (3, 5, 4)
    compare(benchmark, stream)


def test_a_data_set_without_fast_access_is_read_through_itself() -> None:
    class Slow(Dataset[Any]):
        def __init__(self) -> None:
            self.targets = [0, 1, 2, 0, 1, 2]

        def __len__(self) -> int:
            return 6

        def __getitem__(self, row: int) -> Any:
            return torch.full((2,), float(row)), self.targets[row]

    dataset = scenarios().utils.AvalancheDataset([Subset(Slow(), [5, 1, 0, 2])])
    stream = from_avalanche(scenarios().benchmark_from_datasets(train=[dataset], test=[dataset]), name="slow")
    data = stream[0].data["train"]
    assert data.batch(torch.tensor([0, 3])).x[:, 0].tolist() == [5, 2]
    assert data.column("slow").tolist() == [2, 1, 0, 2]
    assert (stream.name, data.source.name, stream.evaluation(0).data.source.name) == ("slow/from_avalanche", "slow", "slow")


def test_the_description_tells_that_the_benchmark_was_given_and_the_hash_tells_which() -> None:
    stream, again, other = (from_avalanche(nc(seed=seed)) for seed in (0, 0, 5))
    assert json.loads(json.dumps(stream.description)) == stream.description
    assert stream.hash == again.hash != other.hash
    with pytest.raises(ConfigurationError, match=re.escape("this stream was built from objects given by the user ('benchmark')")):
        streams.rebuild(stream.description)
    compare(nc(), stream[:])
    assert [e.data["train"].indices.tolist() for e in stream[1:]] == [e.data["train"].indices.tolist() for e in stream][1:]


# ---------------------------------------------------------------------- to Avalanche


def toy() -> tuple[Tensor, Tensor]:
    return torch.arange(240.0).reshape(60, 4), torch.arange(60) % 6


ROUND_TRIPS: dict[str, Callable[[int], Stream]] = {
    "class incremental": lambda seed: streams.class_incremental(toy(), 3, seed=seed),
    "task incremental": lambda seed: streams.task_incremental(toy(), 3, seed=seed),
    "domain incremental": lambda seed: streams.domain_incremental(toy(), 3, seed=seed),
    "data incremental": lambda seed: streams.data_incremental(toy(), 4, seed=seed),
    "online": lambda seed: streams.online(streams.class_incremental(toy(), 3, seed=seed), rows=5, seed=seed),
    "joint tasks": lambda seed: streams.joint(streams.task_incremental(toy(), 3, seed=seed)),
    "joint domains": lambda seed: streams.joint(streams.domain_incremental(toy(), 3, seed=seed)),
    "recurring": lambda seed: streams.recurring(streams.class_incremental(toy(), 2, seed=seed), times=2),
}


@settings(deadline=None, max_examples=20)
@given(st.sampled_from(sorted(ROUND_TRIPS)), st.integers(0, 5), st.booleans())
def test_there_and_back_again(chain: str, seed: int, sliced: bool) -> None:
    stream = ROUND_TRIPS[chain](seed)
    stream = stream[: max(1, len(stream) - 1)] if sliced else stream
    benchmark = stream.to_avalanche()
    back = from_avalanche(benchmark)
    compare(benchmark, back)
    assert len(back) == len(stream)
    assert [back.sets_of(i) for i in range(len(back))] == [stream.sets_of(i) for i in range(len(stream))]
    present = [task.name for task in stream.tasks if any(task in stream.evaluation_set(k).tasks for k in range(len(stream.sets)))]
    names = dict(zip((task.name for task in back.tasks), present, strict=True))
    for ours, theirs in zip(back, stream, strict=True):
        assert {names[task]: classes for task, classes in ours.classes.items()} == theirs.classes
        for mine, original in zip(ours.data["train"].parts(), theirs.data["train"].parts(), strict=True):
            assert (mine.source.name, mine.domain) == (original.source.name, original.domain)
            assert torch.equal(mine.indices, original.indices)
            assert names[mine.tasks[0].name] == original.tasks[0].name
            assert torch.equal(mine.column(mine.tasks[0].name), original.column(original.tasks[0].name))
            everywhere = torch.arange(len(mine))
            assert torch.equal(mine.batch(everywhere).x, original.batch(everywhere).x)


def test_experiences_tell_classes_and_task_labels() -> None:
    benchmark = to_avalanche(streams.task_incremental("digits", classes=[[3, 1], [0, 5, 2]]))
    assert [(e.task_label, sorted(e.classes_in_this_experience)) for e in benchmark.train_stream] == [(0, [0, 1]), (1, [0, 1, 2])]
    assert [e.task_labels for e in benchmark.test_stream] == [[0], [1]]
    x, y, t = benchmark.test_stream[1].dataset[0]
    assert (x.shape, type(y), t) == ((1, 8, 8), int, 1)


def test_batches_are_read_together_and_are_the_rows() -> None:
    benchmark = to_avalanche(streams.build_chain("domain_incremental:source=digits,experiences=2 | joint"))
    dataset = benchmark.train_stream[0].dataset
    assert len(dataset) == 2 * 1438
    for view in (dataset, dataset.train(), dataset.subset([2000, 5, 1500, 5]), dataset.subset([3, 4]).concat(dataset.subset([1600]))):
        places = [2, 0, 1]
        for together, alone in zip(view.__getitems__(places), [view[place] for place in places], strict=True):
            assert torch.equal(together[0], alone[0])
            assert together[1:] == alone[1:]


def test_validation_rows_become_a_stream() -> None:
    stream = streams.build_chain("class_incremental:source=digits,experiences=2 | validation:fraction=0.25")
    benchmark = to_avalanche(stream)
    assert [len(e.dataset) for e in benchmark.streams["valid"]] == [len(e.data["validation"]) for e in stream]
    back = from_avalanche(benchmark, validation="valid")
    assert [e.data["validation"].indices.tolist() for e in back] == [e.data["validation"].indices.tolist() for e in stream]


@pytest.mark.parametrize("plugin", ["none", "replay", "ewc"])
def test_avalanche_trains_on_a_stream(plugin: str) -> None:
    training, plugins = library("training.supervised"), library("training.plugins")
    metrics = library("evaluation.metrics")
    benchmark = to_avalanche(streams.class_incremental("digits", classes=[[0, 1], [2, 3]]))
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    added = {"none": list, "replay": lambda: [plugins.ReplayPlugin(100)], "ewc": lambda: [plugins.EWCPlugin(0.1)]}[plugin]()
    strategy = quietly(
        training.Naive,
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.05),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=10,
        train_epochs=1,
        plugins=added,
        evaluator=quietly(plugins.EvaluationPlugin, metrics.accuracy_metrics(experience=True), loggers=[]),
    )
    quietly(strategy.train, benchmark.train_stream)
    found = [value for key, value in quietly(strategy.eval, benchmark.test_stream).items() if "Acc_Exp" in key]
    assert found[1] > 0.8
    assert (found[0] > 0.5) == (plugin == "replay"), "rows that are replayed are not forgotten"


# ---------------------------------------------------------------------- what is refused


def plain_dataset(rows: list[Any], targets: Any = None) -> Any:
    attribute = library("benchmarks.utils.data_attribute").DataAttribute
    given = None if targets is None else [attribute(targets, "targets")]
    return scenarios().utils.AvalancheDataset([rows], data_attributes=given)


def of(*train: Any) -> Any:
    return scenarios().benchmark_from_datasets(train=list(train), test=[plain_dataset([(torch.zeros(2), 0)], [0])])


X = torch.zeros(2)
REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: 3, "a int is no Avalanche benchmark: give an object with streams, such as SplitMNIST(n_experiences=5)"),
    (
        lambda: of(plain_dataset([(X, 0), (X, -1)], [0, -1])),
        "experience 0 of the train rows has the target -1: number classes from 0",
    ),
    (
        lambda: of(plain_dataset([(X, 0.5), (X, 1.5)], [0.5, 1.5])),
        "the targets of experience 0 of the train rows are not class numbers but float: only classification benchmarks become streams",
    ),
    (
        lambda: of(plain_dataset([(X, 0.5), (X, 1.5)])),
        "the targets of experience 0 of the train rows are float32 of shape (2,): only classification benchmarks become streams",
    ),
    (
        lambda: of(plain_dataset([(X, 0)], [0]), plain_dataset([(torch.zeros(3), 0)], [0])),
        "experience 1 of the train rows has inputs of shape (3,), those before have (2,): bring all to one shape",
    ),
    (
        lambda: of(plain_dataset([(X, 0)], [0]), plain_dataset([])),
        "experience 1 of the train rows of the Avalanche benchmark is empty: remove it from the benchmark or give it rows",
    ),
    (lambda: of(plain_dataset([("text", 0)], [0])), "x in row 0 of source 'avalanche' is a str: give a tensor"),
    (
        lambda: of(plain_dataset([{"x": X}], [0])),
        "row 0 of source 'avalanche' cannot be read: TypeError: it is a dict, where a",
    ),
    (lambda: scenarios().benchmark_from_datasets(train=[], test=[]), "the Avalanche stream 'train' has no experience"),
]


@pytest.mark.parametrize(("benchmark", "message"), REFUSED)
def test_what_is_no_stream_is_refused(benchmark: Callable[[], Any], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        from_avalanche(benchmark())


def test_names_and_lengths_are_checked() -> None:
    with pytest.raises(UnknownNameError, match="unknown stream of this Avalanche benchmark 'tain': did you mean 'train'"):
        from_avalanche(nc(), train="tain")
    with pytest.raises(UnknownNameError, match="unknown stream of this Avalanche benchmark 'valid'"):
        from_avalanche(nc(), validation="valid")
    benchmark = scenarios().benchmark_from_datasets(
        train=[plain_dataset([(X, 0)], [0])] * 2, test=[plain_dataset([(X, 0)], [0])], valid=[plain_dataset([(X, 0)], [0])]
    )
    with pytest.raises(DataError, match="the Avalanche stream 'valid' has 1 experiences and that of training rows has 2"):
        from_avalanche(benchmark, validation="valid")
    with pytest.raises(DataError, match="workers is -1: give a whole number of at least 0"):
        from_avalanche(nc(), workers=-1)


UNFIT: list[tuple[Callable[[], Stream], str]] = [
    (
        lambda: streams.domain_incremental("digits", "endless"),
        "stream 'digits/domain_incremental' is endless, and Avalanche's streams are not: take a part, such as stream[:100]",
    ),
    (lambda: streams.episodes("digits", ways=2, shots=1, queries=1), "consists of episodes, for which Avalanche has no place"),
    (
        lambda: streams.build_chain("class_incremental:source=digits | label_policy:fraction=0.5"),
        "has rows without labels of task 'digits'",
    ),
    (
        lambda: streams.data_incremental((torch.zeros(20, 2), torch.rand(20)), 2),
        "is a regression: Avalanche's benchmarks have class numbers as targets",
    ),
    (streams.adaptation, "has rows of role 'target', for which Avalanche has no place"),
]


@pytest.mark.parametrize(("stream", "message"), UNFIT)
def test_streams_for_which_avalanche_has_no_place_are_refused(stream: Callable[[], Stream], message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        to_avalanche(stream())


def test_without_avalanche_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "avalanche.benchmarks.scenarios.dataset_scenario", None)
    _library.cache_clear()
    with pytest.raises(MissingExtraError, match=re.escape("pip install 'streamlearn[avalanche]'")):
        to_avalanche(streams.class_incremental("digits", 2))
    _library.cache_clear()


def test_sources_read_row_by_row_tell_their_rows() -> None:
    source = from_avalanche(of(plain_dataset([(torch.full((2,), float(i)), i) for i in range(4)], [0, 1, 2, 3])))[0].data["train"].source
    assert not isinstance(source, ItemSource), "it is sealed behind its targets"
    assert (len(source), source.input_shape, source.fingerprint()) == (4, (2,), source.fingerprint())
    assert source.take(torch.tensor([], dtype=torch.int64)).x.shape == (0, 2)
