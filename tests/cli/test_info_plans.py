"""`milnce info` on a bundle with TensorRT plans."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from helpers import fake_cuda
from helpers.fake_plans import fixed, write_fake_plan
from helpers.tiny_bundle import write_tiny_bundle
from milnce.bundle import Bundle
from milnce.plans import PlanProfile

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.commands import Ran
    from milnce.plans import Plan

    Run = Callable[..., Ran]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    write_tiny_bundle(tmp_path / "b")
    return Bundle.open(tmp_path / "b")


@pytest.fixture
def plan(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> Plan:
    fake = fake_cuda.install(monkeypatch)
    return write_fake_plan(bundle, bundle.graph("video"), fake)


def line(stdout: str, word: str) -> str:
    return " ".join(next(line for line in stdout.splitlines() if word in line).split())


def test_a_bundle_without_plans_says_nothing_of_them(bundle: Bundle, run: Run) -> None:
    assert "built by" not in run("info", bundle.path).stdout
    assert json.loads(run("info", bundle.path, "--json").stdout)["plans"] == {"held": [], "problems": []}


def test_plans_are_listed_with_what_they_are_for(bundle: Bundle, plan: Plan, run: Run) -> None:
    shown = line(run("info", bundle.path, "--verify").stdout, "tensorrt 11.1.0.1")
    assert shown.startswith("video uint8 fp32 tensorrt 11.1.0.1 Fake GPU (9.0) 1, 2, 4, 8 ")
    assert shown.endswith("of this bundle")
    held = json.loads(run("info", bundle.path, "--json").stdout)["plans"]["held"]
    assert [item["file"] for item in held] == [plan.file]
    assert held[0]["profiles"][0]["video"]["max"] == [1, 4, 16, 16, 3]


def test_a_plan_in_tf32_is_told_from_an_exact_one(
    bundle: Bundle, plan: Plan, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = fake_cuda.install(monkeypatch)
    sidecar = {"options": {"settings": {"tf32": True}}}
    rounded = write_fake_plan(bundle, bundle.graph("video"), fake, sidecar=sidecar)
    assert rounded.file != plan.file
    stdout = run("info", bundle.path).stdout
    assert stdout.count("video uint8 fp32 ") == 2
    assert stdout.count("video uint8 fp32 (TF32) ") == 1


def test_ranges_and_other_exports_are_told(bundle: Bundle, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = fake_cuda.install(monkeypatch)
    graph = bundle.graph("text")
    profiles = [*fixed(graph, [1]), PlanProfile({"tokens": ((1, 16), (8, 16), (64, 16))})]
    write_fake_plan(bundle, graph, fake, profiles=profiles, sidecar={"onnx_sha256": "1" * 64})
    shown = line(run("info", bundle.path).stdout, "text tokens fp32 ")
    assert " 1, 1..64 " in shown
    assert shown.endswith("of another export: build it again")


def test_a_damaged_plan_is_found_when_files_are_verified(bundle: Bundle, plan: Plan, run: Run) -> None:
    path = bundle.path / "plans" / plan.file
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    assert "of this bundle" in run("info", bundle.path).stdout
    result = run("info", bundle.path, "--verify")
    assert result.code == 0
    assert "of this bundle" not in result.stdout
    assert f"{plan.file} was changed or damaged" in result.stdout
    (problem,) = json.loads(run("info", bundle.path, "--verify", "--json").stdout)["plans"]["problems"]
    assert plan.file in problem


def test_a_folder_that_others_may_write_is_told(bundle: Bundle, plan: Plan, run: Run) -> None:
    assert plan.file
    (bundle.path / "plans").chmod(0o777)
    assert "plan: " in run("info", bundle.path).stdout
    (problem,) = json.loads(run("info", bundle.path, "--json").stdout)["plans"]["problems"]
    assert "chmod" in problem
