"""The smallest plugin that teaches; read `l2_anchor.py` from top to bottom."""

from streamlearn_example.l2_anchor import L2Anchor

__all__ = ["L2Anchor"]
