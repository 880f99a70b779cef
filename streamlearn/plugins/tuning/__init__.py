"""Tuning: numbers of a strategy that are moved while it runs."""
