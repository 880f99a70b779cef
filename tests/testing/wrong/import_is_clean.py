"""Wrong before anybody has made one."""

from __future__ import annotations

import torch

from tests.testing.wrong.control import Control

torch.manual_seed(1234)  # this is what is wrong


class SeedsOnImport(Control):
    """Its module seeds torch for the whole process.

    Whoever imports it, if only to list plugins, draws other numbers from then on, and believes that seeds do not matter because all
    five of them give the same curve.
    """
