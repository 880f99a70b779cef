"""Wrong in that they do nothing, which no smoke test sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from streamlearn import hookimpl
from streamlearn.core.view import Step
from tests.testing.wrong.control import Described


class LooksUnderTheWrongName(Described):
    """Damps the gradients of all weights below ``module.``, a prefix that only another library puts before the names: of none.

    Avalanche shipped an online EWC without penalty (#728): it trained, its tests passed, and it was a baseline in papers.
    """

    info = replace(Described.info, name="looks_under_the_wrong_name", memory="none", summary="Damps the gradients of the encoder.")
    formula = "g_j = g_j / (1 + λ)"

    @hookimpl
    def transform_gradients(self, gradients: Mapping[str, Tensor], step: Step) -> Mapping[str, Tensor]:
        """Damp what is found."""
        damped = 1.0 / (1.0 + step.run.value(self, "strength"))
        return {name: damped * value if name.startswith("module.") else value for name, value in gradients.items()}
