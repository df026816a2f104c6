"""Tactic sources that are named: every build of the GPU check and of tests/gpu takes them, or says why it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from gpucheck import plans, suite, tables
from gpucheck.record import ERROR, PASSED, Recorder, read_events
from helpers import fake_builder, fake_tensorrt, gpu_fakes, gpu_models
from helpers.gpu_events import events_of
from milnce_convert.plan_settings import BuilderSettings

if TYPE_CHECKING:
    from benchmarks.conftest import Tiny
    from gpucheck.settings import Settings
    from helpers.fake_cuda import FakeCuda

ROOT = Path(__file__).parents[2]
NAMES = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")
UNKNOWN = "tactic source 'NO_SUCH' given; there are: "


@pytest.fixture
def tensorrt(simulated: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> fake_builder.FakeBuilder:
    """Put TensorRT on the simulated GPU."""
    return fake_builder.add(fake_tensorrt.install(monkeypatch, simulated, "tensorrt", flavour="10"), "10")


@pytest.mark.parametrize(("names", "mask"), [(NAMES, 0b11000), ((), None)])
def test_plans_are_built_with_them_and_the_report_says_so(
    settings: Settings, tensorrt: fake_builder.FakeBuilder, names: tuple[str, ...], mask: int | None
) -> None:
    named = replace(settings, present=("cuda", "tensorrt"), tactic_sources=names)
    events = events_of(plans.run, named)
    assert {event["outcome"] for event in events} == {PASSED}
    assert [config.tactics for config in tensorrt.configs] == [mask] * 6
    assert [event["data"]["tactic_sources"] for event in events] == [list(names) or None] * 6
    words = "\n\nBuilds choose from these tactic sources alone: EDGE_MASK_CONVOLUTIONS, JIT_CONVOLUTIONS."
    assert tables.plans(events).endswith(words) == bool(names)


@pytest.mark.usefixtures("tensorrt")
def test_a_name_that_the_library_does_not_know_is_an_error_in_its_words(settings: Settings) -> None:
    events = events_of(plans.run, replace(settings, present=("cuda", "tensorrt"), tactic_sources=("NO_SUCH",)))
    assert {event["outcome"] for event in events} == {ERROR}
    for event in events:
        assert event["detail"].startswith(f"InputError: {UNKNOWN}CUBLAS, CUBLAS_LT, CUDNN, EDGE_MASK_CONVOLUTIONS, ")
        assert event["data"]["tactic_sources"] == ["NO_SUCH"]


def test_without_names_the_defaults_of_the_builder_stay(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.builder == gpu_models.builder_settings() == BuilderSettings()
    # As a host does whose library can choose from these alone, whatever builds: tactic_sources is the last field.
    defaults = BuilderSettings.__init__.__defaults__
    assert defaults is not None
    monkeypatch.setattr(BuilderSettings.__init__, "__defaults__", (*defaults[:-1], NAMES))
    assert settings.builder.tactic_sources == gpu_models.builder_settings().tactic_sources == NAMES


@pytest.mark.parametrize("names", [NAMES, ()])
def test_the_part_that_runs_the_tests_hands_them_on(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    seen: list[BuilderSettings] = []

    def run(_: list[str]) -> int:
        seen.append(gpu_models.builder_settings())
        return 0

    monkeypatch.setattr(pytest, "main", run)
    suite.run(replace(settings, tactic_sources=names), Recorder(tmp_path / "events"))
    assert [found.tactic_sources for found in seen] == [names or None]


def test_no_build_of_tests_gpu_goes_without_them(tiny: Tiny, tmp_path: Path) -> None:
    variables = {**os.environ, **gpu_fakes.environment("tensorrt", "tensorrt_lean", "tensorrt_rtx")}
    variables |= {"MILNCE_GPU_BUNDLE": str(tiny.bundle), "MILNCE_GPU_RESULTS": str(tmp_path / "events")}
    command: list[str | Path] = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / "tests" / "gpu"]
    found = subprocess.run(
        [*command, "-k", "test_tensorrt or test_bad_plans"],
        env={**variables, "MILNCE_GPU_TACTIC_SOURCES": "JIT_CONVOLUTIONS,NO_SUCH"},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert found.returncode == 1, found.stdout
    events, _ = read_events(tmp_path / "events")
    builders = [event for event in events if any("tensorrt" in part for part in event["data"]["needs"])]
    assert len(builders) >= 18
    assert [event["check"] for event in builders if UNKNOWN not in event["data"].get("text", "")] == []
