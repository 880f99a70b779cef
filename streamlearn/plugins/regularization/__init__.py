"""Penalties on parameters: EWC."""
