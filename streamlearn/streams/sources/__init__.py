"""Where rows come from: in memory, in a torch data set, bundled with a dependency, or in files."""

from __future__ import annotations

from collections.abc import Callable

from streamlearn.errors import UnknownNameError
from streamlearn.streams.data import Source
from streamlearn.streams.sources.bundled import digits
from streamlearn.streams.sources.datasets import DatasetSource, dataset_source
from streamlearn.streams.sources.files import fashion_mnist, mnist, usps
from streamlearn.streams.sources.tensors import TensorSource

__all__ = ["NAMES", "DatasetSource", "TensorSource", "canonical_name", "dataset_source", "named_source"]

NAMES: dict[str, Callable[[], tuple[Source, Source]]] = {"digits": digits, "fashion-mnist": fashion_mnist, "mnist": mnist, "usps": usps}
"""What each named source loads: a training source and a test source."""


def canonical_name(name: str) -> str:
    """The name in the table that ``name`` means: letter case, ``_`` and ``-`` make no difference.

    Raises:
        UnknownNameError: no source is called so.

    Example:
        >>> canonical_name("Fashion_MNIST")
        'fashion-mnist'
    """
    known = name.lower().replace("_", "-")
    if known not in NAMES:
        raise UnknownNameError("source", name, NAMES)
    return known


def named_source(name: str) -> tuple[Source, Source]:
    """The training source and the test source called ``name``; loaded once per process.

    Raises:
        UnknownNameError: no source is called so.
        DataError: its files are missing or damaged.

    Example:
        >>> train, test = named_source("Digits")
        >>> train.name, test.name
        ('digits', 'digits/test')
    """
    return NAMES[canonical_name(name)]()
