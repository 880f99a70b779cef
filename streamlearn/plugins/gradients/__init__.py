"""Combining and projecting gradients."""
