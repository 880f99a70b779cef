"""Operators: what is done to a stream, whatever protocol made it: cut, mixed, hidden, augmented. Each gives another stream."""
