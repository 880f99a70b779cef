"""Wrong when the model grows. Avalanche #925, #744: regularisers compare parameters of other shapes, or drop their state."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tests.testing.wrong.control import Control


class NeverGrows(Control):
    """Compares each weight with its anchor as if heads did not grow with the classes."""

    def distance(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Half the squared distance of tensors that have equal shapes, or do not."""
        found = [(parameters[name] - anchor).square().sum() for name, anchor in self._anchor.items() if name in parameters]
        return 0.5 * torch.stack(found).sum()
