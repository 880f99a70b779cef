"""Streams: what a model meets, in which order, and on what it is measured.

Names are loaded when they are first used, so that importing this package, or listing the builders, does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamlearn.streams.avalanche import from_avalanche, to_avalanche
    from streamlearn.streams.batch import Batch, Segment
    from streamlearn.streams.catalogue import build, build_chain, builders, rebuild
    from streamlearn.streams.data import Data, Source, Transform
    from streamlearn.streams.experience import EvaluationSet, Experience
    from streamlearn.streams.operators.alone import single_task
    from streamlearn.streams.operators.augmenting import augmented
    from streamlearn.streams.operators.cutting import online, task_free
    from streamlearn.streams.operators.joining import joint
    from streamlearn.streams.operators.label_policies import label_policy
    from streamlearn.streams.operators.mixing import blurry, gradual
    from streamlearn.streams.operators.ordering import concatenated, recurring
    from streamlearn.streams.operators.thinning import imbalanced, validation
    from streamlearn.streams.protocols.adaptation import adaptation
    from streamlearn.streams.protocols.at_test_time import test_time
    from streamlearn.streams.protocols.domains import domain_incremental
    from streamlearn.streams.protocols.episodes import Episodes, episodes
    from streamlearn.streams.protocols.given import from_datasets
    from streamlearn.streams.protocols.gradual_adaptation import gradual_adaptation
    from streamlearn.streams.protocols.incremental import class_incremental, task_incremental
    from streamlearn.streams.protocols.instances import data_incremental
    from streamlearn.streams.protocols.multitask import multitask
    from streamlearn.streams.sources import DatasetSource, TensorSource
    from streamlearn.streams.sources.embedded import embedded
    from streamlearn.streams.sources.folders import image_folder
    from streamlearn.streams.sources.hub import huggingface_source
    from streamlearn.streams.sources.river_data import river_source
    from streamlearn.streams.sources.tables import table_source
    from streamlearn.streams.sources.text import text_source
    from streamlearn.streams.stream import Stream
    from streamlearn.streams.task import Task

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
    "augmented",
    "blurry",
    "build",
    "build_chain",
    "builders",
    "class_incremental",
    "concatenated",
    "data_incremental",
    "domain_incremental",
    "embedded",
    "episodes",
    "from_avalanche",
    "from_datasets",
    "gradual",
    "gradual_adaptation",
    "huggingface_source",
    "image_folder",
    "imbalanced",
    "joint",
    "label_policy",
    "multitask",
    "online",
    "rebuild",
    "recurring",
    "river_source",
    "single_task",
    "table_source",
    "task_free",
    "task_incremental",
    "test_time",
    "text_source",
    "to_avalanche",
    "validation",
]

_HOME = {
    "Batch": "batch",
    "Data": "data",
    "DatasetSource": "sources",
    "Episodes": "protocols.episodes",
    "EvaluationSet": "experience",
    "Experience": "experience",
    "Segment": "batch",
    "Source": "data",
    "Stream": "stream",
    "Task": "task",
    "TensorSource": "sources",
    "Transform": "data",
    "adaptation": "protocols.adaptation",
    "augmented": "operators.augmenting",
    "blurry": "operators.mixing",
    "build": "catalogue",
    "build_chain": "catalogue",
    "builders": "catalogue",
    "class_incremental": "protocols.incremental",
    "concatenated": "operators.ordering",
    "data_incremental": "protocols.instances",
    "domain_incremental": "protocols.domains",
    "embedded": "sources.embedded",
    "episodes": "protocols.episodes",
    "from_avalanche": "avalanche",
    "from_datasets": "protocols.given",
    "gradual": "operators.mixing",
    "gradual_adaptation": "protocols.gradual_adaptation",
    "huggingface_source": "sources.hub",
    "image_folder": "sources.folders",
    "imbalanced": "operators.thinning",
    "joint": "operators.joining",
    "label_policy": "operators.label_policies",
    "multitask": "protocols.multitask",
    "online": "operators.cutting",
    "rebuild": "catalogue",
    "recurring": "operators.ordering",
    "river_source": "sources.river_data",
    "single_task": "operators.alone",
    "table_source": "sources.tables",
    "task_free": "operators.cutting",
    "task_incremental": "protocols.incremental",
    "test_time": "protocols.at_test_time",
    "text_source": "sources.text",
    "to_avalanche": "avalanche",
    "validation": "operators.thinning",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
