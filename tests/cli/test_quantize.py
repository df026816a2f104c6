"""`milnce quantize`: one more precision, measured; nothing but the result on stdout, and nothing sent to anybody."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from helpers.commands import environment
from helpers.quantizing import add_int8_by_hand, require_nncf, write_videos
from milnce.bundle import Bundle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.commands import Ran, Tiny

    Run = Callable[..., Ran]

SMALL = ("--clips", "16", "--held-out", "8")
# Stands for the package that sends usage reports: whoever imports it leaves a trace.
_TELEMETRY = """
import os, pathlib
pathlib.Path(os.environ["TRACE"]).write_text("imported")
class Telemetry:
    def __init__(self, *_, **__): pass
    def __getattr__(self, _): return lambda *_, **__: None
"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with eight videos of moving shapes."""
    return write_videos(tmp_path_factory.mktemp("clips"))


def test_a_bundle_is_quantised_and_the_tables_say_how_well(tiny: Tiny, clips: Path, tmp_path: Path, run: Run) -> None:
    require_nncf()
    result = run("quantize", tiny.path, "--videos", clips, "--out", tmp_path / "int8", *SMALL)
    assert result.code == 0, result.stderr
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0].startswith(f"{tmp_path / 'int8'}: video-uint8-int8.onnx, ")
    assert "video-uint8-int8.onnx (with: FP32 graph, OpenVINO, CPU)" in lines
    assert "retrieval, held out R@1 FP32 R@1 INT8 R@5 FP32 R@5 INT8 queries" in lines
    assert "FP32 clips find their INT8 ones 100.0 100.0 100.0 100.0 8" in lines
    assert not any(line.startswith("video-uint8-fp32.onnx") for line in lines)
    assert "compare with FP32 on 8 other clips" in result.stderr
    shown = [" ".join(line.split()) for line in run("info", tmp_path / "int8").stdout.splitlines()]
    assert "INT8 clips find their FP32 ones 100.0 100.0 100.0 100.0 8" in shown
    assert any(line.startswith("quantized.calibration.videos ") for line in shown)
    searched = run("embed", clips, "-b", tmp_path / "int8", "--precision", "int8", "-o", tmp_path / "f.npz")
    assert searched.code == 0, searched.stderr
    assert "openvino on cpu in int8" in searched.stderr


def test_nothing_is_sent_and_stdout_has_one_document(tiny: Tiny, clips: Path, tmp_path: Path) -> None:
    require_nncf()
    packages, home, trace = tmp_path / "packages", tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    packages.mkdir()
    (packages / "openvino_telemetry.py").write_text(_TELEMETRY, "utf-8")
    changed = environment(HOME=str(home), TRACE=str(trace), CI="")
    changed["PYTHONPATH"] = f"{packages}:{changed['PYTHONPATH']}"
    command = [sys.executable, "-m", "milnce.cli", "quantize", tiny.path, "--videos", clips, "--json", *SMALL]
    done = subprocess.run(
        [*map(str, command), "--out", str(tmp_path / "int8")],
        env=changed,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["graph"]["precision"] == "int8"
    assert document["failed"] == []
    assert document["quantized"]["calibration"]["clips"] == 16
    assert "nncf" not in done.stderr.lower()
    assert not trace.exists()
    assert list(home.iterdir()) == []
    # The trace is there to be seen: whoever imports nncf as it comes leaves it.
    subprocess.run(
        [sys.executable, "-c", "import sys; sys.modules['torch'] = None; import nncf"],
        env=changed,
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert trace.exists()


def test_a_video_that_fails_is_named_and_the_bundle_is_made_of_the_others(
    tiny: Tiny, clips: Path, tmp_path: Path, run: Run
) -> None:
    require_nncf()
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    videos = ("--videos", clips, "--videos", tmp_path / "bad.mp4")
    result = run("quantize", tiny.path, *videos, "--out", tmp_path / "int8", "--json", *SMALL)
    assert result.code == 1
    assert "1 of 9 files failed." in result.stderr
    assert [item["path"] for item in json.loads(result.stdout)["failed"]] == [str(tmp_path / "bad.mp4")]
    Bundle.open(tmp_path / "int8").verify()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "--out is missing; name the bundle folder to make, or give --overwrite to replace BUNDLE"),
        (("--out", "x", "--clips", "7"), "--clips"),
        (("--out", "x", "--largest-fall", "101"), "--largest-fall"),
        (("--out", "x", "--preset", "fast"), "no preset 'fast'"),
        (("--out", "x", "--captions", "absent.csv"), "absent.csv"),
    ],
)
def test_wrong_arguments_are_named(
    tiny: Tiny,
    clips: Path,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    text: str,
) -> None:
    require_nncf()
    monkeypatch.chdir(tmp_path)
    result = run("quantize", tiny.path, "--videos", clips, *arguments)
    assert result.code == 2
    assert text in " ".join(result.stderr.split())
    assert list(tmp_path.iterdir()) == []


def test_no_videos_and_bundles_that_have_it_already_are_refused(
    tiny: Tiny, clips: Path, tmp_path: Path, run: Run
) -> None:
    require_nncf()
    (tmp_path / "empty").mkdir()
    result = run("quantize", tiny.path, "--videos", tmp_path / "empty", "--out", tmp_path / "int8")
    assert (result.code, "no videos in" in result.stderr) == (2, True)
    add_int8_by_hand(tiny.path, tmp_path / "both")
    result = run("quantize", tmp_path / "both", "--videos", clips, "--out", tmp_path / "int8")
    assert (result.code, "has an INT8 graph already" in result.stderr) == (2, True)
    assert not (tmp_path / "int8").exists()


def test_features_of_int8_and_fp32_are_kept_apart(tiny: Tiny, clips: Path, tmp_path: Path, run: Run) -> None:
    bundle = add_int8_by_hand(tiny.path, tmp_path / "both").path
    first = run("search", "open door", clips, "-b", bundle, "--precision", "int8", "--json")
    if "cannot be had here" in first.stderr:
        pytest.skip("OpenVINO has no INT8 on this CPU")
    assert first.code == 0, first.stderr
    second = run("search", "open door", clips, "-b", bundle, "--json")
    assert second.code == 0, second.stderr
    documents = [json.loads(result.stdout) for result in (first, second)]
    assert [document["model"]["precision"] for document in documents] == ["int8", "fp32"]
    scores = [sorted(item["score"] for item in document["queries"][0]["results"]) for document in documents]
    assert scores[0] != scores[1]  # an index that took the other's embeddings would give the same
