"""Learning how to learn: look-aheads over the whole objective."""
