"""Data sets that come with a dependency, so that they are at hand without any download."""

from __future__ import annotations

import functools

import torch

from streamlearn.streams.partition import stratified_split
from streamlearn.streams.sources.tensors import TensorSource

__all__ = ["digits"]


@functools.cache
def digits() -> tuple[TensorSource, TensorSource]:
    """``"digits"``: 1,797 grey images of handwritten digits, 8 by 8, from scikit-learn; a fixed stratified 80/20 split.

    Source: Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.

    Returns:
        Training source (x ``(1438, 1, 8, 8)``, levels 0 to 16 divided by 16) and test source (359 rows).

    Example:
        >>> train, test = digits()
        >>> len(train), len(test), train.input_shape
        (1438, 359, (1, 8, 8))
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images.astype("uint8")).unsqueeze(1)
    y = torch.from_numpy(bunch.target.astype("int64"))
    train, test = stratified_split(y, 0.2, seed=0, name="digits")
    return (
        TensorSource(x[train], {"y": y[train]}, "digits", divide_by=16),
        TensorSource(x[test], {"y": y[test]}, "digits/test", divide_by=16),
    )
