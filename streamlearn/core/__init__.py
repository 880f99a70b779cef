"""Engine and contract; knows no method, no data set, no screen. Start reading in hooks.py, then step.py."""
