"""Data sets and generators of river as a source."""

from __future__ import annotations

import inspect
import itertools
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamlearn.errors import ConfigurationError, DataError, MissingExtraError, UnknownNameError
from streamlearn.streams.sources.tables import encoded, pandas_for

if TYPE_CHECKING:
    from streamlearn.streams.sources.tables import Standardize, TableSource

__all__ = ["river_named", "river_source"]


def river_source(
    dataset: Iterable[tuple[Mapping[Any, Any], Any]],
    *,
    rows: int | None = None,
    target: str | Sequence[str] | None = None,
    name: str | None = None,
    standardize: Standardize = True,
) -> TableSource:
    """The rows of a data set of river, in their order, as a source.

    Protocol: the features of a row, by name, are the columns of a table, which is encoded as `table_source` says: one-hot codes for text,
    numbers standardised with the mean and deviation of all rows. Whether targets are classes or values is what the data set says
    (``dataset.task``), else what their type says. A target of several outputs becomes several columns; a single one is called ``"y"``.

    Args:
        dataset: gives pairs of a dictionary and a target, such as an object of `river.datasets` or `river.datasets.synth`.
        rows: how many are taken from the beginning, at least 1; needed for a generator, which has no end. ``None``: all.
        target: the output, or the outputs, to be kept of several; ``None``: all.
        name: what messages and the record call the source; ``None``: the name of the data set's class, in lower case.
        standardize: true, false, or ``"inputs"`` to leave the values of a regression as they are.

    Raises:
        DataError: the data set would have to be downloaded, is sparse, or has fewer rows than ``rows``; it has no end and ``rows`` is not
            given; there is no such output; or a column cannot be encoded.
        MissingExtraError: pandas is not installed.

    Source: Montiel et al., "River: machine learning for streaming data in Python", JMLR 2021.

    Example:
        >>> from river.datasets import Phishing
        >>> river_source(Phishing(), rows=100)
        TensorSource('phishing', 100 rows of (9,), targets y)
    """
    pandas = pandas_for("a data set of river")
    called = type(dataset).__name__.lower() if name is None else name
    _refuse_what_cannot_be_read(dataset, called, rows)
    pairs = _pairs(dataset, rows, called)
    inputs = pandas.DataFrame([{str(key): value for key, value in x.items()} for x, _ in pairs])
    several = isinstance(pairs[0][1], Mapping)
    outputs = [{str(key): value for key, value in y.items()} if several else {"y": y} for _, y in pairs]
    targets = _chosen(pandas.DataFrame(outputs), target, called, several)
    said = str(getattr(dataset, "task", "") or "").lower()
    task = "regression" if "regression" in said else "classification" if "classification" in said else None
    return encoded(inputs, targets, called, standardize=standardize, task=task)  # type: ignore[arg-type]


def river_named(
    name: str,
    rows: int | None = None,
    seed: int | None = None,
    target: str | list[str] | None = None,
    standardize: Standardize = True,
    options: dict[str, Any] | None = None,
) -> tuple[TableSource, None]:
    """``"river:name=..."``: a data set that comes with river (or that its user has downloaded), or a generator; no test rows of its own.

    Args:
        name: of the class in `river.datasets`, such as ``Phishing`` or ``synth.SEA``; letter case makes no difference.
        rows, target, standardize: as of `river_source`.
        seed: of a generator, at least 0; 0 by default, so that the same name always means the same rows.
        options: further arguments of the class, as JSON, such as ``{"variant": 2}``.

    Raises:
        UnknownNameError: there is no such class.
        ConfigurationError: the class does not take these arguments.
        DataError: as `river_source`.
        MissingExtraError: river or pandas is not installed.

    Example:
        >>> river_named("synth.SEA", rows=50, options={"variant": 2})[0]
        TensorSource('sea', 50 rows of (3,), targets y)
    """
    try:
        from river import datasets
    except ImportError:
        raise MissingExtraError(f"source 'river:name={name}'", "river", "river") from None
    known = {path.lower(): (path, cls) for path, cls in _classes(datasets, "") + _classes(datasets.synth, "synth.")}
    if str(name).lower() not in known:
        raise UnknownNameError("data set of river", str(name), [path for path, _ in known.values()])
    path, cls = known[str(name).lower()]
    given = dict(options or {})
    seeds = [key for key in inspect.signature(cls).parameters if key.split("_")[0] == "seed"]
    if seed is not None and not seeds:
        raise ConfigurationError(f"seed is {seed!r}, but {path} of river draws nothing: leave it out")
    for key in seeds:
        given.setdefault(key, 0 if seed is None else seed)
    try:
        dataset = cls(**given)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{path} of river cannot be made of {given}: {error}") from error
    return river_source(dataset, rows=rows, target=target, standardize=standardize), None


def _classes(module: Any, prefix: str) -> list[tuple[str, Any]]:
    return [(f"{prefix}{key}", value) for key, value in vars(module).items() if inspect.isclass(value) and not key.startswith("_")]


def _refuse_what_cannot_be_read(dataset: Any, name: str, rows: int | None) -> None:
    if not isinstance(dataset, Iterable):
        raise DataError(f"a {type(dataset).__name__} is no data set of river: give an object of river.datasets, such as Phishing()")
    if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 1):
        raise DataError(f"rows is {rows!r}: give a whole number of at least 1, or leave it out")
    if getattr(dataset, "sparse", False):
        raise DataError(f"data set {name!r} of river is sparse, with features that come and go: choose one with a fixed set of features")
    if hasattr(dataset, "download") and not _is_downloaded(dataset):
        raise DataError(
            f"data set {name!r} of river is not on this machine: download it with river.datasets.{type(dataset).__name__}().download()"
        )
    generated = any(cls.__name__ == "SyntheticDataset" for cls in type(dataset).__mro__)
    if rows is None and generated and not getattr(dataset, "n_samples", None):
        raise DataError(f"data set {name!r} of river has no end: say how many rows to take, for example rows=10000")


def _is_downloaded(dataset: Any) -> bool:
    home = Path(os.environ.get("RIVER_DATA", "~/river_data")).expanduser()
    return home.is_dir() and bool(dataset.is_downloaded)  # river would make the folder when asked


def _pairs(dataset: Any, rows: int | None, name: str) -> list[tuple[Any, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # river leaves a file open that is not read to its end
        pairs = list(itertools.islice(dataset, rows))
    if rows is not None and len(pairs) < rows:
        raise DataError(f"data set {name!r} of river has {len(pairs)} rows, fewer than rows={rows}: ask for at most {len(pairs)}")
    if not pairs:
        raise DataError(f"data set {name!r} of river has no rows: give at least one")
    strange = next(
        (n for n, pair in enumerate(pairs) if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], Mapping))), None
    )
    if strange is not None:
        raise DataError(
            f"row {strange} of data set {name!r} is a {type(pairs[strange]).__name__}: it must be a pair of a dictionary and a target"
        )
    return pairs


def _chosen(outputs: Any, target: str | Sequence[str] | None, name: str, several: bool) -> Any:
    if target is None:
        return outputs
    wanted = [str(target)] if isinstance(target, str) or not isinstance(target, Sequence) else [str(column) for column in target]
    if not several:
        raise DataError(f"data set {name!r} of river has a single output, which has no name: leave target out")
    strange = next((column for column in wanted if column not in outputs.columns), None)
    if strange is not None:
        raise UnknownNameError(f"output of {name}", strange, list(outputs.columns))
    return outputs[wanted]
