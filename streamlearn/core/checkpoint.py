"""Checkpoints: folders of safetensors and JSON that are whole or refused. No pickle.

A checkpoint ``step-00001234/`` holds ``tensors.safetensors``, ``state.json`` (everything that is not a tensor, with references to
tensors) and, written last, ``MANIFEST.json`` with the size and SHA-256 of both. It is written to a temporary folder, fsynced
and renamed, so that a killed process leaves either a whole checkpoint or none. "Latest" is the newest folder whose manifest and
files check out, found by looking; there is no pointer that could be lost.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamlearn.errors import CheckpointError, RunFolderError

__all__ = ["FORMAT", "Packed", "latest_checkpoint", "pack", "read_checkpoint", "unpack", "write_checkpoint"]

FORMAT = 1
"""Version of the layout. A newer one is refused."""

_REFERENCE = "$tensor"
_FILES = ("tensors.safetensors", "state.json")


def pack(tree: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """``tree`` as JSON; its tensors go into ``tensors`` under their paths.

    Raises:
        CheckpointError: something in it is neither a tensor, a number, a string, a boolean, ``None``, a list nor a dict with
            string keys; its path is named.
    """
    if isinstance(tree, Tensor):
        while path in tensors:  # {"a/b": ...} and {"a": {"b": ...}} have the same path
            path += "'"
        # a clone: safetensors refuses tensors that share memory, and a head may be a view
        tensors[path] = tree.detach().to("cpu", copy=True).contiguous()
        return {_REFERENCE: path}
    if isinstance(tree, Mapping):
        if not all(isinstance(key, str) for key in tree):
            raise CheckpointError(
                f"the state at {path or 'the top'!r} has keys that are not strings: {[k for k in tree if not isinstance(k, str)][:3]}"
            )
        if tree.keys() == {_REFERENCE}:
            raise CheckpointError(f"the state at {path or 'the top'!r} has the single key {_REFERENCE!r}, which marks a tensor: rename it")
        return {key: pack(value, tensors, f"{path}/{key}" if path else key) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [pack(value, tensors, f"{path}/{number}") for number, value in enumerate(tree)]
    if tree is None or isinstance(tree, bool | int | float | str):
        return tree
    raise CheckpointError(
        f"the state at {path!r} is a {type(tree).__name__}: keep tensors, numbers, strings, booleans, None, lists and dicts only"
    )


@dataclass(frozen=True, slots=True)
class Packed:
    """A state as it was: what `pack` makes of it, tensors copied."""

    tree: Any
    tensors: dict[str, Tensor]

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Packed:
        """Pack ``state``; see `pack` for the errors."""
        tensors: dict[str, Tensor] = {}
        return cls(pack(state, tensors), tensors)


def unpack(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `pack` (tuples come back as lists)."""
    if isinstance(tree, dict):
        if tree.keys() == {_REFERENCE}:
            return tensors[tree[_REFERENCE]]
        return {key: unpack(value, tensors) for key, value in tree.items()}
    if isinstance(tree, list):
        return [unpack(value, tensors) for value in tree]
    return tree


def write_checkpoint(folder: Path, update: int, state: Mapping[str, Any] | Packed, keep: int = 2) -> Path:
    """Write ``folder/step-<update>``, whole or not at all, then drop all but the newest ``keep``.

    A second checkpoint at the same update stands beside the first, so that at every moment one is whole.

    Raises:
        RunFolderError: the disk is full or refuses to write; checkpoints that were there are untouched.
    """
    final, again = folder / f"step-{update:08d}", 0
    while final.exists():
        final, again = folder / f"step-{update:08d}-{again + 1:02d}", again + 1
    part = folder / f".part-{uuid.uuid4().hex}"
    packed = state if isinstance(state, Packed) else Packed.of(state)
    try:
        part.mkdir(parents=True)
        save_file(packed.tensors, part / _FILES[0])
        (part / _FILES[1]).write_text(json.dumps(packed.tree))
        manifest = {"format": FORMAT, "update": update, "files": {name: _seal(part / name) for name in _FILES}}
        (part / "MANIFEST.json").write_text(json.dumps(manifest, indent=1))
        for path in (*(part / name for name in _FILES), part / "MANIFEST.json", part):
            _fsync(path)
        part.rename(final)
        _fsync(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(part, ignore_errors=True)
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        what = "the disk is full: free some space" if full else f"{error}: choose a folder that can be written"
        raise RunFolderError(f"the checkpoint of update {update} could not be written to {folder}, {what}, then resume") from error
    _drop_old(folder, keep)
    return final


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _seal(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _candidates(folder: Path) -> list[Path]:
    return sorted((p for p in folder.glob("step-*") if p.is_dir()), key=lambda p: p.name, reverse=True)


def _drop_old(folder: Path, keep: int) -> None:
    for path in _candidates(folder)[keep:]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".part-*"):
        shutil.rmtree(path, ignore_errors=True)


def _checked(path: Path) -> None:
    """Raise a `CheckpointError` unless every file of the checkpoint is what its manifest says."""
    try:
        manifest = json.loads((path / "MANIFEST.json").read_text())
        files = {name: {"bytes": int(seal["bytes"]), "sha256": str(seal["sha256"])} for name, seal in manifest["files"].items()}
        newer = int(manifest["format"]) > FORMAT
    except FileNotFoundError:
        raise CheckpointError(f"{path / 'MANIFEST.json'} is missing: the checkpoint was not finished") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path / 'MANIFEST.json'} is damaged") from None
    if newer:
        raise CheckpointError(f"{path} has format {manifest['format']}, this streamlearn reads up to {FORMAT}: upgrade streamlearn")
    for name in _FILES:
        file = path / name
        if not file.is_file() or name not in files:
            raise CheckpointError(f"{file} is missing")
        if file.stat().st_size != files[name]["bytes"]:
            raise CheckpointError(f"{file} has {file.stat().st_size} bytes, its manifest says {files[name]['bytes']}: it is truncated")
        if _seal(file) != files[name]:
            raise CheckpointError(f"{file} does not have the SHA-256 of its manifest: it is damaged")


def latest_checkpoint(folder: Path) -> tuple[Path, list[str]]:
    """The newest whole checkpoint below ``folder``, and why newer ones were refused.

    Raises:
        CheckpointError: there is no whole checkpoint; every refusal is told.
    """
    refused: list[str] = []
    for path in _candidates(folder):
        try:
            _checked(path)
        except CheckpointError as error:
            refused.append(str(error))
        else:
            return path, refused
    told = f" ({'; '.join(refused)})" if refused else ""
    raise CheckpointError(f"there is no usable checkpoint in {folder}{told}: start the run again in another folder")


def read_checkpoint(path: Path) -> Any:
    """The state that `write_checkpoint` was given.

    Raises:
        CheckpointError: a file is missing, truncated, damaged or of a newer format.
    """
    _checked(path)
    try:
        tensors = load_file(path / _FILES[0])
        return unpack(json.loads((path / _FILES[1]).read_text()), tensors)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error


def to_device(tree: Any, device: torch.device) -> Any:
    """``tree`` with every tensor on ``device``."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, dict):
        return {key: to_device(value, device) for key, value in tree.items()}
    if isinstance(tree, list):
        return [to_device(value, device) for value in tree]
    return tree
