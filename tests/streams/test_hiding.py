from __future__ import annotations

import copy
import gc
import pickle
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamlearn.errors import DataError
from streamlearn.streams import Data, Source, Task, TensorSource
from streamlearn.streams.data import Columns, Target
from streamlearn.streams.hiding import hide_labels, hide_rows, raw_targets, show_rows, with_targets, without_targets
from streamlearn.streams.sealing import Sealed
from streamlearn.streams.sources import DatasetSource

EVERY = torch.arange(12)
Y = torch.arange(12) % 4 + 1


class Foreign:
    """A source of somebody else's, which knows nothing of hiding and keeps its targets to itself."""

    name, input_shape = "foreign", (2,)

    def __len__(self) -> int:
        return 12

    def take(self, index: torch.Tensor) -> Columns:
        return Columns(index.float().view(-1, 1).repeat(1, 2), {"y": Y[index]})

    def fingerprint(self) -> str:
        return "foreign"


def tensors() -> TensorSource:
    return TensorSource(torch.arange(12.0).view(-1, 1).repeat(1, 2), {"y": Y}, "tensors", class_names=["a", "b", "c", "d", "e"])


def pairs() -> DatasetSource:
    return DatasetSource([(torch.full((2,), float(i)), int(Y[i])) for i in range(12)], "pairs")  # type: ignore[arg-type]


SOURCES = [tensors, pairs, Foreign]

# ---------------------------------------------------------------------- seals


class Thing:
    pass


def test_a_seal_leads_nowhere_and_lets_go() -> None:
    thing = Thing()
    sealed = Sealed(thing)
    assert sealed.open() is thing
    assert not any(item is thing for item in gc.get_referents(sealed))
    alive = weakref.ref(thing)
    del thing
    assert alive() is not None
    del sealed
    gc.collect()
    assert alive() is None, "dropped with the last seal"


def test_a_copy_of_a_seal_is_the_seal() -> None:
    sealed = Sealed([1])
    assert copy.copy(sealed) is sealed
    assert copy.deepcopy({"a": sealed})["a"] is sealed
    with pytest.raises(TypeError, match="what is hidden from training cannot be pickled: pickle the stream's description and rebuild it"):
        pickle.dumps(sealed)


# ---------------------------------------------------------------------- sources


@pytest.mark.parametrize("make", SOURCES)
def test_rows_keep_everything_but_their_targets(make: Any) -> None:
    source = make()
    hidden = [
        without_targets(source), with_targets(source, {"z": EVERY}), hide_rows(source, {"y": Y}, torch.tensor([3])),
        show_rows(source, {"y": (torch.tensor([3]), Y[3:4])}), show_rows(source, {}),
    ]  # fmt: skip
    for found in hidden:
        assert isinstance(found, Source)
        assert (found.name, found.input_shape, len(found)) == (source.name, source.input_shape, 12)
        assert torch.equal(found.take(EVERY.flip(0)).x, source.take(EVERY.flip(0)).x)
        assert getattr(found, "row_bytes", None) == getattr(source, "row_bytes", None)
        assert getattr(found, "class_names", ()) == getattr(source, "class_names", ())
        bare = without_targets(found)
        assert bare.take(EVERY).targets == {}
        assert without_targets(without_targets(bare)).take(EVERY).targets == {}
        assert torch.equal(bare.take(EVERY).x, source.take(EVERY).x)
        again = with_targets(found, {"again": EVERY + 5})
        assert again.take(torch.tensor([2])).targets["again"].tolist() == [7]
    assert torch.equal(source.take(EVERY).targets["y"], Y), "the source itself is as it was"


@pytest.mark.parametrize("make", SOURCES)
def test_columns_must_be_as_long_as_the_source(make: Any) -> None:
    source = make()
    with pytest.raises(DataError, match=f"target 'z' has 11 rows, source '{source.name}' has 12: make them equal"):
        with_targets(source, {"z": EVERY[:11]})


@given(st.sets(st.integers(0, 11)), st.lists(st.integers(0, 11), max_size=20), st.sampled_from([(), (2,)]), st.booleans(), st.randoms())
def test_shown_are_these_targets_and_no_others(
    chosen: set[int], asked: list[int], shape: tuple[int, ...], floats: bool, random: Any
) -> None:
    column = Y.view(-1, *[1] * len(shape)).expand(12, *shape).contiguous()
    column = column.double() if floats else column
    rows = sorted(chosen)
    random.shuffle(rows)
    shown, index = torch.tensor(rows, dtype=torch.int64), torch.tensor(asked, dtype=torch.int64)
    source = TensorSource(torch.zeros(12, 1), {"y": column}, "some")
    expected = torch.zeros_like(column)
    expected[shown] = column[shown]
    for found in (show_rows(source, {"y": (shown, column[shown])}), hide_rows(source, {"y": column}, shown)):
        taken = found.take(index).targets["y"]
        assert taken.dtype == column.dtype
        assert torch.equal(taken, expected[index])
        assert torch.equal(raw_targets(found, "y", index), expected[index])


def test_fingerprints_tell_what_is_shown() -> None:
    source = tensors()
    found = [show_rows(source, {"y": (torch.tensor(rows), Y[rows])}).fingerprint() for rows in ([1, 2], [2, 1], [1, 3])]
    assert found[0] == found[1] != found[2]
    assert without_targets(Foreign()).fingerprint() == "foreign"


# ---------------------------------------------------------------------- labels of pieces

T, U = Task("t", size=6), Task("u", size=6)


def test_pieces_share_what_is_kept_of_their_source() -> None:
    source = tensors()
    first = Data(source, EVERY[:6], (T,), {"t": Target("y")}, domain="one")
    second = Data(source, EVERY[3:9].flip(0), (U,), {"u": Target("y")}, domain="two", labelled={"u": torch.arange(6) != 1})
    bare = Data(source, EVERY, (T,))
    some = torch.tensor([True, False, False, False, True, False])
    one, two, three = hide_labels([first, second, bare], [{"y": some}, {"y": torch.zeros(6, dtype=torch.bool)}, {}])
    assert one.source is two.source is not source
    assert one.labelled["t"].tolist() == some.tolist()
    assert two.labelled["u"].tolist() == [False] * 4 + [True, False], "row 4 is shown by the first"
    assert three.source.take(EVERY).targets == {}
    known = one.source.take(EVERY).targets["y"]
    assert known.nonzero().flatten().tolist() == [0, 4]
    assert torch.equal(known[[0, 4]], Y[[0, 4]])


def test_pieces_that_keep_all_their_labels_need_no_mask() -> None:
    (found,) = hide_labels([Data(Foreign(), EVERY[2:5], (T,), {"t": Target("y")})], [{"y": torch.ones(3, dtype=torch.bool)}])
    assert found.labelled == {}
    assert found.batch(torch.arange(3)).is_uniform
    assert found.source.take(EVERY).targets["y"].nonzero().flatten().tolist() == [2, 3, 4]
