"""A source whose inputs are the features of another source's, computed once."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from streamlearn.errors import DataError
from streamlearn.streams.data import Source
from streamlearn.streams.sources.named import named_source
from streamlearn.streams.sources.tensors import TensorSource

if TYPE_CHECKING:
    from streamlearn.streams.inputs import SourceLike

__all__ = ["embedded"]

_TARGET = "target "  # before the names of columns in a file, where the inputs are called "x"


def embedded(
    source: SourceLike, encoder: nn.Module, *, test: bool = False, batch_size: int = 256, cache: str | Path | None = None
) -> TensorSource:
    """The rows of ``source`` with the outputs of ``encoder`` in place of their inputs: what a frozen encoder would compute every epoch.

    The encoder runs once over all rows, in evaluation mode and without a graph, on the device on which it lies; it is left as it was
    found. Names, targets and the names of classes stay.

    Args:
        source: a name, a `Source`, ``(x, y)`` arrays, or a map-style torch data set.
        encoder: maps inputs to features ``(rows, ...)``; what has more than two dimensions is flattened.
        test: take the test rows of a named source.
        batch_size: rows per pass, at least 1; changes no more than the last bits.
        cache: a folder in which the features are kept, as a safetensors file named by a hash of the rows and of the encoder (what
            its ``repr`` shows, and its weights); ``None`` keeps none. A file that is damaged is written anew.

    Raises:
        DataError: ``source`` is no source, ``test`` is asked of one that has no test rows, ``batch_size`` is below 1, or the outputs are
            not one finite row of floating-point numbers for each input.

    Example:
        >>> from streamlearn import streams
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU())
        >>> train, test = streams.embedded("digits", encoder), streams.embedded("digits", encoder, test=True)
        >>> streams.class_incremental(train, 5, test=test)[0].data["train"].batch(torch.tensor([0, 1])).x.shape
        torch.Size([2, 8])
    """
    rows = _resolved(source, test)
    if batch_size < 1:
        raise DataError(f"batch_size is {batch_size}: give at least 1")
    path = None if cache is None else Path(cache).expanduser() / f"{_slug(rows.name)}-{_identity(rows, encoder)}.safetensors"
    tensors = _kept(path, len(rows))
    if tensors is None:
        tensors = _computed(rows, encoder, batch_size)
        _keep(path, tensors)
    targets = {name.removeprefix(_TARGET): tensor for name, tensor in tensors.items() if name.startswith(_TARGET)}
    return TensorSource(tensors["x"], targets, rows.name, class_names=getattr(rows, "class_names", ()))


def _resolved(source: Any, test: bool) -> Source:
    from streamlearn.streams.inputs import as_source  # which imports this package

    if isinstance(source, str):
        train, own_test = named_source(source)
        if test and own_test is None:
            raise DataError(f"source {source!r} has no test rows of its own: leave test=True out, and hold some out in the stream")
        return own_test if test and own_test is not None else train
    if test:
        raise DataError("test=True asks for the test rows of a named source, but source is no name: give the test rows as source")
    return as_source(source, "data")


def _computed(rows: Source, encoder: nn.Module, batch_size: int) -> dict[str, Tensor]:
    device = next((tensor.device for tensor in (*encoder.parameters(), *encoder.buffers())), torch.device("cpu"))
    found: Tensor | None = None
    columns: dict[str, list[Tensor]] = {}
    with _at_rest(encoder):
        for index in torch.arange(len(rows)).split(batch_size):  # type: ignore[no-untyped-call]
            x, targets = rows.take(index)
            features = encoder(x.to(device))
            _check(features, len(x), rows.name)
            features = features.flatten(1).cpu()
            if found is None:  # one tensor for all from the start: joining portions would hold everything twice
                found = features.new_empty(len(rows), features.shape[1])
            found[index[0] : index[-1] + 1] = features
            for name, column in targets.items():
                columns.setdefault(name, []).append(column)
    assert found is not None  # a source has rows
    return {"x": found, **{_TARGET + name: torch.cat(parts) for name, parts in columns.items()}}


def _check(features: Any, rows: int, name: str) -> None:
    good = isinstance(features, Tensor) and features.ndim > 1 and len(features) == rows and features.is_floating_point()
    if not good:
        what = f"{features.dtype} of shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise DataError(f"the encoder gives {what} for {rows} rows of {name!r}: it must give floating-point features ({rows}, ...)")


@contextlib.contextmanager
def _at_rest(encoder: nn.Module) -> Iterator[None]:
    """Evaluation mode and no graph; modes and torch's random state are put back, also where rows draw from it."""
    modes = {module: module.training for module in encoder.modules()}
    encoder.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            yield
    finally:
        for module, training in modes.items():
            module.training = training


# ------------------------------------------------------------------ what is kept


def _identity(rows: Source, encoder: nn.Module) -> str:
    """A hash of everything that the features depend on."""
    digest = hashlib.sha256(f"{rows.fingerprint()} {type(encoder).__qualname__} {encoder!r}".encode())
    named = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}  # buffers that no state dict holds, too
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]


def _slug(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_" else "-" for letter in name)


def _kept(path: Path | None, rows: int) -> dict[str, Tensor] | None:
    """What is in the file; ``None`` when there is none, or none that is whole."""
    if path is None or not path.is_file():
        return None
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found = load_file(path)
    except (SafetensorError, OSError):
        return None
    whole = "x" in found and len(found) > 1 and all(len(tensor) == rows for tensor in found.values())
    return found if whole else None


def _keep(path: Path | None, tensors: dict[str, Tensor]) -> None:
    """Write the file whole or not at all: another process may be about to read it."""
    if path is None:
        return
    from safetensors.torch import save_file

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        os.close(handle)
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, draft)
            os.replace(draft, path)
        finally:
            Path(draft).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"the features cannot be kept in {path.parent}: {error}; give another folder as cache, or None") from error
