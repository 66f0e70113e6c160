"""What a config file may say: one frozen tree of typed sections, checked in one place."""

from detection3d.config.decode import DecodeConfig
from detection3d.config.heads import HeadsConfig
from detection3d.config.model import ModelConfig, NeckConfig, PillarBackboneConfig, VoxelBackboneConfig
from detection3d.config.multitask import (
    CAGradConfig,
    ClippingConfig,
    GradDropConfig,
    GradientPenaltyConfig,
    GradNormConfig,
    IdentityConfig,
    MGDAConfig,
    MultitaskConfig,
    PCGradConfig,
    RampConfig,
    RandomSignConfig,
    SigmoidConfig,
    SumConfig,
    UncertaintyConfig,
)
from detection3d.config.tree import (
    AugmentationConfig,
    ClassConfig,
    Config,
    DataConfig,
    LossConfig,
    TrainingConfig,
)

__all__ = [
    "AugmentationConfig",
    "CAGradConfig",
    "ClassConfig",
    "ClippingConfig",
    "Config",
    "DataConfig",
    "DecodeConfig",
    "GradDropConfig",
    "GradNormConfig",
    "GradientPenaltyConfig",
    "HeadsConfig",
    "IdentityConfig",
    "LossConfig",
    "MGDAConfig",
    "ModelConfig",
    "MultitaskConfig",
    "NeckConfig",
    "PCGradConfig",
    "PillarBackboneConfig",
    "RampConfig",
    "RandomSignConfig",
    "SigmoidConfig",
    "SumConfig",
    "TrainingConfig",
    "UncertaintyConfig",
    "VoxelBackboneConfig",
]
