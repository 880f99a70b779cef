"""Data sets of the library ``datasets`` (Hugging Face) as a source; nothing is ever downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from streamlearn.errors import DataError, MissingExtraError, nearest
from streamlearn.streams.sources.datasets import DatasetSource
from streamlearn.streams.sources.encoding import encode_features, learn_feature
from streamlearn.streams.sources.hub_columns import array_of, kind_of, targets_of
from streamlearn.streams.sources.tables import TableSource, find_path
from streamlearn.streams.sources.tensors import TensorSource
from streamlearn.streams.sources.text import text_source

if TYPE_CHECKING:
    from datasets import Dataset

    from streamlearn.streams.data import Source
    from streamlearn.streams.sources.tables import Standardize
    from streamlearn.streams.sources.text import Hashing

__all__ = ["huggingface_source", "saved_dataset"]


def huggingface_source(
    dataset: Dataset,
    *,
    x: str | Sequence[str],
    y: str,
    name: str,
    size: int | Sequence[int] | None = None,
    features: int = 4096,
    hashing: Hashing = "words",
    divide_by: float | None = None,
    standardize: Standardize = True,
    like: Source | None = None,
) -> Source:
    """A `datasets.Dataset`, in memory or in Arrow files, as a source, its rows in their order.

    Protocol: what the inputs become is decided by the type of their column.

    - *numbers and truth values*, or several columns, of texts too: a `TableSource`, encoded as `table_source` says.
    - *sequences and arrays* of one shape: a `TensorSource`; integers of 32 and 64 bits are taken for numbers of tokens and stay integers
      unless ``divide_by`` is given, bytes are divided by 255.
    - *images*: a `DatasetSource` that decodes them when they are asked for, floats in [0, 1] of shape ``(channels, height, width)``:
      grey if the first image is, else in colour.
    - *texts*: n-grams, hashed as `text_source` says.

    A target of type ``ClassLabel`` keeps its numbers and names; other texts, truth values and whole numbers become class numbers in
    sorted order, and floats (single ones, or sequences of one length) the values of a regression, as they are.

    Args:
        dataset: a single split.
        x: the column of inputs, or several columns of numbers and texts.
        y: the column of targets.
        name: what messages and the record call the source.
        size: to which images are resized: ``(height, width)``, or one number for both; ``None``: they are all of one size.
        features, hashing: for texts, as of `text_source`.
        divide_by: for sequences and arrays of integers: they become floats and are divided by it.
        standardize: for columns of numbers, as of `table_source`.
        like: a source of training rows, whose classes and encoding are used: for test rows.

    Raises:
        DataError: this is no split, there is no such column, or its type is none of these; rows differ in shape; a label is missing.
        MissingExtraError: the package ``datasets`` is not installed.

    Source: Lhoest et al., "Datasets: a community library for natural language processing", EMNLP 2021.

    Example:
        >>> from datasets import Dataset
        >>> dataset = Dataset.from_dict({"vector": [[0.0, 1.0], [2.0, 3.0]], "kind": ["b", "a"]})
        >>> huggingface_source(dataset, x="vector", y="kind", name="toy")
        TensorSource('toy', 2 rows of (2,), targets y)
    """
    library = _library(f"source {name!r}")
    columns = [x] if isinstance(x, str) else [str(column) for column in x]
    _check(dataset, [*columns, y], library, name)
    dataset = dataset.with_format(None)
    targets, names = targets_of(dataset, y, name, getattr(like, "class_names", ()))
    kind = kind_of(dataset.features[columns[0]]) if len(columns) == 1 else "number"
    if kind == "number":
        return _table(dataset, columns, targets, names, name, standardize, like)
    if kind == "image":
        return DatasetSource(_Images(dataset, columns[0], targets, names, _checked_size(size)), name)  # type: ignore[arg-type]
    if kind == "text":
        if targets.is_floating_point():
            raise DataError(
                f"target {y!r} of source {name!r} holds floats, and texts are sources of classes only: give a column of classes"
            )
        labels = [names[number] for number in targets.tolist()]
        return text_source(dataset[columns[0]][:], labels, name=name, features=features, hashing=hashing, classes=names)
    if kind == "array":
        values, whole = array_of(dataset, columns[0], name)
        scale = divide_by if divide_by is not None or values.dtype != np.uint8 else 255
        ready = values.astype(np.float32) if not whole or (scale is None and values.dtype.itemsize < 4) else values
        return TensorSource(torch.from_numpy(ready), {"y": targets}, name, divide_by=scale if whole else None, class_names=names)
    raise DataError(
        f"column {x!r} of source {name!r} is of type {dataset.features[x]}: give numbers, sequences of one shape, images or texts"
    )


def saved_dataset(
    path: str,
    x: str | list[str],
    y: str,
    *,
    split: str = "train",
    test_split: str | None = None,
    size: int | list[int] | None = None,
    features: int = 4096,
    hashing: Hashing = "words",
    divide_by: float | None = None,
    standardize: Standardize = True,
    name: str | None = None,
) -> tuple[Source, Source | None]:
    """``"huggingface:path=FOLDER,x=...,y=..."``: a folder written by ``save_to_disk`` of the library ``datasets``.

    Args:
        path: the folder, here or below ``$STREAMLEARN_DATA``.
        x, y, size, features, hashing, divide_by, standardize: as of `huggingface_source`.
        split: which split trains, if the folder holds several.
        test_split: which split tests; ``None``: the split ``test``, if there is one.
        name: of the source; ``None``: that of the folder.

    Raises:
        DataError: the folder is not there, was not written by ``save_to_disk``, or has no such split; and as `huggingface_source`.
        MissingExtraError: the package ``datasets`` is not installed.
    """
    library = _library("source 'huggingface'")
    folder = find_path(path, "huggingface", folder=True)
    try:
        loaded = library.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} cannot be read by datasets.load_from_disk ({' '.join(str(error).split())}): save it again") from error
    called = folder.resolve().name if name is None else str(name)
    splits = loaded if isinstance(loaded, library.DatasetDict) else {str(split): loaded}
    test = test_split if test_split is not None else "test" if "test" in splits and str(split) != "test" else None
    for wanted in (split, *([] if test is None else [test])):
        if wanted not in splits:
            raise DataError(f"{folder} has no split {wanted!r}: it has {', '.join(map(str, splits))}")
    if test == split:
        raise DataError(f"source 'huggingface' is given the split {split!r} for training and for testing: give another as test_split")
    options: dict[str, Any] = {"size": size, "features": features, "hashing": hashing, "divide_by": divide_by, "standardize": standardize}
    train = huggingface_source(splits[split], x=x, y=y, name=called, **options)
    return train, None if test is None else huggingface_source(splits[test], x=x, y=y, name=f"{called}/test", like=train, **options)


class _Images:
    """Pairs of an image, decoded when asked for, and a target; a map-style data set for `DatasetSource`."""

    def __init__(self, dataset: Dataset, column: str, targets: Tensor, names: tuple[str, ...], size: tuple[int, int] | None) -> None:
        self._dataset, self._column, self._size = dataset.select_columns([column]), column, size
        self.targets, self.classes = targets, list(names)
        self._mode = "L" if len(dataset) and dataset[0][column] is not None and dataset[0][column].mode in ("1", "L") else "RGB"

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, row: int) -> tuple[Tensor, Tensor]:
        image = self._dataset[row][self._column]
        if image is None:
            raise ValueError("there is no image")
        image = image.convert(self._mode)
        if self._size is not None:
            image = image.resize((self._size[1], self._size[0]))
        pixels = torch.from_numpy(np.array(image)).float().div_(255)
        return pixels.unsqueeze(0) if pixels.ndim == 2 else pixels.permute(2, 0, 1).contiguous(), self.targets[row]


def _table(
    dataset: Any, columns: list[str], targets: Tensor, names: tuple[str, ...], name: str, standardize: Standardize, like: Source | None
) -> TableSource:
    frame = dataset.select_columns(columns).to_pandas()
    if isinstance(like, TableSource):
        features = like.features
    else:
        features = tuple(learn_feature(frame[column], column, name, bool(standardize)) for column in columns)
    source = TableSource(encode_features(features, frame, name), {"y": targets}, name, class_names=names)
    source.features = features
    return source


def _check(dataset: Any, columns: list[str], library: Any, name: str) -> None:
    if isinstance(dataset, library.DatasetDict):
        raise DataError(
            f"source {name!r} is given all splits ({', '.join(dataset)}): give one, such as dataset[{next(iter(dataset), '')!r}]"
        )
    if not isinstance(dataset, library.Dataset):
        raise DataError(f"a {type(dataset).__name__} is no data set with random access to rows: give a datasets.Dataset")
    if len(dataset) == 0:
        raise DataError(f"source {name!r} has no rows: give at least one")
    for column in columns:
        if column not in dataset.features:
            guess = nearest(column, dataset.features)
            offer = f"did you mean {guess!r}?" if guess else f"it has {', '.join(dataset.features)}"
            raise DataError(f"source {name!r} has no column {column!r}: {offer}")
    if len(set(columns)) < len(columns) or len(columns) < 2:
        raise DataError(
            f"source {name!r} takes inputs and targets from {', '.join(columns)}: name at least one column of inputs, each once"
        )


def _checked_size(size: Any) -> tuple[int, int] | None:
    if size is None:
        return None
    given = tuple(size) if isinstance(size, Sequence) and not isinstance(size, str) else (size, size)
    if len(given) != 2 or not all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in given):
        raise DataError(f"size is {size!r}: give a height and a width in pixels, or one number for both")
    return given


def _library(user: str) -> Any:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError(user, "datasets", "huggingface") from None
    return datasets
