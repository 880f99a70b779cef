"""The built-in plugins: one published method per file, a folder per family. Loaded when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamlearn.plugins.adaptation.coral import CORAL
    from streamlearn.plugins.adaptation.dann import DANN
    from streamlearn.plugins.adaptation.tent import Tent
    from streamlearn.plugins.distillation.bam import BAM
    from streamlearn.plugins.distillation.bic import BiC
    from streamlearn.plugins.distillation.feature_distillation import FeatureDistillation
    from streamlearn.plugins.distillation.icarl_loss import ICaRLLoss
    from streamlearn.plugins.distillation.lwf import LwF
    from streamlearn.plugins.distillation.multi_teacher import MultiTeacher
    from streamlearn.plugins.distillation.wa import WA
    from streamlearn.plugins.gradients.agem import AGEM
    from streamlearn.plugins.gradients.aligned_mtl import AlignedMTL
    from streamlearn.plugins.gradients.cagrad import CAGrad
    from streamlearn.plugins.gradients.clipping import Clipping
    from streamlearn.plugins.gradients.gem import GEM
    from streamlearn.plugins.gradients.graddrop import GradDrop
    from streamlearn.plugins.gradients.gradient_similarity import GradientSimilarity
    from streamlearn.plugins.gradients.gradvac import GradVac
    from streamlearn.plugins.gradients.imtl_g import IMTLG
    from streamlearn.plugins.gradients.mgda import MGDA
    from streamlearn.plugins.gradients.mgda_ub import MGDAUB
    from streamlearn.plugins.gradients.nash_mtl import NashMTL
    from streamlearn.plugins.gradients.ogd import OGD
    from streamlearn.plugins.gradients.pcgrad import PCGrad
    from streamlearn.plugins.gradients.upgrad import UPGrad
    from streamlearn.plugins.meta.anml import ANML
    from streamlearn.plugins.meta.continual_maml import ContinualMAML
    from streamlearn.plugins.meta.from_prior import FromPrior
    from streamlearn.plugins.meta.imaml import IMAML
    from streamlearn.plugins.meta.la_maml import LaMAML
    from streamlearn.plugins.meta.maml import MAML
    from streamlearn.plugins.meta.mer import MER
    from streamlearn.plugins.meta.meta_sgd import MetaSGD
    from streamlearn.plugins.meta.oml import OML
    from streamlearn.plugins.meta.proto_nets import ProtoNets
    from streamlearn.plugins.meta.reptile import Reptile
    from streamlearn.plugins.regularization.ema import EMA
    from streamlearn.plugins.regularization.ewc import EWC
    from streamlearn.plugins.regularization.l2_anchor import L2Anchor
    from streamlearn.plugins.regularization.mas import MAS
    from streamlearn.plugins.regularization.mixup import Mixup
    from streamlearn.plugins.regularization.sam import SAM
    from streamlearn.plugins.regularization.si import SI
    from streamlearn.plugins.regularization.soft_sharing import SoftSharing
    from streamlearn.plugins.regularization.task_relationships import TaskRelationships
    from streamlearn.plugins.regularization.trace_norm import TraceNorm
    from streamlearn.plugins.replay.der import DER
    from streamlearn.plugins.replay.er_ace import ERACE
    from streamlearn.plugins.replay.experience_weighting import ExperienceWeighting
    from streamlearn.plugins.replay.from_scratch import FromScratch
    from streamlearn.plugins.replay.gdumb import GDumb
    from streamlearn.plugins.replay.generative_replay import GenerativeReplay
    from streamlearn.plugins.replay.joint import Joint
    from streamlearn.plugins.replay.mir import MIR
    from streamlearn.plugins.replay.nearest_class_mean import NearestClassMean
    from streamlearn.plugins.replay.ranpac import RanPAC
    from streamlearn.plugins.replay.replay import Replay
    from streamlearn.plugins.replay.slda import SLDA
    from streamlearn.plugins.scheduling.active_sampling import ActiveSampling
    from streamlearn.plugins.scheduling.annealed_sampling import AnnealedSampling
    from streamlearn.plugins.scheduling.curriculum import Curriculum
    from streamlearn.plugins.scheduling.round_robin import RoundRobin
    from streamlearn.plugins.scheduling.temperature_sampling import TemperatureSampling
    from streamlearn.plugins.scheduling.updates_per_batch import UpdatesPerBatch
    from streamlearn.plugins.sharing.cross_stitch import CrossStitch
    from streamlearn.plugins.sharing.frozen_backbone import FrozenBackbone
    from streamlearn.plugins.sharing.hat import HAT
    from streamlearn.plugins.sharing.mmoe import MMoE
    from streamlearn.plugins.sharing.mtan import MTAN
    from streamlearn.plugins.sharing.multi_head import MultiHead
    from streamlearn.plugins.sharing.packnet import PackNet
    from streamlearn.plugins.sharing.pad_net import PADNet
    from streamlearn.plugins.sharing.ple import PLE
    from streamlearn.plugins.sharing.separate_networks import SeparateNetworks
    from streamlearn.plugins.sharing.sluice import Sluice
    from streamlearn.plugins.sharing.task_routing import TaskRouting
    from streamlearn.plugins.tracking.calibration_error import CalibrationError
    from streamlearn.plugins.tracking.csv_tracker import CSVTracker
    from streamlearn.plugins.tuning.forward_hypergradient import ForwardHypergradient
    from streamlearn.plugins.tuning.hypergradient import Hypergradient
    from streamlearn.plugins.tuning.implicit_hypergradient import ImplicitHypergradient
    from streamlearn.plugins.weighting.constant_weighting import ConstantWeighting
    from streamlearn.plugins.weighting.dwa import DWA
    from streamlearn.plugins.weighting.famo import FAMO
    from streamlearn.plugins.weighting.gls import GLS
    from streamlearn.plugins.weighting.gradnorm import GradNorm
    from streamlearn.plugins.weighting.group_dro import GroupDRO
    from streamlearn.plugins.weighting.imtl_l import IMTLL
    from streamlearn.plugins.weighting.rlw import RLW
    from streamlearn.plugins.weighting.uncertainty_weighting import UncertaintyWeighting

__all__ = [
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
]

_HOME = {
    "AGEM": "gradients.agem",
    "ANML": "meta.anml",
    "BAM": "distillation.bam",
    "CORAL": "adaptation.coral",
    "DANN": "adaptation.dann",
    "DER": "replay.der",
    "DWA": "weighting.dwa",
    "EMA": "regularization.ema",
    "ERACE": "replay.er_ace",
    "EWC": "regularization.ewc",
    "FAMO": "weighting.famo",
    "GEM": "gradients.gem",
    "GLS": "weighting.gls",
    "HAT": "sharing.hat",
    "IMAML": "meta.imaml",
    "IMTLG": "gradients.imtl_g",
    "IMTLL": "weighting.imtl_l",
    "MAML": "meta.maml",
    "MAS": "regularization.mas",
    "MER": "meta.mer",
    "MGDA": "gradients.mgda",
    "MGDAUB": "gradients.mgda_ub",
    "MIR": "replay.mir",
    "MTAN": "sharing.mtan",
    "OGD": "gradients.ogd",
    "OML": "meta.oml",
    "PLE": "sharing.ple",
    "RLW": "weighting.rlw",
    "SAM": "regularization.sam",
    "SI": "regularization.si",
    "SLDA": "replay.slda",
    "WA": "distillation.wa",
    "ActiveSampling": "scheduling.active_sampling",
    "AlignedMTL": "gradients.aligned_mtl",
    "AnnealedSampling": "scheduling.annealed_sampling",
    "BiC": "distillation.bic",
    "CAGrad": "gradients.cagrad",
    "CSVTracker": "tracking.csv_tracker",
    "CalibrationError": "tracking.calibration_error",
    "Clipping": "gradients.clipping",
    "ConstantWeighting": "weighting.constant_weighting",
    "ContinualMAML": "meta.continual_maml",
    "CrossStitch": "sharing.cross_stitch",
    "Curriculum": "scheduling.curriculum",
    "ExperienceWeighting": "replay.experience_weighting",
    "FeatureDistillation": "distillation.feature_distillation",
    "ForwardHypergradient": "tuning.forward_hypergradient",
    "FromPrior": "meta.from_prior",
    "FromScratch": "replay.from_scratch",
    "FrozenBackbone": "sharing.frozen_backbone",
    "GDumb": "replay.gdumb",
    "GenerativeReplay": "replay.generative_replay",
    "GradDrop": "gradients.graddrop",
    "GradNorm": "weighting.gradnorm",
    "GradVac": "gradients.gradvac",
    "GradientSimilarity": "gradients.gradient_similarity",
    "GroupDRO": "weighting.group_dro",
    "Hypergradient": "tuning.hypergradient",
    "ICaRLLoss": "distillation.icarl_loss",
    "ImplicitHypergradient": "tuning.implicit_hypergradient",
    "Joint": "replay.joint",
    "L2Anchor": "regularization.l2_anchor",
    "LaMAML": "meta.la_maml",
    "LwF": "distillation.lwf",
    "MMoE": "sharing.mmoe",
    "MetaSGD": "meta.meta_sgd",
    "Mixup": "regularization.mixup",
    "MultiHead": "sharing.multi_head",
    "MultiTeacher": "distillation.multi_teacher",
    "NashMTL": "gradients.nash_mtl",
    "NearestClassMean": "replay.nearest_class_mean",
    "PADNet": "sharing.pad_net",
    "PCGrad": "gradients.pcgrad",
    "PackNet": "sharing.packnet",
    "ProtoNets": "meta.proto_nets",
    "RanPAC": "replay.ranpac",
    "Replay": "replay.replay",
    "Reptile": "meta.reptile",
    "RoundRobin": "scheduling.round_robin",
    "SeparateNetworks": "sharing.separate_networks",
    "Sluice": "sharing.sluice",
    "SoftSharing": "regularization.soft_sharing",
    "TaskRelationships": "regularization.task_relationships",
    "TaskRouting": "sharing.task_routing",
    "TemperatureSampling": "scheduling.temperature_sampling",
    "Tent": "adaptation.tent",
    "TraceNorm": "regularization.trace_norm",
    "UPGrad": "gradients.upgrad",
    "UncertaintyWeighting": "weighting.uncertainty_weighting",
    "UpdatesPerBatch": "scheduling.updates_per_batch",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"streamlearn.plugins.{_HOME[name]}"), name)
    raise AttributeError(f"module 'streamlearn.plugins' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
