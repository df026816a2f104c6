"""`milnce build`, with the installed TensorRT-RTX, whose builder needs no GPU, and with a stand-in for TensorRT."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from helpers import fake_builder, fake_cuda, fake_tensorrt
from helpers.commands import command, environment
from helpers.fake_cuda import FakeGpu
from helpers.processes import heed_interrupts, wait_for
from helpers.rtx import require_rtx
from helpers.sidecars import names_in
from milnce.bundle import Bundle
from milnce.errors import PlanBuildError
from milnce.plans import find_plan, sidecars
from milnce_convert.plan_engine import build_engine

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.commands import Ran, Tiny
    from milnce.manifest import GraphFile

    Run = Callable[..., Ran]

SMALL = ("--batch", "1", "--text-batch", "1")


@pytest.fixture
def bundle(tiny: Tiny, tmp_path: Path) -> Path:
    """Return a copy of the tiny bundle."""
    return shutil.copytree(tiny.path, tmp_path / "tiny")


@pytest.fixture
def rtx() -> str:
    """Return the name and version of the installed TensorRT-RTX."""
    return f"tensorrt_rtx {require_rtx().__version__}"


def test_a_bundle_is_built_and_the_table_says_what_was_built(bundle: Path, run: Run, rtx: str) -> None:
    result = run("build", bundle, "--batch", "1,2:4", "--text-batch", "1,8")
    assert result.code == 0, result.stderr
    plans, problems = sidecars(bundle / "plans")
    assert problems == []
    assert len(plans) == 3
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0].startswith(f"{bundle}/plans: 3 plans, ")
    assert any(line.startswith("video uint8 fp16 1,2to4 x 4 x 32 x 32 x 3 1 convolution in float16") for line in lines)
    assert "2 matrix multiplications in float32" in lines
    assert any(line.startswith("text tokens fp16 1,8 x 16 1 matrix multiplication in float16") for line in lines)
    assert any(
        line.startswith("projection mixed_5c fp32 1,8 x 12 1 matrix multiplication in float32") for line in lines
    )
    talk = result.stderr.splitlines()
    assert talk[0].startswith(f"{rtx}: it builds ahead of time, and no GPU is used here: ")
    assert [line.split("s  ")[1] for line in talk[1:]] == [
        "video uint8 fp16 (video-uint8-fp16.onnx)",
        "text tokens fp16 (text-fp16.onnx)",
        "projection mixed_5c fp32 (projection-fp32.onnx)",
    ]


@pytest.mark.usefixtures("rtx")
def test_a_second_build_keeps_what_is_there_and_force_does_not(bundle: Path, run: Run) -> None:
    assert run("build", bundle, *SMALL).code == 0
    before = {plan.file: plan.date for plan in sidecars(bundle / "plans")[0]}
    kept = run("build", bundle, *SMALL)
    assert kept.stdout.count(" kept") == 3
    assert len(kept.stderr.splitlines()) == 1
    forced = run("build", bundle, *SMALL, "--force", "--json")
    assert [plan["kept"] for plan in json.loads(forced.stdout)["plans"]] == [False] * 3
    assert {plan.file for plan in sidecars(bundle / "plans")[0]} == set(before)


def test_json_is_the_sidecars(bundle: Path, run: Run, rtx: str) -> None:
    options = ("--module", "text", "--precision", "fp32", "--words", "1:20", "--compute-capability", "8.9", "--tf32")
    result = run(
        "build", bundle, *options, "--text-batch", "4", "--optimization-level", 0, "--workspace-mb", 64, "--json"
    )
    assert result.code == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["library"] == rtx
    assert document["folder"] == f"{bundle}/plans"
    (entry,) = document["plans"]
    assert entry.pop("kept") is False
    assert entry == json.loads((bundle / "plans" / f"{entry['file']}.json").read_text())
    assert entry["profiles"] == [{"tokens": {"min": [4, 1], "opt": [4, 16], "max": [4, 20]}}]
    assert entry["compute_capabilities"] == ["8.9"]
    assert {name: value for name, value in entry["options"]["settings"].items() if value} == {
        "workspace_bytes": 64_000_000,
        "tf32": True,
        "compute_capabilities": ["8.9"],
    } | {"hardware_compatibility": "none"}
    assert entry["options"]["settings"]["optimization_level"] == 0


@pytest.mark.usefixtures("rtx")
def test_every_size_and_form_can_be_asked_for(bundle: Path, run: Run) -> None:
    sizes = ("--batch", "1:2", "--frames", "4:8", "--size", "16:32,24x40")
    result = run("build", bundle, "--module", "video", "--input-form", "float32", *sizes, "--json")
    assert result.code == 0, result.stderr
    (entry,) = json.loads(result.stdout)["plans"]
    assert [profile["video"]["max"] for profile in entry["profiles"]] == [[2, 3, 8, 32, 32], [2, 3, 8, 24, 40]]
    assert entry["input_form"] == "float32"


@pytest.mark.usefixtures("rtx")
def test_plans_can_go_elsewhere(bundle: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "elsewhere"
    assert run("build", bundle, "--plans", folder, "--module", "projection", *SMALL).code == 0
    assert len(sidecars(folder)[0]) == 1
    assert not (bundle / "plans").exists()


@pytest.mark.usefixtures("rtx")
def test_one_plan_is_one_plan_and_a_range_is_said_to_be_smaller(bundle: Path, run: Run) -> None:
    assert run("build", bundle, "--module", "projection", *SMALL).stdout.startswith(f"{bundle}/plans: 1 plan, ")
    assert "A range makes a much smaller plan" in " ".join(run("build", "--help").stdout.replace("│", " ").split())


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (PlanBuildError, 1)])
@pytest.mark.usefixtures("rtx")
def test_a_build_that_stops_half_way_says_what_it_finished(
    stop: type[BaseException], code: int, bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop_at_text(toolkit: object, graph: GraphFile, *args: Any, **options: Any) -> Any:  # noqa: ANN401
        if graph.module == "text":
            raise stop
        return build_engine(toolkit, graph, *args, **options)  # type: ignore[arg-type]  # as it came

    monkeypatch.setattr("milnce_convert.plan.build_engine", stop_at_text)
    result = run("build", bundle, *SMALL)
    (kept,) = sidecars(bundle / "plans")[0]
    assert result.code == code
    assert f"Finished, and kept in {bundle}/plans: {kept.file}" in result.stderr


@pytest.mark.usefixtures("rtx")
def test_left_over_plans_of_other_versions_are_named(bundle: Path, run: Run) -> None:
    assert run("build", bundle, "--module", "projection", *SMALL).code == 0
    (plan,) = sidecars(bundle / "plans")[0]
    path = bundle / "plans" / plan.file
    old = path.with_name("old.plan")
    path.rename(old)
    path.with_name(f"{plan.file}.json").rename(f"{old}.json")
    changed = {**plan.to_json(), "file": "old.plan", "library_version": "1.0"}
    old.with_name("old.plan.json").write_text(json.dumps(changed))
    old.with_name("old.plan.cache").touch()
    result = run("build", bundle, "--module", "projection", *SMALL)
    assert result.stderr.splitlines()[-1] == (
        f"Plans of other graphs or versions are left in {bundle}/plans; delete them: "
        "old.plan, old.plan.cache, old.plan.json"
    )
    old.unlink()
    assert "left in" not in run("build", bundle, "--module", "projection", *SMALL).stderr


def test_on_a_gpu_tensorrt_builds_what_find_plan_finds(bundle: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = fake_cuda.install(monkeypatch, gpus=[FakeGpu(), FakeGpu(name="NVIDIA H200")])
    fake_builder.add(fake_tensorrt.install(monkeypatch, cuda, "tensorrt"), "11")
    result = run("build", bundle, "--gpu", 1, "--hardware-compatibility", "ampere-plus", "--version-compatible", *SMALL)
    assert result.code == 0, result.stderr
    assert result.stderr.splitlines()[0] == "tensorrt 11.1.0.1: it builds for NVIDIA H200, on it"
    from milnce.cuda import gpus  # noqa: PLC0415 - the simulated ones
    from milnce.plans import Library  # noqa: PLC0415 - as above

    graph = Bundle.open(bundle).graph("video", precision="fp16")
    found, _ = find_plan(bundle / "plans", graph, gpus()[0], [Library("tensorrt_lean", "11.4.1.0")])
    assert found.file.startswith("tensorrt-11.1.0.1_vc-sm80plus-fp16-video-uint8")
    assert [name for name in names_in(bundle / "plans") if name.startswith("timing-")]
    assert (
        run("build", bundle, "--gpu", 1, "--no-timing-cache", "--force", "--tactic-source", "JIT_CONVOLUTIONS").code
        == 0
    )


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--batch", "0"], 2, "--batch 0 given; sizes from 1 expected"),
        (["--size", "1x2x3"], 2, "--size 1x2x3 given; sizes from 1 expected"),
        (["--frames", "5"], 2, "frames 5 asked for; video uint8 fp16 (video-uint8-fp16.onnx) takes frames=4.. step 2"),
        (["--module", "audio"], 2, "module 'audio' given; there are: video, text, projection"),
        (["--precision", "int8"], 2, "precision 'int8' given; there are: fp32, fp16"),
        (["--input-form", "nv12"], 1, "has no graph video nv12 fp16; it has: "),
        (["--library", "tensorrt_lean"], 2, "library 'tensorrt_lean' given; those that build plans are tensorrt, tens"),
        (["--compute-capability", "9.0"], 2, "compute capability 9.0 given; tensorrt_rtx "),
        (["--version-compatible"], 2, "a version-compatible plan was asked for; tensorrt_rtx "),
    ],
)
@pytest.mark.usefixtures("rtx")
def test_what_cannot_be_built_is_one_message(options: list[str], code: int, said: str, bundle: Path, run: Run) -> None:
    result = run("build", bundle, *options)
    assert (result.code, result.stdout) == (code, "")
    error = result.stderr.splitlines()[-1]
    assert error.startswith("Error: ")
    assert said in error
    assert not (bundle / "plans").exists()
    document = json.loads(run("build", bundle, *options, "--json").stdout)
    assert said in document["error"]["message"]


def test_no_bundle_is_said_so(tmp_path: Path, run: Run) -> None:
    result = run("build", tmp_path)
    assert result.code == 1
    assert result.stderr.startswith("Error: no milnce bundle at ")


@pytest.mark.usefixtures("rtx")
def test_a_folder_of_others_is_refused(bundle: Path, run: Run) -> None:
    (bundle / "plans").mkdir()
    (bundle / "plans").chmod(0o777)
    result = run("build", bundle, *SMALL)
    assert result.code == 1
    assert "is writable for others (mode 0777)" in result.stderr


@pytest.mark.alone
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.usefixtures("rtx")
def test_a_stopped_build_leaves_nothing(number: signal.Signals, code: int, bundle: Path, tmp_path: Path) -> None:
    many = ",".join(map(str, range(1, 200)))  # a real build of a minute
    process = subprocess.Popen(
        command("build", bundle, "--module", "video", "--batch", many, "--plans", tmp_path / "plans"),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,  # noqa: PLW1509  the tests have one thread here
    )
    try:
        wait_for((tmp_path / "plans").exists, process)
        time.sleep(1)
        assert process.poll() is None, "the build was too short to be stopped in the middle"
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == code, stderr
    assert stdout == ""
    assert "Traceback" not in stderr
    assert not (tmp_path / "plans").exists()
    if number == signal.SIGINT:
        assert stderr.splitlines()[-1] == "Interrupted; nothing half-written is left."


@pytest.mark.usefixtures("rtx")
def test_building_needs_neither_torch_nor_onnx(bundle: Path) -> None:
    program = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'onnxruntime'): sys.modules[name] = None\n"
        f"sys.argv = ['milnce', 'build', {str(bundle)!r}, '--module', 'text', '--text-batch', '1']\n"
        "from milnce.cli import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert len(sidecars(bundle / "plans")[0]) == 1


@pytest.mark.usefixtures("rtx")
def test_tensorrts_log_is_quiet_unless_asked_for(bundle: Path, run_process: Run) -> None:
    quiet = run_process("build", bundle, "--module", "text", *SMALL)
    assert "Int64 binding" not in quiet.stderr
    loud = run_process("--debug", "build", bundle, "--module", "text", *SMALL, "--force")
    assert "WARNING:milnce.tensorrt:" in loud.stderr
    assert "DEBUG:milnce.tensorrt:" in loud.stderr
