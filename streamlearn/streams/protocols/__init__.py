"""Protocols: how tasks arrive when they are made from a source. One module for each kind."""
