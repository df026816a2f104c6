"""The GPU check as a command: over simulated GPUs from end to end, out of time, crashed and hung."""

from __future__ import annotations

import json
import shutil
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from gpucheck import runner
from gpucheck.record import ABSENT, ERROR, FAILED, MEASURED, PASSED
from gpucheck.runner import NOT_RUN, chosen, exit_code, run_part, worst
from helpers import gpu_fakes
from helpers.processes import eventually
from milnce.bundle import Bundle
from milnce.plans import sidecars
from milnce_convert.parity import FP32_GATE, compare, require
from milnce_convert.reference import from_onnxruntime, read

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable

    from benchmarks.conftest import Tiny
    from gpucheck.settings import Settings

    Command = Callable[..., subprocess.CompletedProcess[str]]

ROOT = Path(__file__).parents[2]
# What a TensorRT 8.5 without cuDNN and cuBLAS builds with.
TACTICS = ["EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"]


def report_of(folder: Path) -> dict[str, Any]:
    (path,) = (folder / "results").glob("*.json")
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return found


def checks(report: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [check for part in report["parts"] for check in part["checks"] if check["kind"] == kind]


def test_everything_runs_on_a_simulated_gpu(gpu_check: Command, tiny: Tiny, tmp_path: Path) -> None:
    arguments = ["--bundle", tiny.bundle, "--reference", tiny.reference, "--out", tmp_path / "out", "--cycles", "4"]
    arguments += ["--buckets", "1,4", "--bucket-s", "0.1"]
    arguments += [word for name in TACTICS for word in ("--tactic-source", name)]
    fakes = ("tensorrt", "tensorrt_lean", "tensorrt_rtx", "onnxruntime")
    found = gpu_check(*arguments, fakes=fakes, MILNCE_GPU_BUNDLE=str(tiny.bundle))
    assert found.returncode == 0, found.stderr + found.stdout
    report = report_of(tmp_path)
    outcomes = {part["name"]: part["outcome"] for part in report["parts"]}
    assert outcomes == {**dict.fromkeys(runner.NAMES, PASSED), "peaks": ABSENT}  # which a GPU that is there has
    assert (report["gpu"], report["complete"], report["exit_code"], report["waiting"]) == (
        gpu_fakes.GPU.name,
        True,
        0,
        [],
    )
    tests = checks(report, "test")
    assert sum(test["outcome"] == PASSED for test in tests) >= 80
    # What is skipped is named by the library it needs, and no library that is there had a test skipped.
    assert {reason.partition(":")[0] for test in tests if (reason := test["detail"])} == {
        "torch",
        "cupy",
        "pycuda",
        "nvdec",
    }
    counted = {check["check"]: check["data"]["count"] for check in checks(report, "tests")}
    assert all(counted[f"tests of {part}"] > 0 for part in ("cuda", *fakes))
    # The real library builds for other GPUs, and milnce refuses in words to run that on this one.
    (_, refusal, answer) = checks(report, "rtx")
    assert "it is for compute capability 8.0" in refusal["detail"]
    assert answer["outcome"] == MEASURED
    assert "get_engine_validity gives INVALID" in answer["detail"]
    assert [check["data"]["tactic_sources"] for check in checks(report, "plan")] == [TACTICS] * 6
    for name in ("tiny", "tests", "rtx"):
        built, _ = sidecars(tmp_path / "work" / "plans" / name)
        assert [plan.options["settings"]["tactic_sources"] for plan in built] == [TACTICS] * len(built) != []
    built, _ = sidecars(tmp_path / "work" / "plans" / "tiny")
    batches = {plan.module: [next(iter(profile.shapes.values()))[2][0] for profile in plan.profiles] for plan in built}
    assert batches == {"video": [1, 4], "text": [1, 8, 32, 256]}
    assert len(checks(report, "parity")) == 2 * 6 * 2  # backends, graphs, buckets
    # TensorRT, and ONNX Runtime with either search; precisions, ways, buckets.
    assert len([check for check in checks(report, "latency") if check["outcome"] == MEASURED]) == 3 * 2 * 3 * 2
    # Backends, precisions; batches, callers, files.
    assert len([check for check in checks(report, "throughput") if check["outcome"] == MEASURED]) == 2 * 2 * 3
    assert len(checks(report, "memory")) == 4
    assert [check["outcome"] for check in checks(report, "peak")] == [ABSENT]  # PyTorch here sees no GPU
    assert (tmp_path / "violations").read_text() == ""  # of all the processes
    (page,) = (tmp_path / "results").glob("*.md")
    assert page.name.startswith("gpu-check-nvidia-simulated-20")
    assert page.read_text("utf-8") == found.stdout.rstrip("\n") + "\n"
    for path in (page, page.with_suffix(".json")):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_what_fails_is_reported_and_the_code_is_1(gpu_check: Command, tiny: Tiny, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    shutil.copytree(tiny.bundle, wrong)
    graph = wrong / "video-uint8-fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    found = gpu_check("--bundle", wrong, "--only", "bundles", fakes=("onnxruntime",))
    assert found.returncode == 1
    assert "## What failed" in found.stdout
    assert "BundleError" in found.stdout
    report = report_of(tmp_path)
    assert [part["name"] for part in report["parts"]] == ["environment", "bundles"]
    assert report["exit_code"] == 1


def test_a_second_report_of_the_day_does_not_replace_the_first(gpu_check: Command, tmp_path: Path) -> None:
    for _ in range(2):
        assert gpu_check("--only", "environment", fakes=()).returncode == 0
    first, second = sorted((tmp_path / "results").glob("*.md"), key=lambda path: len(path.name))
    assert second.name == first.name.removesuffix(".md") + "-2.md"


def test_out_of_time_parts_are_named_and_the_code_is_3(gpu_check: Command, tiny: Tiny, tmp_path: Path) -> None:
    arguments = ["--bundle", tiny.bundle, "--budget-s", "1", "--only", "bundles", "--only", "memory"]
    found = gpu_check(*arguments, fakes=())
    assert found.returncode == 3, found.stderr
    outcomes = {part["name"]: part["outcome"] for part in report_of(tmp_path)["parts"]}
    assert outcomes["environment"] == PASSED
    assert {outcomes[name] for name in ("bundles", "plans", "memory")} == {NOT_RUN}
    assert "| memory | not run |" in found.stdout
    assert "of 1 s of the budget were used" in found.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--buckets", "0,1"), "batch sizes are numbers of at least 1; 0,1 given"),
        (("--only", "speed"), "invalid choice: 'speed'"),
        (("--make-reference", "out.npz"), "--make-reference takes one --bundle DIR"),
    ],
)
def test_wrong_arguments_end_with_2(gpu_check: Command, arguments: tuple[str, ...], words: str) -> None:
    found = gpu_check(*arguments, fakes=())
    assert found.returncode == 2
    assert words in found.stderr


def test_a_reference_is_made_without_a_gpu(gpu_check: Command, tiny: Tiny, tmp_path: Path) -> None:
    path = tmp_path / "made.npz"
    found = gpu_check("--make-reference", path, "--bundle", tiny.bundle, "--clips", "5")
    assert found.returncode == 0, found.stderr
    assert "made.npz: 5 clips of FP32 graphs, onnxruntime" in found.stdout
    made = read(path)
    made.check_bundle(Bundle.open(tiny.bundle))
    assert len(made.make_clips()) == 5
    missing = gpu_check("--make-reference", path, "--bundle", tmp_path / "none")
    assert missing.returncode == 1
    assert missing.stderr.startswith("Error: no milnce bundle at")


def test_the_committed_reference_is_that_of_the_demo() -> None:
    committed = read(ROOT / "benchmarks" / "references" / "demo.npz")
    bundle = Bundle.open(ROOT / "engines" / "demo")
    committed.check_bundle(bundle)
    assert committed.recipe.clips == 70
    made = from_onnxruntime(bundle, committed.recipe)
    for name, rows in committed.outputs.items():
        require(compare(made.outputs[name], rows), FP32_GATE, name)


def test_the_parts_asked_for_bring_what_they_need() -> None:
    assert [part.name for part in chosen([])] == list(runner.NAMES)
    assert [part.name for part in chosen(["latency"])] == ["environment", "bundles", "plans", "latency"]
    assert [part.name for part in chosen(["tests"])] == ["environment", "tests"]


def test_every_part_has_a_module_and_can_begin_within_the_default_budget() -> None:
    from gpucheck.part import MODULES  # noqa: PLC0415 - beside what it is about

    assert set(MODULES) == set(runner.NAMES)
    assert all((ROOT / "benchmarks" / "gpucheck" / f"{module}.py").exists() for module in MODULES.values())
    assert sum(part.reserve_s for part in runner.PARTS) <= 540
    assert all(part.least_s <= part.reserve_s <= part.limit_s for part in runner.PARTS)


def sabotage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Make every child process run `code` when it begins."""
    (tmp_path / "sitecustomize.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def test_a_crash_is_an_error_that_names_the_check_under_way(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = """\
        import gpucheck.environment, os, signal
        def run(settings, record):
            record.add("part", "cuda", "passed")
            record.start("the second check")
            print("last words", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        gpucheck.environment.run = run
    """
    sabotage(tmp_path, monkeypatch, textwrap.dedent(code))
    result = run_part("environment", settings, limit_s=60)
    assert result["outcome"] == ERROR
    seen, crash = result["checks"]
    assert (seen["check"], seen["outcome"]) == ("cuda", PASSED)
    assert crash["detail"] == "its process was ended by SIGSEGV during 'the second check'"
    assert "last words" in crash["data"]["log"]


def test_a_hang_is_stopped_with_all_it_started(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It begins before anything is imported, so that little time needs to be given.
    code = f"""\
        import json, subprocess, sys, time
        if "gpucheck.part" in sys.orig_argv:
            with open(sys.orig_argv[-1], "a") as events:
                events.write(json.dumps({{"event": "start", "check": "the long one"}}) + "\\n")
            child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(100)"])
            open({str(tmp_path / "child")!r}, "w").write(str(child.pid))
            time.sleep(100)
    """
    sabotage(tmp_path, monkeypatch, textwrap.dedent(code))
    result = run_part("environment", settings, limit_s=4)
    (stopped,) = result["checks"]
    assert stopped["outcome"] == ERROR
    assert stopped["detail"] == "stopped at its limit of 4 s during 'the long one'"
    child = Path("/proc") / (tmp_path / "child").read_text() / "status"
    eventually(lambda: is_gone(child))


def is_gone(status: Path) -> bool:
    """Whether a killed process has ended; the kernel takes a moment for it."""
    try:
        return "State:\tZ" in status.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_an_exception_that_nothing_caught_is_an_error_with_its_traceback(settings: Settings) -> None:
    (settings.folder / "subjects.json").write_text("{")
    (check,) = run_part("parity", settings, limit_s=60)["checks"]
    assert check["detail"] == "its process ended with code 1"
    assert "JSONDecodeError" in check["data"]["log"]


def test_what_an_earlier_run_found_is_not_taken_for_this_ones(settings: Settings) -> None:
    stale = '{"event": "end", "kind": "part", "check": "stale", "outcome": "passed", "detail": "", "data": {}}'
    (settings.folder / "environment.jsonl").write_text(stale + "\n")
    result = run_part("environment", settings, limit_s=120)
    assert result["checks"][0]["check"] == "cuda"
    assert "stale" not in {check["check"] for check in result["checks"]}


def test_outcomes_and_exit_codes() -> None:
    def check(outcome: str) -> dict[str, str]:
        return {"outcome": outcome}

    assert worst([]) == ABSENT
    assert worst([check(PASSED), check(ABSENT), check(MEASURED)]) == PASSED
    assert worst([check(ABSENT)]) == ABSENT
    assert worst([check(PASSED), check(FAILED)]) == FAILED
    assert worst([check(FAILED), check(ERROR)]) == ERROR
    for outcomes, code in (
        ((PASSED, ABSENT), 0),
        ((PASSED, NOT_RUN), 3),
        ((FAILED, NOT_RUN), 1),
        ((ERROR,), 1),
    ):
        assert exit_code([check(outcome) for outcome in outcomes]) == code
