"""The file of a prior: one safetensors file, with what is not a tensor as JSON in its header. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from streamlearn.core.checkpoint import pack, unpack
from streamlearn.errors import CheckpointError
from streamlearn.results.files import write_atomically

__all__ = ["FORMAT", "fingerprint", "read_prior", "write_prior"]

FORMAT = 1
"""Version of the file. A newer one is refused."""

_KIND = "streamlearn prior"


def fingerprint(state: Mapping[str, Any]) -> str:
    """SHA-256 of a state: tensors, numbers, strings, lists and dicts."""
    tensors: dict[str, Tensor] = {}
    return _seal(pack(state, tensors), tensors)


def _seal(tree: Any, tensors: Mapping[str, Tensor]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode() + save(dict(tensors))).hexdigest()


def write_prior(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` to ``path``, whole or not at all.

    Raises:
        RunFolderError: the folder cannot be written to, or the disk is full.
    """
    tensors: dict[str, Tensor] = {}
    tree = pack(state, tensors)
    told = {"kind": _KIND, "format": FORMAT, "sha256": _seal(tree, tensors), "prior": tree}
    write_atomically(path, save(tensors, metadata={"streamlearn": json.dumps(told)}))


def read_prior(path: Path) -> Any:
    """The state that `write_prior` was given.

    Raises:
        CheckpointError: there is no such file, or it is damaged, holds something else, or has a newer format.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is no file: give the path that the prior was saved to")
    try:
        with safe_open(path, framework="pt") as file:
            told = json.loads((file.metadata() or {}).get("streamlearn", "{}"))
        tensors = load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path} is no whole safetensors file ({error}): give a file that Prior.save wrote") from error
    if not isinstance(told, dict) or told.get("kind") != _KIND:
        raise CheckpointError(f"{path} holds no prior: give a file that Prior.save wrote")
    if told["format"] > FORMAT:
        raise CheckpointError(f"{path} has format {told['format']}, this streamlearn reads up to {FORMAT}: upgrade streamlearn")
    if _seal(told["prior"], tensors) != told["sha256"]:
        raise CheckpointError(f"{path} does not have the SHA-256 that it was saved with: it is damaged, save the prior again")
    return unpack(told["prior"], tensors)
