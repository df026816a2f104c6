"""Backends: which there are, what this machine can run, and which one a bundle gets and why."""

from __future__ import annotations

from milnce.backends.base import Availability, Backend, BackendChoice, CudaOptions
from milnce.backends.selection import BACKENDS, DEVICES, PRECISIONS, available, open_graph, select

__all__ = [
    "BACKENDS",
    "DEVICES",
    "PRECISIONS",
    "Availability",
    "Backend",
    "BackendChoice",
    "CudaOptions",
    "available",
    "open_graph",
    "select",
]
