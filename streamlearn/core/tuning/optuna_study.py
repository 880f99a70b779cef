"""What a search needs of Optuna, which is an extra: imported when it is used."""

from __future__ import annotations

import contextlib
import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from streamlearn.errors import ConfigurationError, MissingExtraError

__all__ = ["check_same", "installed_optuna", "pruner_of", "quiet", "storage_of"]

_PRUNERS = ("median", "halving")


def installed_optuna() -> Any:
    """Optuna.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module("optuna")
    except ImportError:
        raise MissingExtraError("streamlearn.tune", "optuna", "tune") from None


@contextlib.contextmanager
def quiet(optuna: Any) -> Iterator[None]:
    """Optuna's messages about each trial off, and as they were afterwards."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(before, optuna.logging.WARNING))
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)


def storage_of(storage: str | Path | None, optuna: Any) -> Any:
    """A database: one in a file by SQLite, or the one at an address; ``None`` for memory. Never Optuna's journal file.

    Raises:
        ConfigurationError: it is something else.
    """
    if storage is None:
        return None
    if not isinstance(storage, str | Path):
        raise ConfigurationError(
            f"tune: storage is a {type(storage).__name__}: give the path of an SQLite file, or the address of a database"
        )
    address = str(storage)
    return optuna.storages.RDBStorage(address if "://" in address else f"sqlite:///{Path(address).absolute()}")


def pruner_of(pruner: Any, optuna: Any) -> Any:
    """A pruner by name, or one that is given.

    Raises:
        ConfigurationError: it is neither.
    """
    if pruner is None:
        return optuna.pruners.NopPruner()
    if pruner == "median":
        return optuna.pruners.MedianPruner(n_startup_trials=5)
    if pruner == "halving":
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
    if isinstance(pruner, optuna.pruners.BasePruner):
        return pruner
    raise ConfigurationError(f"tune: pruner is {pruner!r}: give one of {', '.join(map(repr, _PRUNERS))}, one of Optuna's, or None")


def check_same(search: Any, said: Mapping[str, Any]) -> None:
    """Refuse to mix the trials of different searches.

    Raises:
        ConfigurationError: the storage holds one of other settings than ``said``.
    """
    plain = json.loads(json.dumps(said))
    kept = search.user_attrs.get("streamlearn")
    if kept is None and not search.trials:
        search.set_user_attr("streamlearn", plain)
    elif kept != plain:
        what = next(key for key in plain if kept is None or kept.get(key) != plain[key])
        raise ConfigurationError(
            f"tune: the storage holds another search under the name {search.study_name!r}, of another {what}: give study= another name"
        )
