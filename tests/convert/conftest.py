"""Fixtures of the converter's tests: each tower is traced once a session; and what plans are built of and with."""

from __future__ import annotations

import shutil
from functools import partial
from typing import TYPE_CHECKING

import pytest

from helpers import fake_builder, fake_cuda, fake_tensorrt, plan_bench
from helpers.fake_cuda import FakeGpu
from helpers.graphs import ROWS, Traced, short_towers, trace
from helpers.rtx import require_rtx
from helpers.tiny_bundle import write_tiny_bundle
from milnce.bundle import Bundle
from milnce_convert.fixtures import seeded_towers
from milnce_convert.plan_module import choose_toolkit
from milnce_convert.towers import TowersConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.fake_builder import FakeBuilder
    from helpers.fake_cuda import FakeCuda
    from helpers.plan_bench import PlanBench
    from helpers.tiny_bundle import TinyWeights
    from milnce_convert.checkpoint import Towers
    from milnce_convert.plan_module import Toolkit


@pytest.fixture(scope="session")
def quarter() -> Traced:
    """Return quarter-width towers of the published plan, traced."""
    return trace(seeded_towers(0, TowersConfig.scaled(0.25, rows=ROWS)))


@pytest.fixture(scope="session")
def full() -> Traced:
    """Return towers of the published widths, traced."""
    return trace(seeded_towers(0))


@pytest.fixture(scope="session")
def short() -> Towers:
    """Return narrow towers with three Inception blocks."""
    return short_towers()


@pytest.fixture(scope="session")
def short_traced(short: Towers) -> Traced:
    """Return the narrow towers, traced."""
    return trace(short)


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TinyWeights]:
    """Return a tiny bundle that no test changes, and its weights."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    return path, write_tiny_bundle(path)


@pytest.fixture
def bundle(original: tuple[Path, TinyWeights], tmp_path: Path) -> Bundle:
    """Return a copy of the tiny bundle."""
    return Bundle.open(shutil.copytree(original[0], tmp_path / "tiny"))


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> tuple[FakeBuilder, FakeCuda]:
    """Put a stand-in for TensorRT 11 and a GPU in place."""
    cuda = fake_cuda.install(monkeypatch, gpus=[FakeGpu(name="NVIDIA H200")])
    return fake_builder.add(fake_tensorrt.install(monkeypatch, cuda, "tensorrt"), "11"), cuda


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, original: tuple[Path, TinyWeights]) -> Callable[..., PlanBench]:
    """Return a function that puts a generation of TensorRT in place, to build the tiny bundle's graphs with."""
    return partial(plan_bench.place, monkeypatch, Bundle.open(original[0]))


@pytest.fixture
def rtx() -> Toolkit:
    """Return the installed TensorRT-RTX, as on a machine without a GPU."""
    require_rtx()
    return choose_toolkit("tensorrt_rtx")
