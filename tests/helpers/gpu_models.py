"""Plans and models of a bundle, as the tests on a GPU want them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import milnce
from milnce.backends.gpu import GpuBackend
from milnce_convert import plan as builder
from milnce_convert.plan_profiles import PlanSizes, Span
from milnce_convert.plan_settings import BuilderSettings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from milnce.backends import CudaOptions
    from milnce.bundle import Bundle
    from milnce.plans import Plan

# Few, since each costs the builder time; batches of 1 to 70 are split over them and padded all the same.
BUCKETS = (1, 4, 8)
TACTIC_SOURCES = "MILNCE_GPU_TACTIC_SOURCES"


class Opener(Protocol):
    """Opens a graph of the bundle on the GPU."""

    def __call__(
        self, module: str = "video", *, options: CudaOptions | None = None
    ) -> AbstractContextManager[GpuBackend]:
        """Open it in the backend that the test is about."""


def builder_settings(**settings: Any) -> BuilderSettings:  # noqa: ANN401
    """Return the settings, with the tactic sources that the environment names; every build of tests/gpu takes them."""
    if os.environ.get(TACTIC_SOURCES):
        settings["tactic_sources"] = tuple(os.environ[TACTIC_SOURCES].split(","))
    return BuilderSettings(**settings)


def build(bundle: Bundle, folder: Path, modules: tuple[str, ...] = ("video", "text"), **settings: Any) -> list[Plan]:  # noqa: ANN401
    """Build FP32 plans with tensorrt; the settings are those of `BuilderSettings`."""
    batches = tuple(map(Span.fixed, BUCKETS))
    options = builder.PlanOptions(
        modules=modules,
        precisions=("fp32",),
        sizes=PlanSizes(batch=batches, text_batch=batches),
        settings=builder_settings(**settings),
    )
    return [built.plan for built in builder.build_plans(bundle, folder, options)]


@contextmanager
def opened(
    bundle: Bundle, backend: str, plans: Path | None, module: str = "video", options: CudaOptions | None = None
) -> Iterator[GpuBackend]:
    """Load the bundle in a backend on the GPU and yield what runs a module of it."""
    model = milnce.load(bundle.path, backend=backend, device="cuda", modules=(module,), plans=plans, cuda=options)
    with model:
        found = model.open(module)
        assert isinstance(found, GpuBackend)
        yield found
