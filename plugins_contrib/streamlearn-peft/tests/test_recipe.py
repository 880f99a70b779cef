"""Which layers get an adapter, and what is refused before anything is trained."""

from __future__ import annotations

import importlib.util

import pytest
from streamlearn.errors import ConfigurationError, MissingExtraError, UnknownNameError
from torch import nn

from streamlearn_peft import PEFT
from streamlearn_peft.recipe import Recipe, layers_of

needs_peft = pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="peft is not installed")


def attending() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.TransformerEncoderLayer(8, 2, batch_first=True), nn.Linear(8, 4))


def test_ends_of_paths_and_expressions_for_whole_paths() -> None:
    encoder = nn.ModuleDict({"a": nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "b": nn.Sequential(nn.Linear(2, 2))})
    assert layers_of(encoder, ["0"]) == ["a.0", "b.0"]
    assert layers_of(encoder, ["a.0"]) == ["a.0"]
    assert layers_of(encoder, r"a\.\d") == ["a.0", "a.1"]


def test_without_linear_layers_convolutions_are_taken() -> None:
    assert layers_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten()), None) == ["0"]


def test_layers_that_torch_reads_past_an_adapter_are_left_out_or_refused() -> None:
    assert layers_of(attending(), None) == ["0", "2"]
    with pytest.raises(ConfigurationError, match=r"layer '1.linear1' lies in a module of torch that reads its weights past"):
        layers_of(attending(), ["linear1"])
    with pytest.raises(ConfigurationError, match="finds no linear layer and no convolution"):
        layers_of(nn.MultiheadAttention(8, 2), None)


def test_a_layer_that_is_not_there_is_told() -> None:
    with pytest.raises(UnknownNameError, match="unknown layer of the encoder 'q_proj'"):
        layers_of(attending(), ["q_proj"])
    with pytest.raises(ConfigurationError, match=r"no layer of the encoder matches target_modules='x\.\*'"):
        layers_of(attending(), "x.*")


@needs_peft
def test_rank_and_alpha_have_the_method_s_names() -> None:
    assert Recipe.of("lora", ["0"], 4, 16.0, {"lora_dropout": 0.1}).options == {"lora_dropout": 0.1, "r": 4, "lora_alpha": 16.0}
    assert Recipe.of("loha", ["0"], 4, 2.0, {}).options == {"r": 4, "alpha": 2.0}
    with pytest.raises(ConfigurationError, match="method 'ia3' has no rank: leave the option out"):
        Recipe.of("ia3", ["0"], 4, None, {})
    with pytest.raises(UnknownNameError, match="unknown option of method 'lora' of PEFT 'lora_dropuot': did you mean 'lora_dropout'"):
        Recipe.of("lora", ["0"], None, None, {"lora_dropuot": 0.1})


@needs_peft
def test_a_method_that_is_not_offered_is_told() -> None:
    with pytest.raises(UnknownNameError, match="unknown method of PEFT 'lorra': did you mean 'lora'"):
        PEFT(method="lorra")


def test_without_peft_the_line_that_brings_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamlearn_peft.plugin.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"plugin peft needs the package 'peft'.*pip install 'peft>=0.21,<0.22'"):
        PEFT()
