from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from streamlearn import models
from streamlearn.errors import ConfigurationError
from streamlearn.models.initialization import is_untouched, reinitialize
from tests.core.support import class_stream


def test_drawing_again_depends_on_the_seed_alone_and_leaves_torchs_state() -> None:
    stream = class_stream()
    one, two, three = (models.mlp(stream, (4,)) for _ in range(3))
    state = torch.get_rng_state()
    reinitialize(one, 5)
    reinitialize(two, 5)
    reinitialize(three, 6)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b, c in zip(one.parameters(), two.parameters(), three.parameters(), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)


def test_whoever_writes_a_weight_has_touched_the_model() -> None:
    stream = class_stream()
    assert is_untouched(models.mlp(stream))
    assert not is_untouched(nn.Linear(2, 2))
    model = models.mlp(stream)
    model.load_state_dict(copy.deepcopy(model.state_dict()))
    assert not is_untouched(model)


def test_a_module_that_cannot_be_drawn_again_is_named() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = nn.Parameter(torch.zeros(1))

    with pytest.raises(ConfigurationError, match=r"module '1' \(Own\) has parameters but no reset_parameters\(\): add one"):
        reinitialize(nn.Sequential(nn.Linear(1, 1), Own()), 0)
