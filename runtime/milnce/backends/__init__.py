"""Backends: which there are, what this machine can run, and which one a bundle gets and why."""

from __future__ import annotations

from milnce.backends.base import Availability, Backend, BackendChoice, CudaOptions, UnsuitableGraphError
from milnce.backends.choices import Choices
from milnce.backends.selection import BACKENDS, DEVICES, PRECISIONS, available, open_graph, select, takes_views

__all__ = [
    "BACKENDS",
    "DEVICES",
    "PRECISIONS",
    "Availability",
    "Backend",
    "BackendChoice",
    "Choices",
    "CudaOptions",
    "UnsuitableGraphError",
    "available",
    "open_graph",
    "select",
    "takes_views",
]
