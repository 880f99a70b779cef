"""The checks, by what they are about. Each is a function of a `Subject` that returns, or raises what is wrong."""
