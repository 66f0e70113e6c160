"""Multitask gradients at a fork: GradDrop, its rivals, and what they see. Needs torch alone; usable in any net."""

from detection3d.multitask.cagrad import CAGrad
from detection3d.multitask.clipping import TaskClipping
from detection3d.multitask.conflict_map import ConflictMap
from detection3d.multitask.draw import uniform
from detection3d.multitask.fork import TaskFork
from detection3d.multitask.graddrop import GradDrop, RandomSign, graddrop
from detection3d.multitask.gradnorm import GradNorm
from detection3d.multitask.keep import Identity, Sigmoid
from detection3d.multitask.lingvo import LingvoGradDrop, LingvoOptions, lingvo_graddrop
from detection3d.multitask.method import Combination, Context, Method, Sum, Weighting
from detection3d.multitask.mgda import MGDA
from detection3d.multitask.pcgrad import PCGrad
from detection3d.multitask.penalty import GradientPenalty
from detection3d.multitask.positions import Cells, Marginalize
from detection3d.multitask.ranks import Ranks, Sync
from detection3d.multitask.schedule import Ramp
from detection3d.multitask.telemetry import Telemetry
from detection3d.multitask.uncertainty import Uncertainty

__all__ = [
    "MGDA",
    "CAGrad",
    "Cells",
    "Combination",
    "ConflictMap",
    "Context",
    "GradDrop",
    "GradNorm",
    "GradientPenalty",
    "Identity",
    "LingvoGradDrop",
    "LingvoOptions",
    "Marginalize",
    "Method",
    "PCGrad",
    "Ramp",
    "RandomSign",
    "Ranks",
    "Sigmoid",
    "Sum",
    "Sync",
    "TaskClipping",
    "TaskFork",
    "Telemetry",
    "Uncertainty",
    "Weighting",
    "graddrop",
    "lingvo_graddrop",
    "uniform",
]
