"""Aligning domains, and adapting at test time."""
