"""Tables: a pandas DataFrame, or a CSV file, as a source."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from streamlearn.errors import ConfigurationError, DataError, MissingExtraError, nearest
from streamlearn.streams.sources.encoding import (
    Feature,
    TargetColumn,
    encode_features,
    encode_target,
    learn_feature,
    learn_target,
)
from streamlearn.streams.sources.tensors import TensorSource

if TYPE_CHECKING:
    from pandas import DataFrame

    from streamlearn.streams.sources.encoding import Kind

__all__ = ["TableSource", "csv_file", "encoded", "find_path", "name_of", "table_source"]

Standardize = bool | Literal["inputs"]


class TableSource(TensorSource):
    """Rows of a table, which remember how their columns were encoded.

    Attributes:
        features: how each column became inputs, in order.
        target_columns: how each target was encoded: its classes, or the mean and scale that were taken out of its values.
        regression: true: floats here are values, even if all are whole numbers, since classes have been numbered.

    Example:
        >>> import pandas
        >>> table_source(pandas.DataFrame({"size": [1.0, 3.0], "class": ["b", "a"]}), "class").features
        (Feature(name='size', categories=(), mean=2.0, scale=1.0),)
    """

    features: tuple[Feature, ...] = ()
    target_columns: tuple[TargetColumn, ...] = ()
    regression = True


def table_source(
    frame: DataFrame,
    target: str | Sequence[str],
    *,
    name: str = "table",
    standardize: Standardize = True,
    features: str | Sequence[str] | None = None,
    task: Kind | None = None,
    like: TableSource | None = None,
) -> TableSource:
    """The rows of a pandas DataFrame, in their order, as a source.

    Protocol: a column of numbers becomes one float, a truth value 0 or 1, and text or categories a one-hot code in sorted order of the
    categories. A target of text, categories, truth values or whole numbers becomes class numbers 0 to C-1 in sorted order, and one of
    floats the values of a regression. Standardising, ``(value - mean) / std`` with mean and standard deviation of *all* rows given, is
    done to columns of numbers (not to truth values or one-hot codes) and to the values of a regression, whose errors are then in units
    of their standard deviation.

    Args:
        frame: at least one row, with no value missing.
        target: the target's column, or several, each of which becomes a target column of its name; a single one is called ``"y"``.
        name: what messages and the record call the source.
        standardize: true, false, or ``"inputs"`` to leave the values of a regression as they are.
        features: the columns that become inputs, in this order; ``None``: all but the targets, as they come.
        task: ``"classification"`` or ``"regression"`` where the type of the target does not tell.
        like: a source of training rows whose categories, means, deviations and classes are to be used: for test rows.

    Raises:
        DataError: there is no such column, or a column cannot be encoded: a value is missing or infinite, it holds dates, objects or too
            many different texts, the target has one class only, or, with ``like``, something that no training row has.
        MissingExtraError: pandas is not installed.

    Example:
        >>> import pandas, torch
        >>> frame = pandas.DataFrame({"colour": ["red", "blue", "red"], "size": [1.0, 2.0, 3.0], "class": ["b", "a", "a"]})
        >>> source = table_source(frame, "class", standardize=False)
        >>> source.take(torch.tensor([0, 1])).x.tolist(), source.targets["y"].tolist(), source.class_names
        ([[0.0, 1.0, 1.0], [1.0, 0.0, 2.0]], [1, 0, 0], ('a', 'b'))
    """
    pandas = pandas_for("a table")
    if not isinstance(frame, pandas.DataFrame):
        raise DataError(f"a {type(frame).__name__} is no table: give a pandas DataFrame")
    table = frame.set_axis([str(column) for column in frame.columns], axis=1)
    if like is not None:
        targets, columns = [t.name for t in like.target_columns], [feature.name for feature in like.features]
    else:
        targets = _names(target)
        columns = [column for column in table.columns if column not in targets] if features is None else _names(features)
    both = [column for column in columns if column in targets]
    if both:
        raise DataError(f"column {both[0]!r} of table {name!r} is a target and cannot be an input: take it out of features")
    return encoded(_chosen(table, columns, name), _chosen(table, targets, name), name, standardize=standardize, task=task, like=like)


def encoded(
    inputs: DataFrame,
    targets: DataFrame,
    name: str,
    *,
    standardize: Standardize = True,
    task: Kind | None = None,
    like: TableSource | None = None,
) -> TableSource:
    """A source of the columns of ``inputs`` and of ``targets``, encoded as `table_source` says."""
    if not isinstance(standardize, bool) and standardize != "inputs":
        raise ConfigurationError(f"standardize is {standardize!r}: give true, false, or 'inputs'")
    if task not in (None, "classification", "regression"):
        raise ConfigurationError(f"task is {task!r}: give 'classification' or 'regression'")
    if len(targets) == 0:
        raise DataError(f"table {name!r} has no rows: give at least one")
    if inputs.shape[1] == 0 or targets.shape[1] == 0:
        raise DataError(f"table {name!r} has no {'inputs' if targets.shape[1] else 'target'}: name at least one column")
    inputs, targets = inputs.infer_objects(), targets.infer_objects()
    if like is None:
        known = tuple(learn_feature(inputs[column], column, name, bool(standardize)) for column in inputs)
        wanted = tuple(learn_target(targets[column], column, name, standardize is True, task) for column in targets)
    else:
        known, wanted = like.features, like.target_columns
    single = len(wanted) == 1
    columns = {"y" if single else target.name: encode_target(target, targets[target.name], name) for target in wanted}
    source = TableSource(encode_features(known, inputs, name), columns, name, class_names=wanted[0].classes if single else ())
    source.features, source.target_columns = known, wanted
    return source


def csv_file(
    path: str,
    target: str | list[str],
    test: str | None = None,
    features: str | list[str] | None = None,
    standardize: Standardize = True,
    task: Kind | None = None,
    name: str | None = None,
) -> tuple[TableSource, TableSource | None]:
    r"""``"csv:path=...,target=..."``: the rows of a CSV file with a line of column names, in their order, encoded as `table_source` says.

    Args:
        path: the file, here or below ``$STREAMLEARN_DATA``; may be compressed.
        target, features, standardize, task: as of `table_source`.
        test: a file of test rows, encoded with the categories, means, deviations and classes of the training rows.
        name: of the source; ``None``: that of the file without its suffix, or of its folder if the file is called ``train``.

    Raises:
        DataError: a file is not there or cannot be read, and as `table_source`.
        MissingExtraError: pandas is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "toy.csv")
        ...     _ = path.write_text("size,kind\n1.5,small\n8,large\n")
        ...     csv_file(str(path), "kind")
        (TensorSource('toy', 2 rows of (1,), targets y), None)
    """
    found = find_path(path, "csv")
    called = name_of(found) if name is None else str(name)
    train = table_source(_read(found), target, name=called, standardize=standardize, features=features, task=task)
    if test is None:
        return train, None
    test_path = find_path(test, "csv")
    if test_path.samefile(found):
        raise DataError(f"source 'csv' is given {found} for training and for testing: give another file as test, or none")
    return train, table_source(_read(test_path), target, name=f"{called}/test", like=train)


def find_path(path: object, source: str, *, folder: bool = False) -> Path:
    """The file (or folder) ``path``, as it stands or below ``$STREAMLEARN_DATA``.

    Raises:
        DataError: it is in neither place.
    """
    given, root = Path(str(path)).expanduser(), os.environ.get("STREAMLEARN_DATA", "")
    places = [given, *([Path(root).expanduser() / given] if root and not given.is_absolute() else [])]
    found = next((place for place in places if (place.is_dir() if folder else place.is_file())), None)
    if found is None:
        where = " nor ".join(str(place.absolute()) for place in places)
        raise DataError(f"source {source!r} needs the {'folder' if folder else 'file'} {path}, and there is no {where}: check path")
    return found


def name_of(path: Path) -> str:
    """What a source is called after its file: by the file's name without suffixes, or by its folder's if that is but ``train``.

    Example:
        >>> name_of(Path("/data/elec.csv.gz")), name_of(Path("/data/banking77/train.csv"))
        ('elec', 'banking77')
    """
    stem = path.name.split(".")[0]
    return path.resolve().parent.name or stem if stem.lower() == "train" else stem


def pandas_for(user: str) -> Any:
    """The package pandas.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise MissingExtraError(user, "pandas", "tables") from None
    return pandas


def _read(path: Path) -> Any:
    pandas = pandas_for("source 'csv'")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pandas.errors.ParserWarning)  # rows longer than the line of names
            header = pandas.read_csv(path, header=None, nrows=1, dtype=str, index_col=False).iloc[0].dropna().tolist()
            _refuse_twice(header, path)  # pandas would call the second one "name.1"
            return pandas.read_csv(path, index_col=False, low_memory=False)
    except pandas.errors.EmptyDataError:
        raise DataError(f"{path} is empty: give a file with a line of column names and rows") from None
    except (ValueError, EOFError, OSError, pandas.errors.ParserWarning) as error:  # ParserError is a ValueError, and so is bad UTF-8
        reason = " ".join(str(error).split()).rstrip(".")
        raise DataError(f"{path} cannot be read as a table ({reason}): each row needs as many fields as there are column names") from error


def _refuse_twice(header: list[str], path: Path) -> None:
    twice = next((column for place, column in enumerate(header) if column in header[:place]), None)
    if twice is not None:
        raise DataError(f"{path} has two columns called {twice!r}: give every column a name of its own")


def _names(given: object) -> list[str]:
    return [str(name) for name in given] if isinstance(given, Sequence) and not isinstance(given, str) else [str(given)]


def _chosen(table: Any, columns: list[str], name: str) -> Any:
    known = list(table.columns)
    for column in columns:
        if column not in known:
            guess = nearest(column, known)
            offer = f"did you mean {guess!r}?" if guess else f"it has {', '.join(known[:20]) or 'none'}{', ...' if len(known) > 20 else ''}"
            raise DataError(f"table {name!r} has no column {column!r}: {offer}")
        if known.count(column) + columns.count(column) > 2:
            raise DataError(f"column {column!r} of table {name!r} is there, or asked for, twice: give every column a name of its own, once")
    return table[columns]
