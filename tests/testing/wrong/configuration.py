"""Wrong in what they accept."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from streamlearn.core.plugin import PluginConfig
from tests.testing.wrong.control import Control


class Clamps(Control):
    """Puts a value right that is out of bounds, and says nothing.

    Whoever mistypes 10 as -10 trains a week without the method, and the record says that it was there.
    """

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        if "strength" in options:
            options["strength"] = max(options["strength"], 0.0)
        super().__init__(name=name, **options)


class NotJson(Control, options={"dtype": "of the sum, any floating type of torch."}):
    """Takes a type of torch as an option, which JSON cannot hold.

    The configuration is written into the folder of every run: what cannot be written cannot be resumed, compared or published.
    """

    class Config(PluginConfig):
        """Options of the pull, one too many."""

        strength: float = Field(0.1, ge=0)
        dtype: Any = torch.float32


class SwallowsOptions(Control):
    """Ignores an option that it does not know: ``strenght=10`` trains with the default."""

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **{option: value for option, value in options.items() if option in self.Config.model_fields})


class NoBound(Control):
    """Documents a bound (λ is at least 0) and does not enforce it.

    At -1 the pull is a push: the weights run away, and the error that comes names a loss, not the option.
    """

    class Config(PluginConfig):
        """Options of the pull, unbounded."""

        strength: float = 0.1
