"""A package, because avalanche-lib installs a package `tests` of its own, which would hide this folder."""
