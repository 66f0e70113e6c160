"""Multitask gradients at a fork: GradDrop, the plain sum, and what they see. Needs torch alone; usable in any net."""

from detection3d.multitask.draw import uniform
from detection3d.multitask.fork import TaskFork
from detection3d.multitask.graddrop import GradDrop, graddrop
from detection3d.multitask.method import Context, Method, Sum
from detection3d.multitask.positions import Marginalize
from detection3d.multitask.telemetry import Telemetry

__all__ = [
    "Context",
    "GradDrop",
    "Marginalize",
    "Method",
    "Sum",
    "TaskFork",
    "Telemetry",
    "graddrop",
    "uniform",
]
