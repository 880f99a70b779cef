from __future__ import annotations

import re

import pytest
import torch

from streamlearn.errors import UnknownNameError
from streamlearn.streams.sources import named_source


def test_digits_is_a_fixed_stratified_split() -> None:
    train, test = named_source("DIGITS")
    assert test is not None
    assert (len(train), len(test), train.input_shape) == (1438, 359, (1, 8, 8))
    assert train is named_source("digits")[0]
    x, targets = test.take(torch.arange(359))
    assert (x.min(), x.max()) == (0.0, 1.0)
    assert torch.bincount(targets["y"]).min() >= 35
    rows = {row.numpy().tobytes() for row in train.take(torch.arange(1438)).x}
    assert not any(row.numpy().tobytes() in rows for row in x)


def test_unknown_names_offer_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=re.escape("unknown source 'mnits': did you mean 'mnist'? (known: ")):
        named_source("mnits")
    with pytest.raises(UnknownNameError, match="unknown option of source cifar-100 'label': did you mean 'labels'"):
        named_source("cifar_100:label=coarse")
