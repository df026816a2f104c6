"""Fixtures of the runtime's tests."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest

import milnce
from helpers import fake_cuda
from helpers.doubling import Doubling
from helpers.tiny_bundle import Tiny, write_tiny_bundle
from helpers.videos import make_video
from milnce.backends.base import CudaOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from helpers.fake_cuda import FakeCuda
    from milnce.model import Model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Return a tiny bundle that no test changes."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    return Tiny(path, write_tiny_bundle(path))


@pytest.fixture
def copied(tiny: Tiny, tmp_path: Path) -> Path:
    """Return a copy of the tiny bundle that the test may damage."""
    return shutil.copytree(tiny.path, tmp_path / "copy")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three videos of different length, one of them in a folder of its own."""
    folder = tmp_path_factory.mktemp("videos")
    (folder / "sub").mkdir()
    make_video(folder / "a.mp4", frames=100)
    make_video(folder / "b.mkv", frames=50, size=(64, 96))
    make_video(folder / "sub" / "c.mp4", frames=75, size=(128, 72))
    return folder


@pytest.fixture(scope="session")
def model(tiny: Tiny) -> Iterator[Model]:
    """Return the tiny bundle in ONNX Runtime."""
    with milnce.load(tiny.path, backend="onnxruntime") as opened:
        yield opened


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Return a simulated GPU that runs as late as it may, checked at the end. Some modules have one of their own."""
    installed = fake_cuda.install(monkeypatch, policy="lazy")
    yield installed
    installed.check()


@pytest.fixture
def opened(fake: FakeCuda) -> Iterator[Callable[..., Doubling]]:
    """Return what opens the doubling graph on the module's simulated GPU, which is checked when all are closed."""
    backends: list[Doubling] = []

    def make(device: int = 0, **options: Any) -> Doubling:  # noqa: ANN401 - CudaOptions' own
        backends.append(Doubling(fake, CudaOptions(**options), device=device))
        return backends[-1]

    yield make
    for backend in backends:
        backend.close()
    fake.check()
