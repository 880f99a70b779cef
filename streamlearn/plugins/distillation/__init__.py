"""Learning from the outputs of another model: LwF."""
