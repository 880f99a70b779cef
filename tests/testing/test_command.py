from __future__ import annotations

import json

import pytest

from streamlearn.cli.main import main
from streamlearn.testing import CHECKS


@pytest.mark.slow
def test_the_command_checks_an_installed_plugin(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "check", "clipping:max_norm=0.1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [result["name"] for result in told["results"]] == list(CHECKS)
    assert told["passed"]
    assert main(["plugins", "check", "clipping", "--expect-failure", "hooks=a reason"]) == 1
    assert "unexpected pass (hooks)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [(["ecw"], "unknown plugin 'ecw'"), (["ewc", "--expect-failure", "resumes"], "has no reason"),
     (["ewc", "--expect-failure", "resume=why"], "unknown check 'resume'")],
)  # fmt: skip
def test_what_is_wrong_is_told_in_a_sentence(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins", "check", *words]) != 0
    assert told in capsys.readouterr().err
