"""Streams: what a model meets, in which order, and on what it is measured.

Names are loaded when they are first used, so that importing this package, or listing the builders, does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamlearn.streams.batch import Batch, Segment
    from streamlearn.streams.catalogue import build, builders, rebuild
    from streamlearn.streams.data import Data, Source, Transform
    from streamlearn.streams.episodic import Episodes, episodes
    from streamlearn.streams.experience import EvaluationSet, Experience
    from streamlearn.streams.incremental import class_incremental, data_incremental, domain_incremental, task_incremental
    from streamlearn.streams.overlaid import multitask
    from streamlearn.streams.sources import DatasetSource, TensorSource
    from streamlearn.streams.stream import Stream
    from streamlearn.streams.task import Task
    from streamlearn.streams.two_domains import adaptation

__all__ = [
    "Batch",
    "Data",
    "DatasetSource",
    "Episodes",
    "EvaluationSet",
    "Experience",
    "Segment",
    "Source",
    "Stream",
    "Task",
    "TensorSource",
    "Transform",
    "adaptation",
    "build",
    "builders",
    "class_incremental",
    "data_incremental",
    "domain_incremental",
    "episodes",
    "multitask",
    "rebuild",
    "task_incremental",
]

_HOME = {
    "Batch": "batch",
    "Data": "data",
    "DatasetSource": "sources",
    "Episodes": "episodic",
    "EvaluationSet": "experience",
    "Experience": "experience",
    "Segment": "batch",
    "Source": "data",
    "Stream": "stream",
    "Task": "task",
    "TensorSource": "sources",
    "Transform": "data",
    "adaptation": "two_domains",
    "build": "catalogue",
    "builders": "catalogue",
    "class_incremental": "incremental",
    "data_incremental": "incremental",
    "domain_incremental": "incremental",
    "episodes": "episodic",
    "multitask": "overlaid",
    "rebuild": "catalogue",
    "task_incremental": "incremental",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
