"""The names that users may rely on. A change here is a change for them: say so in CHANGELOG.md."""

from __future__ import annotations

import importlib

import pytest

PUBLIC = {
    "streamlearn": [
        "HOOK_API_VERSION",
        "Engine",
        "Plugin",
        "PluginConfig",
        "PluginInfo",
        "Prior",
        "Result",
        "Tunable",
        "Tuning",
        "errors",
        "hookimpl",
        "models",
        "plugins",
        "results",
        "single_task_baselines",
        "streams",
        "tune",
        "with_values",
    ],
    "streamlearn.models": ["VAE", "Heads", "Model", "SharedOutput", "mlp", "pretrained"],
    "streamlearn.plugins": [
        "AGEM",
        "ANML",
        "BAM",
        "CORAL",
        "DANN",
        "DER",
        "DWA",
        "EMA",
        "ERACE",
        "EWC",
        "FAMO",
        "GEM",
        "GLS",
        "HAT",
        "IMAML",
        "IMTLG",
        "IMTLL",
        "MAML",
        "MAS",
        "MER",
        "MGDA",
        "MGDAUB",
        "MIR",
        "MTAN",
        "OGD",
        "OML",
        "PLE",
        "RLW",
        "SAM",
        "SI",
        "SLDA",
        "WA",
        "ActiveSampling",
        "AlignedMTL",
        "AnnealedSampling",
        "BiC",
        "CAGrad",
        "CSVTracker",
        "CalibrationError",
        "Clipping",
        "ConstantWeighting",
        "ContinualMAML",
        "CrossStitch",
        "Curriculum",
        "ExperienceWeighting",
        "FeatureDistillation",
        "ForwardHypergradient",
        "FromPrior",
        "FromScratch",
        "FrozenBackbone",
        "GDumb",
        "GenerativeReplay",
        "GradDrop",
        "GradNorm",
        "GradVac",
        "GradientSimilarity",
        "GroupDRO",
        "Hypergradient",
        "ICaRLLoss",
        "ImplicitHypergradient",
        "Joint",
        "L2Anchor",
        "LaMAML",
        "LwF",
        "MMoE",
        "MetaSGD",
        "Mixup",
        "MultiHead",
        "MultiTeacher",
        "NashMTL",
        "NearestClassMean",
        "PADNet",
        "PCGrad",
        "PackNet",
        "ProtoNets",
        "RanPAC",
        "Replay",
        "Reptile",
        "RoundRobin",
        "SeparateNetworks",
        "Sluice",
        "SoftSharing",
        "TaskRelationships",
        "TaskRouting",
        "TemperatureSampling",
        "Tent",
        "TraceNorm",
        "UPGrad",
        "UncertaintyWeighting",
        "UpdatesPerBatch",
    ],
    "streamlearn.results": [
        "METRICS",
        "Measure",
        "Record",
        "Result",
        "compare_figure",
        "compare_table",
        "compute",
        "delta_m",
        "final_values",
        "hypervolume",
        "mean_ranks",
        "to_svg",
        "worst_task",
    ],
    "streamlearn.streams": [
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
    ],
}


def order(name: str) -> tuple[bool, bool, str]:
    """CONSTANTS, then Classes, then the rest, each by the alphabet."""
    return (not name.isupper(), not name[0].isupper(), name)


@pytest.mark.parametrize("package", sorted(PUBLIC))
def test_the_public_names_are_the_frozen_ones(package: str) -> None:
    assert importlib.import_module(package).__all__ == PUBLIC[package]


@pytest.mark.parametrize("package", sorted(PUBLIC))
def test_the_public_names_are_sorted_and_listed_once(package: str) -> None:
    names = importlib.import_module(package).__all__
    assert names == sorted(set(names), key=order)


@pytest.mark.parametrize(("package", "name"), [(package, name) for package in sorted(PUBLIC) for name in PUBLIC[package]])
def test_each_public_name_resolves_and_is_offered_for_completion(package: str, name: str) -> None:
    module = importlib.import_module(package)
    assert getattr(module, name) is not None
    assert name in dir(module)


@pytest.mark.parametrize("package", sorted(PUBLIC))
def test_an_unknown_name_is_an_attribute_error(package: str) -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(importlib.import_module(package), "no_such_name")  # noqa: B009 (a name that mypy must not look for)
