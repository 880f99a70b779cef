"""Avalanche's plugins, unmodified, inside the streamlearn engine."""

from streamlearn_avalanche.effects import changes
from streamlearn_avalanche.plugin import AvalanchePlugin

__all__ = ["AvalanchePlugin", "changes"]
