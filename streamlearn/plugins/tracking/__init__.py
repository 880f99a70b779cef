"""Measuring more, and writing it down."""
