"""Avalanche's benchmarks as streams, and streams as Avalanche's benchmarks."""

from streamlearn.streams.avalanche.exporting import to_avalanche
from streamlearn.streams.avalanche.importing import from_avalanche

__all__ = ["from_avalanche", "to_avalanche"]
