"""Texts as a source: bags of hashed n-grams, kept sparse, or embeddings that the user has."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from streamlearn.errors import ConfigurationError, DataError, UnknownNameError, nearest
from streamlearn.streams.sources.encoding import class_numbers
from streamlearn.streams.sources.sparse import SparseSource
from streamlearn.streams.sources.tables import find_path, name_of
from streamlearn.streams.sources.tensors import TensorSource

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor

    from streamlearn.streams.data import Source

__all__ = ["clinc150", "clinc150_domains", "text_file", "text_source"]

Hashing = Literal["words", "characters"]

_HASHINGS: dict[str, dict[str, Any]] = {
    "words": {"analyzer": "word", "ngram_range": (1, 2)},
    "characters": {"analyzer": "char_wb", "ngram_range": (2, 4)},
}
_OUT_OF_SCOPE = "oos"


def text_source(
    texts: Sequence[str] | None,
    labels: Sequence[Any] | Tensor,
    *,
    name: str,
    features: int = 4096,
    hashing: Hashing = "words",
    embeddings: ArrayLike | Tensor | None = None,
    classes: Sequence[str] | None = None,
) -> Source:
    """Texts and their labels, in their order, as a source.

    Protocol: a text, in lower case, becomes the counts of its n-grams, each hashed (MurmurHash3) to one of ``features`` places and a sign,
    divided by their Euclidean norm. No vocabulary is learnt, so nothing of later texts is known to earlier ones. With ``embeddings``
    these are the inputs instead.

    Args:
        texts: one for each row; a text without any n-gram is a row of zeros. Unused, and may be ``None``, with ``embeddings``.
        labels: one for each row: texts or whole numbers, which become class numbers in sorted order.
        name: what messages and the record call the source.
        features: width of an input, at least 1.
        hashing: ``"words"`` takes single words and pairs of neighbours, ``"characters"`` runs of 2 to 4 letters within words.
        embeddings: a vector of the user's for each row, ``(rows, width)``.
        classes: the names of the classes in the order of their numbers: for test rows, the ``class_names`` of the training source.

    Raises:
        DataError: texts and labels differ in number, a text is none, or a label is missing or not among ``classes``.
        UnknownNameError: ``hashing`` is neither of the two.

    Source: Weinberger et al., "Feature hashing for large scale multitask learning", ICML 2009; scikit-learn's ``HashingVectorizer``.

    Example:
        >>> source = text_source(["buy now", "how are you", "buy, buy!"], ["spam", "ham", "spam"], name="mail", features=64)
        >>> source, source.class_names, source.targets["y"].tolist()
        (SparseSource('mail', 3 rows of (64,), targets y), ('ham', 'spam'), [1, 0, 1])
    """
    y, names = class_numbers(_checked_labels(labels, name), f"the label column of source {name!r}", classes)
    if embeddings is not None:
        x = TensorSource.from_arrays(embeddings, y, name, class_names=names)
        if len(x.input_shape) != 1:
            raise DataError(f"the embeddings of source {name!r} have inputs of shape {x.input_shape}: give one vector for each text")
        return x
    if texts is None:
        raise DataError(f"source {name!r} has neither texts nor embeddings: give one of them")
    given = list(texts)
    strange = next((row for row, text in enumerate(given) if not isinstance(text, str)), None)
    if isinstance(texts, str) or strange is not None:
        found = "str in place of a list" if strange is None else f"{type(given[strange]).__name__} in row {strange}"
        raise DataError(f"the texts of source {name!r} hold a {found}: give a list of texts")
    if len(given) != len(y):
        raise DataError(f"source {name!r} has {len(given)} texts but {len(y)} labels: give one label for each text")
    return SparseSource(_hashed(given, features, hashing), {"y": y}, name, class_names=names)


def text_file(
    path: str,
    text: str = "text",
    target: str = "category",
    test: str | None = None,
    features: int = 4096,
    hashing: Hashing = "words",
    name: str | None = None,
) -> tuple[Source, Source | None]:
    r"""``"text:path=...,text=...,target=..."``: texts and labels from two columns of a CSV file, hashed as `text_source` says.

    Args:
        path: the file (UTF-8, with a line of column names), here or below ``$STREAMLEARN_DATA``.
        text, target: the columns of texts and of labels.
        test: a file of test rows with the same columns, whose labels all occur in the training file.
        features, hashing: as of `text_source`.
        name: of the source; ``None``: that of the file without its suffix, or of its folder if the file is called ``train``.

    Raises:
        DataError: a file is not there, has no such column, or has a row of more or fewer fields than columns; and as `text_source`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder, "mail.csv")
        ...     _ = path.write_text("text,category\nbuy now,spam\nhow are you,ham\n")
        ...     text_file(str(path), features=64)
        (SparseSource('mail', 2 rows of (64,), targets y), None)
    """
    found = find_path(path, "text")
    called = name_of(found) if name is None else str(name)
    train = text_source(*_columns(found, str(text), str(target)), name=called, features=features, hashing=hashing)
    if test is None:
        return train, None
    test_path = find_path(test, "text")
    if test_path.samefile(found):
        raise DataError(f"source 'text' is given {found} for training and for testing: give another file as test, or none")
    known = getattr(train, "class_names", ())
    rows = _columns(test_path, str(text), str(target))
    return train, text_source(*rows, name=f"{called}/test", features=features, hashing=hashing, classes=known)


def clinc150(out_of_scope: bool = False, features: int = 4096, hashing: Hashing = "words") -> tuple[Source, Source]:
    """``"clinc150"``: 22,500 requests of 150 intents in 10 domains: 15,000 training and 4,500 test rows (3,000 more are left for
    validation and not read), hashed as `text_source` says.

    Protocol: classes are numbered domain by domain, 15 each, in the order of the file ``domains.json``: ``class_incremental("clinc150",
    10, shuffle=False)`` brings one domain after another.

    Args:
        out_of_scope: whether requests of none of the intents are a class of their own, number 150 (100 training and 1,000 test rows).
        features, hashing: as of `text_source`.

    Raises:
        DataError: ``clinc150/data_full.json`` or ``clinc150/domains.json`` is missing below ``$STREAMLEARN_DATA``, or damaged.

    Source: Larson et al., "An evaluation dataset for intent classification and out-of-scope prediction", EMNLP 2019.
    """
    names = [intent for intents in _domains().values() for intent in intents]
    content = _clinc("data_full.json")
    sources = []
    for part, name in (("train", "clinc150"), ("test", "clinc150/test")):
        try:
            rows = [*content[part], *(content[f"oos_{part}"] if out_of_scope else [])]
            texts, labels = [text for text, _ in rows], [label for _, label in rows]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"data_full.json of source 'clinc150' holds no pairs of text and intent under {part!r}: fetch it again"
            ) from error
        known = [*names, _OUT_OF_SCOPE] if out_of_scope else names
        sources.append(text_source(texts, labels, name=name, features=features, hashing=hashing, classes=known))
    return sources[0], sources[1]


def clinc150_domains() -> list[list[int]]:
    """The classes of ``"clinc150"`` that belong to each of its 10 domains, as ``class_incremental(..., classes=...)`` takes them.

    Raises:
        DataError: as `clinc150`.
    """
    sizes = [len(intents) for intents in _domains().values()]
    return [list(range(stop - size, stop)) for size, stop in zip(sizes, itertools.accumulate(sizes), strict=True)]


def _domains() -> dict[str, list[str]]:
    return _clinc("domains.json")  # type: ignore[no-any-return]


def _clinc(file: str) -> Any:
    root = os.environ.get("STREAMLEARN_DATA", "")
    cure = "set STREAMLEARN_DATA to a folder that holds clinc150/, from https://github.com/clinc/oos-eval"
    if not root:
        raise DataError(f"source 'clinc150' needs the file clinc150/{file} below the folder STREAMLEARN_DATA, which is not set: {cure}")
    path = Path(root).expanduser() / "clinc150" / file
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"source 'clinc150' needs the file {path}, which is not there: {cure}") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} is damaged ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a {type(content).__name__} in place of an object: fetch it again")
    return content


def _columns(path: Path, text: str, target: str) -> tuple[list[str], list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            places = [_place(header, column, path) for column in (text, target)]
            rows = []
            for row in reader:
                if row and len(row) != len(header):  # the reader gives an empty line as no field at all
                    raise DataError(f"line {reader.line_num} of {path} has {len(row)} fields, not {len(header)}: quote texts with commas")
                rows.extend([[row[place] for place in places]] if row else [])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table of texts ({error}): give a CSV file in UTF-8") from error
    if not rows:
        raise DataError(f"{path} has no rows: give a line of column names and at least one row")
    return [row[0] for row in rows], [row[1] for row in rows]


def _place(header: list[str], column: str, path: Path) -> int:
    if column not in header:
        guess = nearest(column, header)
        offer = f"did you mean {guess!r}?" if guess else f"it has {', '.join(header) or 'none'}"
        raise DataError(f"{path} has no column {column!r}: {offer}")
    if header.count(column) > 1:
        raise DataError(f"{path} has two columns called {column!r}: give every column a name of its own")
    return header.index(column)


def _checked_labels(labels: Any, name: str) -> list[Any]:
    given = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    strange = next((row for row, label in enumerate(given) if not isinstance(label, str | int) or label == ""), None)
    if strange is not None:
        found = "is missing" if given[strange] in (None, "") else f"is {given[strange]!r}"
        raise DataError(f"the label in row {strange} of source {name!r} {found}: give texts or whole numbers")
    return given


def _hashed(texts: list[str], features: int, hashing: str) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    if hashing not in _HASHINGS:
        raise UnknownNameError("hashing", str(hashing), _HASHINGS)
    if isinstance(features, bool) or not isinstance(features, int) or not 1 <= features < 2**31:
        raise ConfigurationError(f"features is {features!r}: give a whole number from 1 to {2**31 - 1}")
    return HashingVectorizer(n_features=features, norm="l2", dtype=np.float32, **_HASHINGS[hashing]).transform(texts)
