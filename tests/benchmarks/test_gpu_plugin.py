"""The hooks of tests/gpu: skipped with one reason without a GPU; with one, no skip of what is there goes by."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from gpucheck.record import ABSENT, ERROR, FAILED, PASSED, Recorder, read_events
from gpucheck.runner import run_part
from gpucheck.settings import Settings
from gpucheck.suite import judge
from helpers import fake_cuda, gpu_fakes
from helpers.gpu_parts import PARTS, find_parts, missing

if TYPE_CHECKING:
    from gpucheck.record import Event

ROOT = Path(__file__).parents[2]
NO_DRIVER = not Path("/proc/driver/nvidia/version").exists()


def run_tests(
    folder: Path, source: str, *, fakes: tuple[str, ...] = (), present: str = ""
) -> tuple[list[Event], str | None, str]:
    """Run a file of tests with the hooks over simulated libraries; return events, the test under way, the output."""
    path, events = folder / "test_made_up.py", folder / "events"
    path.write_text("import pytest\n\nneeds = pytest.mark.needs\n" + textwrap.dedent(source))
    variables = {**os.environ, **gpu_fakes.environment(*fakes), "MILNCE_GPU_RESULTS": str(events)}
    command: list[str | Path] = [sys.executable, "-m", "pytest"]
    command += ["-c", os.devnull, "--rootdir", folder, "-p", "helpers.gpu_plugin", path]
    found = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--strict-markers"],
        env={**variables, "MILNCE_GPU_PRESENT": present},
        capture_output=True,
        text=True,
        check=False,
    )
    return *read_events(events), found.stdout + found.stderr


def outcomes(events: list[Event]) -> dict[str, str]:
    return {event["check"].partition("::")[2]: event["outcome"] for event in events}


TESTS = """
    @needs("onnxruntime")
    def test_good(): pass

    def test_bad(): assert 1 == 2

    @needs("onnxruntime")
    def test_evasive(): pytest.skip("not today")

    @needs("torch")
    def test_absent(): pass

    @needs("onnxruntime", "torch")
    def test_half_absent(): pass
"""


def test_a_skip_of_what_is_there_is_a_failure(tmp_path: Path) -> None:
    events, _, _ = run_tests(tmp_path, TESTS, fakes=("onnxruntime",), present="cuda,onnxruntime")
    assert outcomes(events) == {
        "test_good": PASSED,
        "test_bad": FAILED,
        "test_evasive": FAILED,
        "test_absent": ABSENT,
        "test_half_absent": ABSENT,
    }
    details = {event["check"].partition("::")[2]: event for event in events}
    assert details["test_evasive"]["detail"] == "skipped although cuda, onnxruntime are here: not today"
    assert details["test_absent"]["detail"].startswith("torch: ")
    assert details["test_half_absent"]["data"]["needs"] == ["cuda", "onnxruntime", "torch"]
    assert details["test_bad"]["detail"].startswith("assert 1 == 2 (")
    assert "test_made_up.py:" in details["test_bad"]["detail"]
    assert "def test_bad(): assert 1 == 2" in details["test_bad"]["data"]["text"]


def test_what_was_promised_and_is_not_found_is_a_failure(tmp_path: Path) -> None:
    events, _, _ = run_tests(tmp_path, TESTS, present="cuda,torch")
    assert outcomes(events)["test_absent"] == FAILED


def test_by_itself_a_skip_is_a_skip(tmp_path: Path) -> None:
    events, _, output = run_tests(tmp_path, TESTS, fakes=("onnxruntime",))
    assert outcomes(events)["test_evasive"] == ABSENT
    assert "1 failed, 1 passed, 3 skipped" in output


@pytest.mark.parametrize(("present", "outcome"), [("cuda", FAILED), ("", None)])
def test_a_whole_file_is_not_skipped_unseen(tmp_path: Path, present: str, outcome: str | None) -> None:
    events, _, _ = run_tests(tmp_path, 'pytest.importorskip("nothing_of_this_name")', present=present)
    assert [event["outcome"] for event in events] == ([outcome] if outcome else [])
    if outcome:
        assert "a whole file is skipped" in events[0]["detail"]


def test_a_file_that_does_not_import_is_a_failure(tmp_path: Path) -> None:
    (event,), _, _ = run_tests(tmp_path, "1 / 0", present="cuda")
    assert event["outcome"] == FAILED
    assert "ZeroDivisionError" in event["detail"]


def test_the_test_that_ended_the_process_is_named(tmp_path: Path) -> None:
    source = """
        import os, signal
        def test_first(): pass
        def test_fatal(): os.kill(os.getpid(), signal.SIGKILL)
        def test_never(): pass
    """
    events, under_way, _ = run_tests(tmp_path, source, present="cuda")
    assert outcomes(events) == {"test_first": PASSED}
    assert under_way is not None
    assert under_way.endswith("::test_fatal")


def test_an_unknown_part_is_an_error(tmp_path: Path) -> None:
    events, _, output = run_tests(tmp_path, '@needs("tensorflow")\ndef test_it(): pass')
    assert events == []
    assert f"ERROR: test_made_up.py::test_it needs tensorflow; parts are {', '.join(PARTS)}" in output


@pytest.mark.skipif(not NO_DRIVER, reason="this machine has an NVIDIA driver")
def test_without_a_gpu_all_of_them_are_skipped_in_one_line() -> None:
    command: list[str | Path] = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", ROOT / "tests" / "gpu"]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("MILNCE_GPU")}
    found = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=variables)
    assert found.returncode == 0, found.stdout
    assert found.stdout.count("SKIPPED") == 1
    assert "no GPU to test on: " in found.stdout
    assert "failed" not in found.stdout
    assert len(found.stdout.splitlines()) < 10


def test_a_part_that_no_test_tested_is_a_failure(tmp_path: Path) -> None:
    record = Recorder(tmp_path / "events")
    record.add("test", "a", PASSED, needs=["cuda", "torch"])
    record.add("test", "b", FAILED, needs=["cuda", "cupy"])
    judge(Settings(str(tmp_path), present=("cuda", "torch", "cupy", "onnx")), record)
    judged = {event["check"]: event for event in read_events(record.path)[0] if event["kind"] == "tests"}
    assert {name: event["outcome"] for name, event in judged.items()} == {
        "tests of cuda": PASSED,
        "tests of torch": PASSED,
        "tests of cupy": FAILED,
    }
    assert judged["tests of cupy"]["detail"] == "cupy is here and no test of it passed"


def run_suite(folder: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> list[Event]:
    """Run the part of the check that runs the tests, over other tests, in a process that has no GPU."""
    tests = folder / "tests"
    tests.mkdir()
    (tests / "conftest.py").write_text(
        "from helpers import gpu_plugin\nglobals().update({n: getattr(gpu_plugin, n) for n in gpu_plugin.__all__})\n"
    )
    for name, source in files.items():
        (tests / f"{name}.py").write_text(source)
    site = f"import gpucheck.suite, pathlib\ngpucheck.suite.TESTS = pathlib.Path({str(tests)!r})\n"
    (folder / "sitecustomize.py").write_text(site)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    checks: list[Event] = run_part("tests", Settings(str(folder), present=("cuda",)), limit_s=120)["checks"]
    return checks


def test_the_tests_are_held_to_what_the_check_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test, judged = run_suite(tmp_path, monkeypatch, test_it="def test_it(): pass\n")
    assert test["outcome"] == FAILED
    assert test["detail"].startswith("skipped although cuda are here: no GPU to test on: ")
    assert (judged["check"], judged["outcome"]) == ("tests of cuda", FAILED)


def test_no_tests_at_all_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, judged = run_suite(tmp_path, monkeypatch)
    assert ended["detail"] == "pytest ended with code 5: see the log of this part"
    assert ended["outcome"] == ERROR
    assert judged["outcome"] == FAILED


def module(name: str, monkeypatch: pytest.MonkeyPatch, **contents: Any) -> None:  # noqa: ANN401
    made = ModuleType(name)
    vars(made).update(contents)
    monkeypatch.setitem(sys.modules, name, made)


def test_parts_are_found_by_what_they_can_do(monkeypatch: pytest.MonkeyPatch) -> None:
    module("tensorrt", monkeypatch, __version__="11.4", Runtime=object)
    module("tensorrt_lean", monkeypatch, __version__="11.4")
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    providers = ["CPUExecutionProvider"]
    module("onnxruntime", monkeypatch, __version__="1.31", get_available_providers=lambda: providers)
    cuda = SimpleNamespace(is_available=lambda: False)
    module("torch", monkeypatch, __version__="2.11", cuda=cuda, version=SimpleNamespace(cuda="13.0"))
    runtime = SimpleNamespace(getDeviceCount=lambda: 1 // 0)
    module("cupy", monkeypatch, __version__="14", cuda=SimpleNamespace(runtime=runtime))
    found = find_parts(PARTS)
    assert [name for name, part in found.items() if part.present] == ["tensorrt", "onnx"]
    assert found["tensorrt"].version == "11.4"
    problems = dict(sentence.split(": ", 1) for sentence in missing(found.values()))
    assert problems["tensorrt_lean"] == "installed, but has no Runtime: its libraries are missing"
    assert problems["tensorrt_rtx"] == 'not installed; pip install "milnce[rtx]"'
    assert problems["onnxruntime"].startswith("has the providers CPUExecutionProvider and not CUDAExecutionProvider; ")
    assert problems["torch"] == "built for CUDA 13.0 but finds no GPU it can use"
    assert problems["cupy"].startswith("installed but does not load: ZeroDivisionError: ")
    assert found["cupy"].version == "14"
    providers.append("CUDAExecutionProvider")
    cuda.is_available = lambda: True
    for problem in ("libcublas.so.13 cannot be loaded", None):  # built for CUDA is not yet able to run
        availability = SimpleNamespace(gpu_problem=problem)
        monkeypatch.setattr("helpers.gpu_parts.probe", lambda found=availability: found)
        assert find_parts(["onnxruntime"])["onnxruntime"].problem == problem
    assert find_parts(["torch"])["torch"].present


def test_the_gpu_is_a_part_and_its_absence_is_in_the_words_of_milnce(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda.install(monkeypatch)
    assert find_parts(["cuda"])["cuda"].present
    fake_cuda.install(monkeypatch, driver="no device")
    part = find_parts(["cuda"])["cuda"]
    assert part.problem is not None
    assert "GPU" in part.problem
