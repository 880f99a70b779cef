"""Sources by name, with options: ``"digits"``, ``"csv:path=rows.csv,target=class"``."""

from __future__ import annotations

import importlib
import inspect
import json
import os
from typing import Any

from streamlearn.errors import ConfigurationError, UnknownNameError
from streamlearn.options import parse
from streamlearn.streams.data import Source

__all__ = ["NAMES", "canonical_name", "named_source"]

NAMES: dict[str, str] = {
    "breast-cancer": "bundled:breast_cancer",
    "cifar-10": "cifar:cifar_10",
    "cifar-100": "cifar:cifar_100",
    "clinc150": "text:clinc150",
    "csv": "tables:csv_file",
    "diabetes": "bundled:diabetes",
    "digits": "bundled:digits",
    "fashion-mnist": "vision:fashion_mnist",
    "folder": "folders:folder",
    "huggingface": "hub:saved_dataset",
    "hyperplane": "synthetic:hyperplane",
    "iris": "bundled:iris",
    "kmnist": "vision:kmnist",
    "linnerud": "bundled:linnerud",
    "mmoe-pairs": "synthetic:mmoe_pairs",
    "mnist": "vision:mnist",
    "moons": "synthetic:moons",
    "omniglot": "omniglot:omniglot",
    "river": "river_data:river_named",
    "sea": "synthetic:sea",
    "svhn": "vision:svhn",
    "text": "text:text_file",
    "usps": "vision:usps",
    "wine": "bundled:wine",
}
"""Where each source is made: a module beside this one, and a function in it that gives a training and a test source, or ``None`` for
the latter. Its arguments are the options that may follow the name."""

_LOADED: dict[tuple[str, str], tuple[Source, Source | None]] = {}


def canonical_name(text: str) -> str:
    """The one way of writing the source that ``text`` means: letter case, ``_`` and ``-`` in names, and the order of options make no
    difference.

    Raises:
        UnknownNameError: no source, or no option of this source, is called so.
        ConfigurationError: ``text`` cannot be read.

    Example:
        >>> canonical_name("Fashion_MNIST")
        'fashion-mnist'
    """
    name, options = _read(text)
    told = ",".join(f"{key}={_written(key, options[key])}" for key in sorted(options))
    return f"{name}:{told}" if told else name


def named_source(text: str) -> tuple[Source, Source | None]:
    """The training source and the test source (if it has one) that ``text`` names; loaded once per process.

    Raises:
        UnknownNameError: no source, or no option of this source, is called so.
        ConfigurationError: an option is missing.
        DataError: its files are missing or damaged.

    Example:
        >>> train, test = named_source("Digits")
        >>> train.name, test.name
        ('digits', 'digits/test')
    """
    key = (canonical_name(text), os.environ.get("STREAMLEARN_DATA", ""))
    if key not in _LOADED:
        name, options = _read(text)
        parameters = inspect.signature(_function(name)).parameters.values()
        missing = [p.name for p in parameters if p.default is p.empty and p.name not in options]
        if missing:
            raise ConfigurationError(f"source {text!r} needs the option {missing[0]!r}: write {name}:{missing[0]}=...")
        _LOADED[key] = _function(name)(**options)
    return _LOADED[key]


def _read(text: str) -> tuple[str, dict[str, Any]]:
    given, options = parse(text)
    name = given.lower().replace("_", "-")
    if name not in NAMES:
        raise UnknownNameError("source", given, NAMES)
    known = list(inspect.signature(_function(name)).parameters) if options else []
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of source {name}", option, known)
    return name, options


def _written(key: str, value: Any) -> str:
    """``value`` so that it is read back as it is; quoted only where it must be."""
    if isinstance(value, str) and value:
        try:
            if parse(f"_:{key}={value}")[1] == {key: value}:
                return value
        except ConfigurationError:
            pass
    return json.dumps(value)


def _function(name: str) -> Any:
    module, _, function = NAMES[name].partition(":")
    return getattr(importlib.import_module(f"streamlearn.streams.sources.{module}"), function)
