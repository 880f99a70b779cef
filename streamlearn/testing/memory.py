"""What ``PluginInfo.memory`` may say, as far as the kit can measure it.

======================================  ===========================================================================
words                                   what a state may take
======================================  ===========================================================================
``none``                                nothing but a few numbers
``... within a step``                   likewise: what lives within a step is no state
``N x parameters``, ``N x the model``   N times the bytes of the model's parameters
``N bytes for each weight ...``         likewise, N bytes for each of them
``capacity ...``                        64 bytes and an input of the kit for each of the ``capacity`` rows that an option names
``N numbers ... for each X``            8 N bytes for each of the at most 12 tasks, classes or groups that the kit has
``N x parameters per experience``       N times the bytes of the parameters for each experience finished
======================================  ===========================================================================

To all of them 64 bytes are added, for counters. Any other words are for people, and are not measured.
"""

from __future__ import annotations

import re
from typing import Any

__all__ = ["allowance"]

_COUNTERS = 64
_ROW = 64 + 4 * 6
_THINGS = 12

_WORDS = {"a": 1.0, "one": 1.0, "two": 2.0, "three": 3.0}


def allowance(told: str, parameters: int, experiences: int, config: Any) -> int | None:
    """How many bytes a state may take, or ``None`` where ``told`` has another form.

    Args:
        told: ``info.memory``.
        parameters: bytes of the model's parameters.
        experiences: how many have been finished.
        config: the plugin's options, among which ``capacity`` is looked for.

    Example:
        >>> allowance("2 x parameters", 100, 3, None), allowance("1 x parameters per experience", 100, 3, None)
        (264, 364)
        >>> allowance("none", 100, 3, None), allowance("whatever it takes", 100, 3, None)
        (64, None)
    """
    text = told.strip().lower()
    if text == "none" or text.endswith("within a step"):
        return _COUNTERS
    if found := re.match(r"(\d+(?:\.\d+)?) x (?:the )?(?:parameters|model)(?P<each>,? (?:per|for each) experience)?$", text):
        times = experiences if found["each"] else 1
        return int(float(found[1]) * parameters * times) + _COUNTERS
    if found := re.match(r"(\d+) bytes? (?:for each|per) (?:weight|parameter)", text):
        return int(found[1]) * parameters // 4 + _COUNTERS
    if text.startswith("capacity") and isinstance(capacity := getattr(config, "capacity", None), int):
        return capacity * _ROW + _COUNTERS
    if found := re.match(r"(\d+|a|one|two|three) numbers? (?:for each|per) ", text):
        count = _WORDS.get(found[1]) or float(found[1])
        return int(8 * count * _THINGS) + _COUNTERS
    return None
