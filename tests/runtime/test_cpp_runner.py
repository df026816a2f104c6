"""examples/cpp/tensorrt_runner.cpp: compiled with a stand-in for TensorRT and run, and checked against real headers.

The real headers are not part of this repository. Where MILNCE_TENSORRT_INCLUDE names folders with NvInferRuntime.h
(separated by ":"), and CUDA's headers are installed, the runner must compile against each of them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    Runner = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "examples" / "cpp" / "tensorrt_runner.cpp"
STAND_IN = ROOT / "tests" / "helpers" / "tensorrt_stand_in"
FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror")
CUDA_INCLUDE = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"

ROW = (2, 4, 4, 3)
PLAN = "1 1 2 4 4 3\n2 2 2 4 4 3\n4 8 2 4 4 3\n1 8 2 6 6 3\n"


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Runner:
    """Compile the runner with the stand-in, and return a function that runs it."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ here")
    program = tmp_path_factory.mktemp("runner") / "tensorrt_runner"
    done = subprocess.run(
        [compiler, *FLAGS, "-O1", "-I", str(STAND_IN), str(SOURCE), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr

    def run(*arguments: object, fails: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "MILNCE_STAND_IN_FAILS": fails}
        return subprocess.run(
            [program, *map(str, arguments)], env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    return run


@pytest.fixture
def plan(tmp_path: Path) -> tuple[Path, str]:
    (tmp_path / "video.plan").write_text(PLAN, encoding="ascii")
    return tmp_path / "video.plan", hashlib.sha256(PLAN.encode()).hexdigest()


def clips(folder: Path, rows: int, row: tuple[int, ...] = ROW) -> tuple[Path, np.ndarray]:
    values = np.random.default_rng(rows).integers(1, 256, (rows, *row), dtype=np.uint8)
    (folder / "clips.bin").write_bytes(values.tobytes())
    return folder / "clips.bin", values


@pytest.mark.parametrize(("rows", "batch"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 5), (8, 8)])
def test_a_batch_runs_in_the_profile_that_adds_the_fewest_rows(
    runner: Runner, plan: tuple[Path, str], tmp_path: Path, rows: int, batch: int
) -> None:
    file, values = clips(tmp_path, rows)
    done = runner(*plan, file, f"{rows}x2x4x4x3", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    embedding = np.fromfile(tmp_path / "out.video_embedding.f32", np.float32).reshape(rows, 3)
    np.testing.assert_array_equal(embedding[:, 0], values.reshape(rows, -1).sum(axis=1))
    np.testing.assert_array_equal(embedding[:, 1], batch)
    np.testing.assert_array_equal(embedding[:, 2], values.sum())  # rows that nobody asked for are zero
    mixed = np.fromfile(tmp_path / "out.mixed_5c.f32", np.float32)
    np.testing.assert_array_equal(mixed, values[:, 0, 0, 0, 0])
    assert f"out.mixed_5c.f32: {4 * rows} bytes" in done.stdout


def test_sizes_choose_the_profile_too(runner: Runner, plan: tuple[Path, str], tmp_path: Path) -> None:
    file, values = clips(tmp_path, 3, (2, 6, 6, 3))
    done = runner(*plan, file, "3x2x6x6x3", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    embedding = np.fromfile(tmp_path / "out.video_embedding.f32", np.float32).reshape(3, 3)
    np.testing.assert_array_equal(embedding, [[row.sum(), 3, values.sum()] for row in values])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("9x2x4x4x3", "no profile of the plan takes this shape"),
        ("1x2x5x4x3", "no profile of the plan takes this shape"),
        ("1x2x4x4", "no profile of the plan takes this shape"),
        ("2x2x4x4x3", "clips.bin has 96 bytes; video of that shape has 192"),
        ("1x2xx4x3", "the shape 1x2xx4x3 cannot be read"),
        ("0x2x4x4x3", "the shape 0x2x4x4x3 cannot be read"),
        ("-1x2", "the shape -1x2 cannot be read"),
        ("1x1x1x1x1x1x1x1x1", "cannot be read"),
        ("", "the shape is empty"),
    ],
)
def test_shapes_that_do_not_fit_are_said(
    runner: Runner, plan: tuple[Path, str], tmp_path: Path, shape: str, message: str
) -> None:
    file, _ = clips(tmp_path, 1)
    done = runner(*plan, file, shape, tmp_path / "out")
    assert done.returncode == 1
    assert message in done.stderr
    assert "stand-in" not in done.stderr


def test_a_plan_with_another_hash_never_reaches_tensorrt(
    runner: Runner, plan: tuple[Path, str], tmp_path: Path
) -> None:
    file, _ = clips(tmp_path, 1)
    data = bytearray(PLAN.encode())
    data[0] ^= 1
    plan[0].write_bytes(data)
    done = runner(*plan, file, "1x2x4x4x3", tmp_path / "out", fails="createInferRuntime")
    assert done.returncode == 1
    assert done.stderr == f"Error: {plan[0]} is not the plan of that sha256; build it again\n"


def test_a_plan_that_tensorrt_refuses_gives_its_reason(runner: Runner, tmp_path: Path) -> None:
    (tmp_path / "old.plan").write_bytes(b"old")
    file, _ = clips(tmp_path, 1)
    digest = hashlib.sha256(b"old").hexdigest()
    done = runner(tmp_path / "old.plan", digest, file, "1x2x4x4x3", tmp_path / "out")
    assert done.returncode == 1
    assert "Error: deserializeCudaEngine failed: the plan is of another version" in done.stderr


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            "cudaSetDevice",
            "cudaSetDevice failed: cudaErrorInsufficientDriver (35): CUDA driver version is",
        ),
        ("createInferRuntime", "createInferRuntime failed: no reason was given"),
        ("createExecutionContext", "createExecutionContext failed"),
        ("setOptimizationProfileAsync", "setOptimizationProfileAsync failed"),
        ("cudaMalloc", "cudaMalloc failed: cudaErrorMemoryAllocation (2): out of memory"),
        ("cudaMallocHost", "cudaMallocHost failed: cudaErrorMemoryAllocation"),
        ("cudaMemcpyAsync", "cudaMemcpyAsync failed"),
        ("enqueueV3", "enqueueV3 failed"),
        ("cudaStreamSynchronize", "cudaStreamSynchronize failed"),
        ("dtype", "tensor video has a dtype that no plan of milnce has"),
    ],
)
def test_whatever_fails_is_named_and_everything_is_freed(
    runner: Runner, plan: tuple[Path, str], tmp_path: Path, call: str, message: str
) -> None:
    file, _ = clips(tmp_path, 1)
    done = runner(*plan, file, "1x2x4x4x3", tmp_path / "out", fails=call)
    assert done.returncode == 1
    assert f"Error: {message}" in done.stderr
    assert "stand-in" not in done.stderr
    assert not (tmp_path / "out.mixed_5c.f32").exists()


def test_missing_files_and_arguments_are_named(runner: Runner, plan: tuple[Path, str], tmp_path: Path) -> None:
    assert "PLAN SHA256 INPUT SHAPE OUTPUT_PREFIX are needed" in runner().stderr
    done = runner(*plan, tmp_path / "none.bin", "1x2x4x4x3", tmp_path / "out")
    assert "none.bin cannot be read" in done.stderr
    file, _ = clips(tmp_path, 1)
    done = runner(*plan, file, "1x2x4x4x3", tmp_path / "nowhere" / "out")
    assert "out.mixed_5c.f32 cannot be written" in done.stderr


def test_the_runner_compiles_against_real_headers() -> None:
    compiler = shutil.which("g++")
    named = os.environ.get("MILNCE_TENSORRT_INCLUDE", "")
    folders = [Path(folder) for folder in named.split(":") if folder]
    if compiler is None or not folders:
        pytest.skip("MILNCE_TENSORRT_INCLUDE names no folder with TensorRT's headers")
    if not (CUDA_INCLUDE / "cuda_runtime_api.h").exists():
        pytest.skip(f"CUDA's headers are not at {CUDA_INCLUDE}")
    for folder in folders:
        includes = ["-isystem", str(folder), "-isystem", str(CUDA_INCLUDE)]
        done = subprocess.run(
            [compiler, *FLAGS, "-fsyntax-only", *includes, str(SOURCE)],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, f"{folder}: {done.stderr}"
