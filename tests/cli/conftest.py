"""Fixtures of the command line's tests."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

import milnce
from helpers.commands import Ran, Tiny, command, environment
from helpers.tiny_bundle import write_tiny_bundle
from helpers.videos import make_video
from milnce.cli.app import app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from milnce.model import Model


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Return a tiny bundle that no test changes; its own sampling is 10 windows of 4 frames, 32 pixels."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    return Tiny(path, write_tiny_bundle(path))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return this test's own cache folder, where `milnce search` keeps its index: an empty one."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture(scope="session")
def model(tiny: Tiny) -> Iterator[Model]:
    """Return the tiny bundle in ONNX Runtime."""
    with milnce.load(tiny.path, backend="onnxruntime") as opened:
        yield opened


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with three short videos of different lengths and sizes."""
    folder = tmp_path_factory.mktemp("videos")
    make_video(folder / "a.mp4", frames=40, size=(96, 64))
    make_video(folder / "b.mkv", frames=25, size=(64, 96))
    make_video(folder / "c.mp4", frames=70, size=(128, 72))
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ran]:
    """Return the folder where `milnce export` made a bundle of seeded weights, and files for hosts; and its output."""
    folder = tmp_path_factory.mktemp("exported")
    options = ["--precision", "fp32", "--input-form", "uint8", "--input-form", "float32"]
    options += ["--fixed-size", "16", "64", "64", "--max-words", "20"]
    hosts = ["--triton", folder / "triton", "--deepstream", folder / "ds"]
    asked = command("export", "--seeded", 0, "--width", 0.125, "--out", folder / "bundle", *options, *hosts)
    done = subprocess.run(asked, env=environment(), capture_output=True, text=True, check=False, timeout=600)
    return folder, Ran(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def run() -> Callable[..., Ran]:
    """Return a function that runs `milnce` in this process."""

    def invoke(*arguments: object) -> Ran:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Ran(result.exit_code, result.stdout, result.stderr)

    return invoke


@pytest.fixture
def run_process() -> Callable[..., Ran]:
    """Return a function that runs `milnce` in a process of its own."""

    def invoke(*arguments: object, **changes: Any) -> Ran:  # noqa: ANN401 - names and values of the environment
        done = subprocess.run(
            command(*arguments), env=environment(**changes), capture_output=True, text=True, check=False, timeout=120
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return invoke
