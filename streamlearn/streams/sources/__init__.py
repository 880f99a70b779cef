"""Where rows come from: in memory, in a torch data set, bundled with a dependency, generated, or in files."""

from __future__ import annotations

from streamlearn.streams.sources.datasets import DatasetSource, dataset_source
from streamlearn.streams.sources.named import NAMES, canonical_name, named_source
from streamlearn.streams.sources.tensors import TensorSource

__all__ = ["NAMES", "DatasetSource", "TensorSource", "canonical_name", "dataset_source", "named_source"]
