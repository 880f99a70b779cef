"""Every aggregator and scalarizer of TorchJD, by name, with its state kept by the names of rows."""

from streamlearn_torchjd.aggregator import TorchJDAggregator
from streamlearn_torchjd.scalarizer import TorchJDScalarizer

__all__ = ["TorchJDAggregator", "TorchJDScalarizer"]
