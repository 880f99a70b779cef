"""Sources by name, with options: ``"digits"``, ``"csv:path=rows.csv,target=class"``."""

from __future__ import annotations

import importlib
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamlearn.errors import ConfigurationError, UnknownNameError
from streamlearn.options import parse
from streamlearn.streams.data import Source

__all__ = ["NAMES", "canonical_name", "named_source", "parts_of"]

NAMES: dict[str, str] = {
    "breast-cancer": "bundled:breast_cancer",
    "camvid": "camvid:camvid",
    "cifar-10": "cifar:cifar_10",
    "cifar-100": "cifar:cifar_100",
    "clinc150": "text:clinc150",
    "csv": "tables:csv_file",
    "diabetes": "bundled:diabetes",
    "digits": "bundled:digits",
    "fashion-and-mnist": "overlaid:fashion_and_mnist",
    "fashion-mnist": "vision:fashion_mnist",
    "folder": "folders:folder",
    "gradnorm-toy": "synthetic_tasks:gradnorm_toy",
    "huggingface": "hub:saved_dataset",
    "hyperplane": "synthetic:hyperplane",
    "iris": "bundled:iris",
    "kmnist": "vision:kmnist",
    "linnerud": "bundled:linnerud",
    "mmoe-pairs": "synthetic_tasks:mmoe_pairs",
    "mnist": "vision:mnist",
    "moons": "synthetic:moons",
    "multi-digits": "overlaid:multi_digits",
    "multi-fashion": "overlaid:multi_fashion",
    "multi-mnist": "overlaid:multi_mnist",
    "omniglot": "omniglot:omniglot",
    "river": "river_data:river_named",
    "sarcos": "matlab:sarcos",
    "school": "matlab:school",
    "sea": "synthetic:sea",
    "svhn": "vision:svhn",
    "text": "text:text_file",
    "usps": "vision:usps",
    "wine": "bundled:wine",
}
"""Where each source is made: a module beside this one, and a function in it that gives a training and a test source, or ``None`` for
the latter. Its arguments are the options that may follow the name."""

_LOADED: dict[tuple[str, str], tuple[object, tuple[Source, Source | None]]] = {}
"""By name and data folder, what its files looked like when they were read, and what was made of them."""


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
    """The training source and the test source (if it has one) that ``text`` names; loaded once per process, and anew when the
    files or folders that its options ``path``, ``test`` or ``root`` name have changed: in time, in size, or in what lies directly in them.

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
    name, options = _read(text)
    state = _state(options)
    known = _LOADED.get(key)
    if known is not None and known[0] == state:
        return known[1]
    parameters = inspect.signature(_function(name)).parameters.values()
    missing = [p.name for p in parameters if p.default is p.empty and p.name not in options]
    if missing:
        raise ConfigurationError(f"source {text!r} needs the option {missing[0]!r}: write {name}:{missing[0]}=...")
    made: tuple[Source, Source | None] = _function(name)(**options)
    _LOADED[key] = state, made  # with the state from before reading: what changes meanwhile is read again
    return made


def parts_of(text: str) -> tuple[str, ...]:
    """The names of the sources of which the one that ``text`` names consists, each with a task of its own; none where it is but one.

    Raises:
        UnknownNameError, ConfigurationError, DataError: as `named_source`.

    Example:
        >>> parts_of("digits")
        ()
    """
    return tuple(getattr(named_source(text)[0], "parts", ()))


def _state(options: Mapping[str, Any]) -> object:
    """What tells whether the files and folders that ``options`` name are still those that were read."""
    root = os.environ.get("STREAMLEARN_DATA", "")
    named = [Path(options[key]).expanduser() for key in ("path", "test", "root") if isinstance(options.get(key), str)]
    return tuple(_stamps(place) for given in named for place in (given, *([Path(root).expanduser() / given] if root else [])))


def _stamps(place: Path) -> tuple[object, ...]:
    try:
        inside = sorted(place.iterdir())
    except OSError:  # a file, or nothing, of which the source itself tells
        inside = []
    return tuple((str(path.absolute()), _stamp(path)) for path in (place, *inside))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size


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
