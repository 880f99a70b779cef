"""Wrong in what they tell the reader."""

from __future__ import annotations

from pydantic import Field

from streamlearn.core.plugin import PluginConfig
from tests.testing.wrong.control import Control


class UndocumentedOption(Control):
    """Has an option of which the docstring says nothing."""

    class Config(PluginConfig):
        """Options of the pull, one of them secret."""

        strength: float = Field(0.1, ge=0)
        power: float = Field(2.0, gt=0)


class NoCard(Control, card=False):
    """Says what it does, and neither what it costs, nor its options, nor whose it is."""


class NoDocstring(Control, card=False):
    __doc__ = None
