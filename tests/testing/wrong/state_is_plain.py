"""Wrong in what they keep. Avalanche pickles the whole strategy: #1268, #1270, #1286, #1549; 100 s for one strategy (#1261)."""

from __future__ import annotations

import pickle
from typing import Any

import torch

from streamlearn import hookimpl
from streamlearn.core.view import Step
from tests.testing.wrong.control import Control


class KeepsNumpy(Control):
    """Keeps arrays of numpy in its state, which no checkpoint without pickle can hold."""

    def state_dict(self) -> dict[str, Any]:
        """The anchor, as arrays."""
        return {"anchor": {name: value.cpu().numpy() for name, value in self._anchor.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._anchor = {name: torch.from_numpy(value) for name, value in state["anchor"].items()}


class Pickles(Control):
    """Keeps a pickle in its state: it runs code when it is read, and breaks with the next version of what it holds."""

    def state_dict(self) -> dict[str, Any]:
        """The anchor, as one string of bytes."""
        return {"anchor": pickle.dumps(self._anchor)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._anchor = pickle.loads(state["anchor"])


class KeysAreNumbers(Control):
    """Keeps a dict by number, which comes back from JSON by string."""

    def state_dict(self) -> dict[str, Any]:
        """The anchor by place."""
        return {"anchor": dict(enumerate(self._anchor.values())), "names": list(self._anchor)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._anchor = {name: state["anchor"][number] for number, name in enumerate(state["names"])}


class TakesHalfBack(Control):
    """Saves the number of its last step, and does not take it back.

    No weight depends on it today, and the next step sets it anew; whoever reads it between a resume and that step reads 0.
    """

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._last = 0

    @hookimpl
    def after_step(self, step: Step) -> None:
        """Remember its number."""
        self._last = step.update

    def state_dict(self) -> dict[str, Any]:
        """The anchor, and the number of the last step."""
        return {**super().state_dict(), "last": self._last}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back the anchor alone."""
        super().load_state_dict(state)
