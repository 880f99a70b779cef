"""``streams list`` and ``streams show``: tables, pictures and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamlearn.streams.catalogue import builders

from .conftest import Call

TWO = "class_incremental:source=digits,experiences=2"


def test_the_list_tells_builders_from_operators(cli: Call) -> None:
    above, below = cli("streams", "list").out.split("\nOperators, ")
    for name in ("class_incremental", "joint", "concatenated"):
        assert any(line.startswith(f"{name} ") for line in above.splitlines())
    for name in ("online", "label_policy", "task_free"):
        (line,) = (line for line in below.splitlines() if line.startswith(f"{name} "))
        assert "Options: stream" not in line
    listed = {line.split()[0] for line in (above + below).splitlines() if line}
    assert {builder.name for builder in builders()} <= listed


def test_a_chain_is_shown_as_a_table(cli: Call) -> None:
    done = cli("streams", "show", f"{TWO} | label_policy:per_class=7")
    assert done.code == 0
    head = next(line for line in done.out.splitlines() if line.startswith("experience"))
    assert head.split("  ")[0] == "experience"
    assert "labelled" in head
    assert "evaluated on" not in head
    first = next(line for line in done.out.splitlines() if line.startswith("1 "))
    assert " 35 " in first
    assert "built by: builder=class_incremental, source=digits" in done.out
    assert " | builder=label_policy, policy=sparse, per_class=7" in done.out
    assert "A picture of it: add --output FILE.svg" in done.out


def test_columns_tell_domains_sets_and_what_is_scored(cli: Call) -> None:
    out = cli("streams", "show", "domain_incremental:source=digits,experiences=2 | label_policy:policy=never | online:rows=500").out
    head = next(line for line in out.splitlines() if line.startswith("experience"))
    for title in ("scored first", "domains", "evaluated on"):
        assert title in head
    assert "permutation/1" in out


def test_an_endless_stream_is_shown_from_its_start(cli: Call) -> None:
    out = cli("streams", "show", "domain_incremental:source=digits,experiences=endless").out
    assert ": endless, inputs 1x8x8" in out
    assert "... and so on without end" in out
    assert len([line for line in out.splitlines() if "permutation/" in line]) == 10


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_output_writes_a_picture(cli: Call, tmp_path: Path, suffix: str) -> None:
    done = cli("streams", "show", TWO, "--output", f"a.{suffix}")
    assert done.code == 0
    assert done.out.endswith(f"wrote a.{suffix}\n")
    assert (tmp_path / f"a.{suffix}").stat().st_size > 1000


def test_without_samples_the_picture_is_another(cli: Call, tmp_path: Path) -> None:
    cli("streams", "show", TWO, "--output", "a.png")
    cli("streams", "show", TWO, "--output", "b.png", "--no-samples")
    assert (tmp_path / "b.png").stat().st_size < (tmp_path / "a.png").stat().st_size


def test_json_holds_the_description_and_the_counts(cli: Call, tmp_path: Path) -> None:
    from streamlearn.streams import build_chain, rebuild

    done = cli("streams", "show", f"{TWO} | online:rows=200", "--json", "--output", "a.svg")
    told = json.loads(done.out)
    assert told["stream"]["hash"] == build_chain(f"{TWO} | online:rows=200").hash
    assert rebuild(told["stream"]["description"]).hash == told["stream"]["hash"]
    assert told["overview"]["totals"]["train"]["amount"] == {"rows": 1438, "labelled": 1438}
    assert (tmp_path / "a.svg").exists()


def test_a_builder_whose_options_all_have_defaults_can_be_drawn_by_its_name(cli: Call, tmp_path: Path) -> None:
    assert cli("streams", "show", "adaptation", "--output", "a.png").code == 0
    assert (tmp_path / "a.png").exists()
    done = cli("streams", "show", "class_incremental", "--json")
    assert done.code == 2
    assert "needs the option 'source'" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "a.jpg"], "choose a name that ends in .svg, .png or .pdf"),
        (["--output", "nowhere/a.svg"], "there is no folder nowhere, make it first"),
        (["--no-samples"], "add --output FILE.svg"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_line(cli: Call, words: list[str], message: str) -> None:
    done = cli("streams", "show", TWO, *words)
    assert done.code != 0
    assert done.out == ""
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1


def test_an_operator_alone_is_documented_and_with_options_needs_a_stream(cli: Call) -> None:
    assert "Protocol:" in cli("streams", "show", "online").out
    assert "needs a stream before it" in cli("streams", "show", "online:rows=3").err
