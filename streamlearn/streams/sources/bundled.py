"""Data sets that come with a dependency, so that they are at hand without any download."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamlearn.streams.partition import stratified_split
from streamlearn.streams.sources.encoding import spread
from streamlearn.streams.sources.tensors import TensorSource

__all__ = ["breast_cancer", "diabetes", "digits", "iris", "linnerud", "wine"]


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


@functools.cache
def iris() -> tuple[TensorSource, None]:
    """``"iris"``: 150 flowers of 3 species, x ``(150, 4)`` standardised with the mean and deviation of all rows; no test rows of its own.

    Source: Fisher, "The use of multiple measurements in taxonomic problems", 1936; from scikit-learn.

    Example:
        >>> iris()[0].class_names
        ('setosa', 'versicolor', 'virginica')
    """
    from sklearn.datasets import load_iris

    return _classes(load_iris(), "iris"), None


@functools.cache
def wine() -> tuple[TensorSource, None]:
    """``"wine"``: 178 wines of 3 cultivars, x ``(178, 13)`` standardised with the mean and deviation of all rows; no test rows of its own.

    Source: Aeberhard and Forina, "Wine", UCI Machine Learning Repository, 1992; from scikit-learn.

    Example:
        >>> wine()[0].input_shape
        (13,)
    """
    from sklearn.datasets import load_wine

    return _classes(load_wine(), "wine"), None


@functools.cache
def breast_cancer() -> tuple[TensorSource, None]:
    """``"breast-cancer"``: 569 tumours, malignant (class 0) or benign, x ``(569, 30)`` standardised with the mean and deviation of all
    rows; no test rows of its own.

    Source: Street, Wolberg and Mangasarian, "Nuclear feature extraction for breast tumor diagnosis", 1993; from scikit-learn.

    Example:
        >>> breast_cancer()[0].class_names
        ('malignant', 'benign')
    """
    from sklearn.datasets import load_breast_cancer

    return _classes(load_breast_cancer(), "breast-cancer"), None


@functools.cache
def diabetes() -> tuple[TensorSource, None]:
    """``"diabetes"``: progression of the disease in 442 patients, x ``(442, 10)`` and the one target value ``y`` ``(442,)``, all
    standardised with the mean and deviation of all rows (an error of 1 is that of always predicting the mean); no test rows of its own.

    Source: Efron, Hastie, Johnstone and Tibshirani, "Least angle regression", Annals of Statistics, 2004; from scikit-learn.

    Example:
        >>> source, _ = diabetes()
        >>> source.targets["y"].square().mean().round(decimals=3)
        tensor(1.)
    """
    from sklearn.datasets import load_diabetes

    bunch = load_diabetes(scaled=False)
    return TensorSource(_standardized(bunch.data), {"y": _standardized(bunch.target[:, None])[:, 0]}, "diabetes"), None


@functools.cache
def linnerud() -> tuple[TensorSource, None]:
    """``"linnerud"``: 20 men, x ``(20, 3)`` (chin-ups, sit-ups, jumps) and the three targets ``weight``, ``waist`` and ``pulse``, each
    ``(20,)``; all standardised with the mean and deviation of all rows; no test rows of its own.

    Source: Tenenhaus, "La régression PLS: théorie et pratique", 1998; from scikit-learn.

    Example:
        >>> list(linnerud()[0].targets)
        ['weight', 'waist', 'pulse']
    """
    from sklearn.datasets import load_linnerud

    bunch = load_linnerud()
    values = _standardized(bunch.target)
    targets = {name.lower(): values[:, number].contiguous() for number, name in enumerate(bunch.target_names)}
    return TensorSource(_standardized(bunch.data), targets, "linnerud"), None


def _classes(bunch: Any, name: str) -> TensorSource:
    y = torch.from_numpy(bunch.target.astype("int64"))
    return TensorSource(_standardized(bunch.data), {"y": y}, name, class_names=[str(label) for label in bunch.target_names])


def _standardized(values: NDArray[np.float64]) -> Tensor:
    columns = []
    for column in values.T:
        mean, scale = spread(column)
        columns.append((column - mean) / scale)
    return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32))
