"""`milnce export` to Triton and DeepStream: from a bundle that is there, after an export, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from helpers.commands import environment
from helpers.deepstream_keys import INFER, PREPROCESS, read_key_file
from helpers.host_plans import add_plan
from helpers.tiny_bundle import write_tiny_bundle
from helpers.triton_proto import check_config, parse_config
from milnce.bundle import Bundle
from milnce.plans import PLANS_FOLDER

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.commands import Ran, Tiny

    Run = Callable[..., Ran]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Return a tiny bundle of this test's own."""
    write_tiny_bundle(tmp_path / "bundle")
    return tmp_path / "bundle"


def test_a_bundle_becomes_a_repository_and_a_configuration(tiny: Tiny, tmp_path: Path, run: Run) -> None:
    triton, deepstream = tmp_path / "triton", tmp_path / "ds"
    result = run("export", "--bundle", tiny.path, "--triton", triton, "--deepstream", deepstream, "--streams", 2)
    assert result.code == 0, result.stderr
    assert result.stderr == ""
    rate = "at 10 a second, every 0.2 s"
    assert result.stdout.splitlines() == [
        f"{triton}: milnce_video: video uint8 fp16 (video-uint8-fp16.onnx) on ONNX Runtime, batches up to 8",
        f"{triton}: milnce_text: text tokens fp16 (text-fp16.onnx) on ONNX Runtime, batches up to 64",
        f"{deepstream}: 2 x video float32 fp16 (video-float32-fp16.onnx): clips of 4 frames of 32x32 {rate}",
    ]
    for model in ("milnce_video", "milnce_text"):
        check_config(parse_config((triton / model / "config.pbtxt").read_text(encoding="ascii")), triton / model)
    assert read_key_file(deepstream / "config_infer.txt", INFER)["property"]["batch-size"] == "2"


def test_every_option_arrives(tiny: Tiny, tmp_path: Path, run: Run) -> None:
    result = run(
        *("export", "-b", tiny.path, "--precision", "fp32", "--json", "--max-batch", 5),
        *("--triton", tmp_path / "triton", "--deepstream", tmp_path / "ds", "--input-form", "float32"),
        *("--streams", 3, "--stream-size", 640, 480, "--stream-fps", 20),
    )
    document = json.loads(result.stdout)
    assert document["manifest"]["name"] == "tiny"
    video, text = document["triton"]["models"]
    assert (video["graph"], video["max_batch_size"], video["plans"]) == ("video-float32-fp32.onnx", 5, [])
    assert (text["graph"], text["passed_over"]) == ("text-fp32.onnx", [])
    assert document["deepstream"] == {
        "path": str(tmp_path / "ds"),
        "graph": "video-float32-fp32.onnx",
        "sizes": [4, 32, 32],
        "fps": 10.0,
        "stride_s": 0.2,
    }
    preprocess = read_key_file(tmp_path / "ds" / "config_preprocess.txt", PREPROCESS)
    assert preprocess["group-0"]["roi-params-src-2"] == "80;0;480;480"
    assert preprocess["user-configs"]["subsample"] == "1"


def test_the_bundles_own_plans_are_served_and_the_others_named(own: Path, tmp_path: Path, run: Run) -> None:
    plan = add_plan(own / PLANS_FOLDER, Bundle.open(own))
    stale = add_plan(own / PLANS_FOLDER, Bundle.open(own), onnx_sha256="0" * 64, compute_capabilities=("8.9",))
    result = run("export", "-b", own, "--triton", tmp_path / "triton")
    assert result.code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert "on TensorRT 11.4.0.106 plans for compute capability 9.0, batches up to 4" in lines[0]
    assert lines[1] == f"  passed over: {stale.file}: it was built from another video-uint8-fp16.onnx; build it again"
    assert "milnce_text: text tokens fp16" in lines[2]
    result = run("export", "-b", own, "--triton", tmp_path / "triton", "--overwrite", "--json")
    assert json.loads(result.stdout)["triton"]["models"][0]["plans"] == [plan.file]


def test_a_folder_of_plans_that_is_named_must_have_some(own: Path, tmp_path: Path, run: Run) -> None:
    add_plan(tmp_path / "plans", Bundle.open(own), library="tensorrt_rtx", library_version="1.7.1.116")
    result = run("export", "-b", own, "--triton", tmp_path / "triton", "--plans", tmp_path / "plans")
    assert result.code == 1
    assert "Triton's TensorRT backend does not run plans of tensorrt_rtx" in result.stderr
    assert not (tmp_path / "triton").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-b", "B"], "--bundle given, and nothing to write from it; add --triton DIR or --deepstream DIR"),
        (["-b", "B", "--triton", "T", "--seeded", "0"], "--bundle given with --seeded; a bundle that is there is not"),
        (
            ["-b", "B", "--triton", "T", "--weights", "w", "--vocab", "v", "--out", "o", "--width", "1"],
            "--bundle given with --out, --weights, --vocab, --width;",
        ),
        (["-b", "B", "--triton", "T", "--max-words", "3", "--stem", "folded"], "with --max-words, --stem;"),
        (["-b", "B", "--triton", "T", "--preset", "sliding"], "--bundle given with --preset;"),
        (["-b", "B", "--triton", "T", "--fixed-size", "4", "32", "32"], "--bundle given with --fixed-size;"),
        (
            ["-b", "B", "--triton", "T", "--precision", "fp16", "--precision", "fp32"],
            "--bundle given with --precision fp16, fp32; one is served, so give one",
        ),
        (
            ["-b", "B", "--triton", "T", "--input-form", "uint8", "--input-form", "float32"],
            "--bundle given with --input-form uint8, float32; one is served",
        ),
        (["-b", "B", "--deepstream", "D", "--plans", "P"], "--plans given without --triton, which takes it"),
        (["-b", "B", "--max-batch", "2"], "--max-batch given without --triton"),
        (
            ["-b", "B", "--triton", "T", "--streams", "2", "--stream-size", "2", "2", "--stream-fps", "3"],
            "--streams, --stream-size, --stream-fps given without --deepstream",
        ),
        (["-b", "B", "--triton", "T", "--deepstream", "T"], "name one folder, or one inside the other"),
        (["-b", "B", "--triton", "T", "--deepstream", "T/sub"], "name one folder, or one inside the other"),
        (["-b", "B", "--triton", "D/sub", "--deepstream", "D"], "name one folder, or one inside the other"),
        (
            ["--seeded", "0", "--out", "o", "--deepstream", "D", "--input-form", "uint8"],
            "--deepstream given with --input-form uint8; DeepStream takes the float32 graph",
        ),
        (["-b", "B", "--deepstream", "D", "--stream-fps", "0"], "streams: fps is 0.0; a number in (0, 1000]"),
        (["-b", "B", "--deepstream", "D", "--stream-size", "0", "9"], "streams: width is 0; at least 2 expected"),
        (["--seeded", "0", "--out", "o", "--deepstream", "D", "--stream-fps", "0"], "streams: fps is 0.0"),
        (["--seeded", "0"], "--out is missing; name the bundle folder to make"),
        (["-b", "B", "--triton", "T", "--precision", "bf16"], "precision 'bf16' given; graphs are fp32, fp16, int8"),
    ],
)
def test_combinations_without_a_meaning_are_named(
    tiny: Tiny, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("export", *(tiny.path if argument == "B" else argument for argument in arguments))
    assert result.code == 2, result.stderr
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_destination_is_looked_at_before_the_export(tmp_path: Path, run: Run) -> None:
    (tmp_path / "triton").mkdir()
    result = run("export", "--seeded", "0", "--out", tmp_path / "bundle", "--triton", tmp_path / "triton")
    assert result.code == 1
    assert "triton exists already" in result.stderr
    (tmp_path / "ds").mkdir()
    out = ("--out", tmp_path / "bundle")
    result = run("export", "--seeded", "0", *out, "--deepstream", tmp_path / "ds", "--overwrite")
    assert "ds exists and is no deepstream folder that milnce wrote" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ds", "triton"]


def test_a_missing_bundle_is_named(tmp_path: Path, run: Run) -> None:
    result = run("export", "-b", tmp_path / "none", "--triton", tmp_path / "triton")
    assert result.code == 1
    assert "no milnce bundle at" in result.stderr


def test_without_the_other_package_it_says_so(
    tiny: Tiny, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "milnce_convert" else find_spec(name))
    result = run("export", "-b", tiny.path, "--triton", tmp_path / "triton")
    assert result.code == 1
    assert "milnce_convert is missing, which writes --triton and --deepstream" in result.stderr


def test_a_bundle_that_is_there_needs_no_pytorch(tiny: Tiny, tmp_path: Path) -> None:
    """Run with torch and onnx made impossible to import: the repository needs neither."""
    program = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'onnxscript', 'onnxruntime'): sys.modules[name] = None\n"
        "from milnce.cli import main\n"
        "sys.exit(main())\n"
    )
    arguments = ["export", "-b", str(tiny.path), "--triton", str(tmp_path / "triton")]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "triton" / "milnce_video" / "1" / "model.onnx").is_file()


def test_after_an_export_the_hosts_get_the_new_bundle(exported: tuple[Path, Ran]) -> None:
    folder, done = exported
    assert done.code == 0, done.stderr
    assert f"{folder / 'bundle'}: 4 graphs" in done.stdout
    assert "parity with PyTorch" in done.stdout
    assert "milnce_video: video uint8 fp32 (video-uint8-fp32.onnx) on ONNX Runtime" in done.stdout
    assert "clips of 16 frames of 64x64" in done.stdout
    bundle = Bundle.open(folder / "bundle")
    # A graph whose sizes are fixed is taken as it is.
    assert (folder / "ds" / "milnce_video.onnx").read_bytes() == bundle.read(
        bundle.graph("video", input_form="float32")
    )
    config = parse_config((folder / "triton" / "milnce_video" / "config.pbtxt").read_text(encoding="ascii"))
    assert list(config.input[0].dims) == [16, 64, 64, 3]
