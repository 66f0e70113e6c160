"""Multitask gradients at a fork: GradDrop, its rivals, and what they see. Needs torch alone; usable in any net."""

from detection3d.multitask.draw import uniform
from detection3d.multitask.fork import TaskFork
from detection3d.multitask.graddrop import GradDrop, RandomSign, graddrop
from detection3d.multitask.keep import Identity, Sigmoid
from detection3d.multitask.method import Combination, Context, Method, Sum, Weighting
from detection3d.multitask.positions import Cells, Marginalize
from detection3d.multitask.ranks import Ranks, Sync
from detection3d.multitask.schedule import Ramp
from detection3d.multitask.telemetry import Telemetry

__all__ = [
    "Cells",
    "Combination",
    "Context",
    "GradDrop",
    "Identity",
    "Marginalize",
    "Method",
    "Ramp",
    "RandomSign",
    "Ranks",
    "Sigmoid",
    "Sum",
    "Sync",
    "TaskFork",
    "Telemetry",
    "Weighting",
    "graddrop",
    "uniform",
]
