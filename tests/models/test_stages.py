from __future__ import annotations

import pytest
import torch
from torch import nn

from streamlearn.errors import ConfigurationError
from streamlearn.models.parts import Weights, alone
from streamlearn.models.stages import shapes_of, staged, stages_of


def encoder() -> nn.Sequential:
    relu = nn.ReLU()  # one object in two places
    body = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), relu, nn.MaxPool2d(2))
    return nn.Sequential(
        nn.Identity(), body, nn.Conv2d(3, 4, 3, padding=1), relu, nn.Flatten(), nn.Linear(16, 5), nn.LayerNorm(5), nn.PReLU()
    )


def test_stages_one_after_another_are_the_encoder() -> None:
    whole = encoder()
    x = torch.randn(6, 1, 4, 4)
    for ends in (None, (), ("1.2",), ("1.3", "4"), ("3", "1.3", "7")):
        stages = stages_of(whole, ends)
        y = x
        for stage in stages:
            y = stage(y)
        assert torch.equal(y, whole(x))
    assert [len(stage) for stage in stages_of(whole)] == [5, 2, 4]
    assert [len(stage) for stage in stages_of(whole, ("1.3", "4"))] == [5, 3, 3]
    assert len(stages_of(whole, ())) == 1
    assert shapes_of(stages_of(whole), (1, 4, 4)) == [(1, 4, 4), (3, 2, 2), (4, 2, 2), (5,)]


def test_normalisation_never_begins_a_stage_and_other_modules_are_one() -> None:
    several = nn.Sequential(nn.LayerNorm((2, 3)), nn.Linear(3, 3), nn.LayerNorm((2, 3)), nn.Flatten())
    assert len(stages_of(several)) == 1
    assert len(stages_of(nn.Linear(3, 2))) == 1
    assert len(stages_of(nn.Flatten())) == 1


def test_looking_at_shapes_leaves_no_trace() -> None:
    whole = encoder().double()
    whole[1][1].eval()
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    modes = [module.training for module in whole.modules()]
    _, shapes = staged("some", whole, 5, (1, 4, 4), None)
    assert shapes[-1] == (5,)
    assert [module.training for module in whole.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())


def test_what_is_no_stage_is_named() -> None:
    with pytest.raises(ConfigurationError, match=r"no stage can end at '1.7' \(did you mean '1.3'\?\)"):
        stages_of(encoder(), ("1.7",))
    with pytest.raises(ConfigurationError, match=r"some: for one input of shape \(1, 4, 4\) the encoder gives \(1, 5\) and not \(1, 9\)"):
        staged("some", encoder(), 9, (1, 4, 4))
    with pytest.raises(ConfigurationError, match="some: for one input of shape"):
        staged("some", encoder(), 5, (7,))


def test_a_single_row_passes_batch_normalisation_and_others_move_its_statistics() -> None:
    norm = nn.BatchNorm1d(2)
    row = torch.tensor([[1.0, 2.0]])
    assert torch.equal(alone(norm, row), norm.eval()(row))
    norm.train()
    alone(norm, row)
    assert norm.training
    assert int(norm.num_batches_tracked) == 0
    alone(norm, torch.randn(3, 2))
    assert int(norm.num_batches_tracked) == 1


def test_weights_go_back_to_where_they_started() -> None:
    weights = Weights([torch.full((2,), 0.5), torch.zeros(1)])
    with torch.no_grad():
        weights[0].add_(1.0)
    weights.reset_parameters()
    assert torch.equal(weights[0], torch.full((2,), 0.5))
    assert len(list(weights.parameters())) == 2
