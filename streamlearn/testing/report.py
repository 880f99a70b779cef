"""What came of the checks of one plugin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["CheckFailed", "NotApplicable", "Outcome", "Report", "Result", "Trouble"]

Outcome = Literal["passed", "failed", "not applicable", "expected failure", "unexpected pass"]

_BAD = ("failed", "unexpected pass")


class CheckFailed(AssertionError):  # noqa: N818 - it is what pytest prints
    """A plugin is not what it should be; the message is one sentence that says what to do."""


class NotApplicable(Exception):  # noqa: N818 - it is no error
    """A check has nothing to look at; the message says why."""


class Trouble(Exception):  # noqa: N818 - whose error it is, the check of that name says
    """Something stops every run of the plugin, and ``check`` is the one check that is about it: the others do not apply."""

    def __init__(self, check: str, message: str) -> None:
        self.check = check
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one check.

    Attributes:
        name: of the check, such as ``resumes`` or ``trains[multitask]``.
        outcome: ``passed``, ``failed``, ``not applicable``, ``expected failure`` or ``unexpected pass``.
        reason: why, in a sentence; empty for ``passed``.
        seconds: how long it took.
    """

    name: str
    outcome: Outcome
    reason: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether nothing has to be done about it."""
        return self.outcome not in _BAD


@dataclass(frozen=True, slots=True)
class Report:
    """What came of all checks of one plugin.

    Args:
        plugin: its name.
        results: one for each check, in the order in which they ran.

    Example:
        >>> print(Report("mine", (Result("hooks", "passed"), Result("terms", "not applicable", "it has no term"))))
        mine
          passed          hooks (0.0 s)
          not applicable  terms (0.0 s): it has no term
        2 checks: 1 passed, 1 not applicable (it has no term)
    """

    plugin: str
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed, and none passed that was expected to fail."""
        return all(result.passed for result in self.results)

    @property
    def counts(self) -> Mapping[str, int]:
        """How many checks have each outcome; outcomes that none has are left out."""
        return Counter(result.outcome for result in self.results)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "plugin": self.plugin,
            "passed": self.passed,
            "counts": dict(self.counts),
            "results": [asdict(result) for result in self.results],
        }

    def __str__(self) -> str:
        width = max((len(result.outcome) for result in self.results), default=0)
        lines = [
            f"  {result.outcome:<{width}}  {result.name} ({result.seconds:.1f} s){f': {result.reason}' if result.reason else ''}"
            for result in self.results
        ]
        return "\n".join([self.plugin, *lines, self._summary()])

    def _summary(self) -> str:
        order: tuple[Outcome, ...] = ("passed", "failed", "unexpected pass", "not applicable", "expected failure")
        parts = [f"{self.counts[outcome]} {outcome}{self._told(outcome)}" for outcome in order if outcome in self.counts]
        total = len(self.results)
        return f"{total} check{'' if total == 1 else 's'}: {', '.join(parts) or 'none ran'}"

    def _told(self, outcome: Outcome) -> str:
        """The reasons, once each, of what was left out; the names of what went wrong."""
        mine = [result for result in self.results if result.outcome == outcome]
        words = [result.name for result in mine] if outcome in _BAD else [result.reason for result in mine if result.reason]
        return f" ({'; '.join(dict.fromkeys(words))})" if words else ""
