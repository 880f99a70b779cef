"""Rows of the past in the batches of the present: replay, and joint training on everything."""
