from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import streamlearn.streams
from streamlearn.errors import ConfigurationError, DataError, UnknownNameError
from streamlearn.options import parse
from streamlearn.streams import build, build_chain, builders, class_incremental, domain_incremental, online, rebuild

OURS = [
    "adaptation",
    "augmented",
    "blurry",
    "class_incremental",
    "concatenated",
    "data_incremental",
    "domain_incremental",
    "episodes",
    "from_datasets",
    "gradual",
    "gradual_adaptation",
    "imbalanced",
    "joint",
    "label_policy",
    "multitask",
    "online",
    "recurring",
    "single_task",
    "task_free",
    "task_incremental",
    "test_time",
    "validation",
]


@pytest.fixture
def other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Installs a distribution "other" that registers builders, given as lines ``name = module:function``."""

    def install(*lines: str, code: str = "") -> None:
        info = tmp_path / "other-2.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 2.1\n")
        (info / "entry_points.txt").write_text("[streamlearn.streams]\n" + "\n".join(lines))
        (tmp_path / "other_streams.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "other_streams", raising=False)

    yield install
    sys.modules.pop("other_streams", None)


def test_ours_come_through_the_entry_points() -> None:
    found = {builder.name: builder for builder in builders() if builder.distribution == "streamlearn"}
    assert sorted(found) == OURS
    assert found["class_incremental"].value == "streamlearn.streams.protocols.incremental:class_incremental"
    assert found["class_incremental"].version == importlib.metadata.version("streamlearn")


def test_listing_and_importing_load_no_torch() -> None:
    code = (
        "import sys, streamlearn.streams as s\n"
        "names = [b.name for b in s.builders()]; dir(s)\n"
        "assert 'class_incremental' in names and 'torch' not in sys.modules, 'torch'\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_everything_public_can_be_loaded() -> None:
    assert sorted(streamlearn.streams._HOME) == streamlearn.streams.__all__ == dir(streamlearn.streams)
    for name in streamlearn.streams.__all__:
        assert getattr(streamlearn.streams, name) is not None
    with pytest.raises(AttributeError, match=r"module 'streamlearn.streams' has no attribute 'strem'"):
        streamlearn.streams.strem  # noqa: B018


def test_build_calls_the_builder() -> None:
    name, options = parse("class-incremental:source=digits,classes=[[0,1],[2,3]]")
    assert build(name, **options).hash == class_incremental("digits", classes=[[0, 1], [2, 3]]).hash


def test_another_distributions_builder_is_found_and_loaded_only_when_called(other) -> None:
    other(
        "mine = other_streams:mine",
        code="from streamlearn.streams import data_incremental\ndef mine(parts=2, **rest):\n    return data_incremental('digits', parts)\n",
    )
    assert ("mine", "other", "2.1", "other_streams:mine") in builders()
    assert "other_streams" not in sys.modules
    assert len(build("mine", parts=3, anything=1)) == 3


def test_unknown_builders_and_options_offer_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=re.escape("unknown stream builder 'clas_incremental': did you mean 'class_incremental'?")):
        build("clas_incremental")
    with pytest.raises(UnknownNameError, match=re.escape("unknown option of class_incremental 'experience': did you mean 'experiences'?")):
        build("class_incremental", source="digits", experience=5)


def test_missing_and_mistyped_options_are_configuration_errors(other) -> None:
    message = "stream builder 'class_incremental' needs the option 'source': add it, for example class_incremental:source=..."
    with pytest.raises(ConfigurationError, match=re.escape(message)):
        build("class_incremental")
    other("mine = other_streams:mine", code="def mine(parts):\n    return range(parts)\n")
    with pytest.raises(
        ConfigurationError, match=re.escape("stream builder 'mine' does not accept (parts='x'): 'str' object cannot be")
    ) as caught:
        build("mine", parts="x")
    assert isinstance(caught.value.__cause__, TypeError)
    with pytest.raises(
        ConfigurationError, match=re.escape("stream builder 'mine' (other_streams:mine) gave a range instead of a Stream: report it")
    ):
        build("mine", parts=3)
    with pytest.raises(DataError, match="fewer than 99 experiences"):
        build("class_incremental", source="digits", experiences=99)


def test_builders_that_cannot_be_loaded_name_their_distribution(other) -> None:
    other("gone = other_streams:gone", "lost = other_missing:f", "number = other_streams:number", code="number = 3\n")
    for name in ("gone", "lost"):
        with pytest.raises(ConfigurationError, match=rf"stream builder '{name}' \(other_\w+:\w+ of other 2.1\) cannot be loaded: "):
            build(name)
    with pytest.raises(ConfigurationError, match=r"stream builder 'number' \(other_streams:number\) is not callable: report it to other"):
        build("number")


def test_two_owners_of_one_name_are_refused(other) -> None:
    other("data_incremental = other_streams:f")
    with pytest.raises(
        ConfigurationError, match=r"the stream builder 'data_incremental' is registered by other \(.*\) and streamlearn \(.*\): uninstall"
    ):
        build("data_incremental", source="digits")


@pytest.mark.parametrize(
    "text",
    [
        "class_incremental:source=Digits,experiences=2,seed=7",
        "task_incremental:source=digits,classes=[[3,1],[2]]",
        "domain_incremental:source=digits,transform=rotation,degrees=90,experiences=3",
        "domain_incremental:source=digits,first_identity=false",
        "data_incremental:source=digits,experiences=4,test=digits",
    ],
)
def test_rebuild_gives_the_same_stream(text: str) -> None:
    name, options = parse(text)
    stream = build(name, **options)
    again = rebuild(stream.description)
    assert again.hash == stream.hash
    for ours, theirs in zip(stream, again, strict=True):
        positions = torch.arange(len(ours.data["train"]))[:20]
        assert torch.equal(ours.data["train"].batch(positions).x, theirs.data["train"].batch(positions).x)
        assert torch.equal(ours.data["train"].indices, theirs.data["train"].indices)


def test_what_the_user_gave_cannot_be_rebuilt() -> None:
    arrays = (torch.zeros(8, 2), torch.arange(8) % 4)
    with pytest.raises(
        ConfigurationError, match=re.escape("from objects given by the user ('source'), which no name brings back: pass the stream itself")
    ):
        rebuild(class_incremental(arrays, 2).description)
    stream = domain_incremental("digits", transform=[abs], test=(torch.zeros(10, 1, 8, 8), torch.arange(10)))
    with pytest.raises(ConfigurationError, match=re.escape("given by the user ('test' and 'transform')")):
        rebuild(stream.description)
    with pytest.raises(ConfigurationError, match="this description names no stream builder"):
        rebuild({"source": "digits"})


# ---------------------------------------------------------------------- chains


def test_a_chain_gives_each_operator_the_stream_before_it() -> None:
    stream = build_chain("class_incremental:source=digits,experiences=5 | online:rows=50 | joint")
    assert stream.name == "digits/class_incremental/online/joint"
    assert len(stream[0].data["train"]) == 1438
    assert (
        build_chain([("class_incremental", {"source": "digits"}), ("online", {"rows": 10})]).hash
        == online(class_incremental("digits")).hash
    )


def test_the_seed_of_a_chain_goes_to_every_link_that_takes_one() -> None:
    text = "class_incremental:source=digits,seed=3 | online:rows=50"
    assert build_chain(text, seed=7).hash == online(class_incremental("digits", seed=3), rows=50, seed=7).hash
    assert build_chain(text).hash == online(class_incremental("digits", seed=3), rows=50).hash


def test_operators_are_rebuilt_with_what_they_changed() -> None:
    stream = online(class_incremental("digits", 5)[1:4], rows=30)[2:9]
    again = rebuild(json.loads(json.dumps(stream.description)))
    assert again.hash == stream.hash
    assert [e.data["train"].indices.tolist() for e in again] == [e.data["train"].indices.tolist() for e in stream]
    own = online(class_incremental((torch.zeros(20, 1), torch.arange(20) % 2), 2), rows=5)
    with pytest.raises(ConfigurationError, match=re.escape("built from objects given by the user ('source'), which no name brings back")):
        rebuild(own.description)


def test_links_out_of_place() -> None:
    with pytest.raises(
        ConfigurationError, match=re.escape("'online' is an operator and needs a stream before it: write BUILDER:... | online")
    ):
        build_chain("online:rows=3")
    with pytest.raises(ConfigurationError, match="'class_incremental' builds a stream of its own and cannot follow another"):
        build_chain("joint:source=digits | class_incremental:source=digits")
    with pytest.raises(DataError, match="stream 'digits/data_incremental/joint' stands where a source is wanted: only operators, such as"):
        build_chain("joint:source=digits | class_incremental")
    with pytest.raises(DataError, match=re.escape("online changes a stream, and a int is none: build one first, online(stream, ...)")):
        build("online", stream=3)
