"""What the tests of the GPU check share: bundles with a reference, and simulated GPUs in this process or in another."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

from gpucheck.settings import Settings, Subject, write_subjects  # noqa: E402 - after the line above
from helpers import fake_cuda, gpu_fakes  # noqa: E402
from helpers.gpu_events import SAMPLING  # noqa: E402
from helpers.tiny_bundle import write_tiny_bundle  # noqa: E402
from milnce.bundle import Bundle  # noqa: E402
from milnce_convert.reference import Recipe, from_onnxruntime, write  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from helpers.fake_cuda import FakeCuda


@dataclass(frozen=True)
class Tiny:
    """A tiny bundle and the file of outputs to compare it with."""

    bundle: Path
    reference: Path


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp("tiny")
    write_tiny_bundle(folder / "tiny", sampling=SAMPLING)
    bundle = Bundle.open(folder / "tiny")
    write(folder / "reference.npz", from_onnxruntime(bundle, Recipe.of(bundle, clips=12, sentences=6)))
    return Tiny(folder / "tiny", folder / "reference.npz")


@pytest.fixture
def settings(tiny: Tiny, tmp_path: Path) -> Settings:
    """Return the settings of a check of the tiny bundle, with a host that has ONNX Runtime on a GPU."""
    made = Settings(
        work=str(tmp_path),
        bundles=(str(tiny.bundle),),
        references=(str(tiny.reference),),
        buckets=(1, 4),
        bucket_s=0.05,
        least_rounds=2,
        most_rounds=3,
        cycles=4,
        present=("cuda", "onnxruntime"),
    )
    write_subjects(made, [Subject("tiny", str(tiny.bundle), str(tiny.reference))])
    return made


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Put a simulated GPU with ONNX Runtime on it into this process."""
    fake = fake_cuda.install(monkeypatch, policy="lazy")
    monkeypatch.setattr("milnce.backends.selection._driver_problem", lambda: None)
    gpu_fakes.install_onnxruntime(monkeypatch, fake)
    yield fake
    fake.check(leaks=False)


@pytest.fixture
def gpu_check(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return what runs the command in a process of its own, with simulated libraries if any are named."""

    def run(*arguments: str | Path, fakes: tuple[str, ...] | None = None, **environment: str) -> Any:  # noqa: ANN401
        command: list[str | Path] = [sys.executable, ROOT / "benchmarks" / "gpu_check.py", "--work", tmp_path / "work"]
        command += ["--results", tmp_path / "results", *arguments]
        simulation = {} if fakes is None else gpu_fakes.environment(*fakes, violations=tmp_path / "violations")
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **simulation, **environment}
        return subprocess.run(command, capture_output=True, text=True, check=False, env=variables, cwd=tmp_path)

    return run
