"""The commands: what they print, what they write, and how they fail."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import numpy as np
import pytest

import milnce
from helpers.videos import make_audio, make_video
from milnce.cli.common import clock, printable, size
from milnce.features import read_features
from milnce.video import iter_windows

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.commands import Ran, Tiny

    Run = Callable[..., Ran]


def test_no_command_shows_the_commands(run: Run) -> None:
    result = run()
    assert result.code == 2
    assert all(name in result.stdout + result.stderr for name in ("export", "info", "embed", "search", "doctor"))


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"milnce {milnce.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["export"], ["--weights", "--vocab", "--seeded", "machinery out", "--precision", "--stem", '"convert"']),
        (["info"], ["--verify", "--json"]),
        (["embed"], ["--out", "--preset", "--stride-frames", "--start-s", "--batch-size", "--overwrite"]),
        (["search"], ["--top", "--per-file", "--sheet"]),
        (["doctor"], ["--bundle", "--json"]),
    ],
)
def test_help_names_the_options(arguments: list[str], texts: list[str], run: Run) -> None:
    for flag in ("--help", "-h"):
        result = run(*arguments, flag)
        assert result.code == 0
        assert [text for text in texts if text not in result.stdout] == []


def test_info_shows_graphs_shapes_parity_and_origin(tiny: Tiny, run: Run) -> None:
    result = run("info", tiny.path)
    assert result.code == 0
    for text in (
        "files not verified (--verify)",
        tiny.weights.digest,
        "13 words, 16 a sentence",
        "preset milnce-native, size 32, frames 4",
        "takes video uint8 (batch=1.., frames=4.. step 2, height=16.. step 2, width=16.. step 2, 3)",
        "gives mixed_5c float32 (batch=1.., 12)",
        "video-uint8-fp16.onnx",
        "max difference",
        "0.0e+00",
        "tests",
    ):
        assert text in result.stdout


def test_parity_is_one_line_an_output_and_the_worst_of_the_blocks(tiny: Tiny, tmp_path: Path, run: Run) -> None:
    copy = shutil.copytree(tiny.path, tmp_path / "copy")
    manifest = json.loads((copy / "manifest.json").read_text(encoding="utf-8"))
    manifest["graphs"][0]["parity"] = {
        "gate": "fp32",
        "outputs": {"mixed_5c": {"3 clips": {"rows": 3, "cosine": 0.5, "relative_error": 0.25, "identical": False}}},
        "blocks": {
            "mixed_3b": {"rows": 3, "cosine": 0.75, "relative_error": 3e-6},
            "mixed_5c": {"rows": 3, "cosine": 0.625, "relative_error": 2e-6},
        },
    }
    (copy / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    lines = [" ".join(line.split()) for line in run("info", copy).stdout.splitlines()]
    assert "parity with PyTorch 1 - cosine relative error" in lines
    first = lines.index(manifest["graphs"][0]["file"])
    assert lines[first + 1 : first + 3] == [
        "mixed_5c, 3 clips 5.0e-01 2.5e-01",
        "worst of 2 blocks 3.8e-01 3.0e-06",
    ]


def test_info_as_json_is_the_manifest(tiny: Tiny, run: Run) -> None:
    result = run("info", tiny.path, "--json", "--verify")
    document = json.loads(result.stdout)
    assert document["manifest"] == json.loads((tiny.path / "manifest.json").read_text(encoding="utf-8"))
    assert document["verified"] is True


def test_info_verify_finds_a_changed_byte(tiny: Tiny, tmp_path: Path, run: Run) -> None:
    copy = shutil.copytree(tiny.path, tmp_path / "copy")
    graph = copy / "video-uint8-fp32.onnx"
    data = bytearray(graph.read_bytes())
    data[100] ^= 1
    graph.write_bytes(data)
    assert "all files verified" in run("info", tiny.path, "--verify").stdout
    result = run("info", copy, "--verify")
    assert result.code == 1
    assert "video-uint8-fp32.onnx was changed or damaged" in result.stderr
    assert run("info", copy).code == 0


@pytest.mark.parametrize("name", ["f.npz", "f.parquet"])
def test_embed_writes_what_the_model_says(name: str, tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / name
    result = run("embed", "--bundle", tiny.path, "--out", out, "--backend", "onnxruntime", videos)
    assert result.code == 0
    assert f"{out}: 30 windows of 3 files" in result.stdout
    preset = milnce.get_preset("milnce-native", frames=4, size=32)
    assert f"preset {preset}" in result.stdout
    assert "onnxruntime on cpu in fp32" in result.stderr
    features = read_features(out)
    windows = [(path, window) for path in sorted(videos.iterdir()) for window in iter_windows(path, preset)]
    assert features.path == tuple(str(path) for path, _ in windows)
    np.testing.assert_allclose(features.start_s, [window.start_s for _, window in windows])
    np.testing.assert_allclose(features.end_s, [window.end_s for _, window in windows])
    embedding, mixed_5c = tiny.weights.video(np.stack([window.clip for _, window in windows]))
    np.testing.assert_allclose(features.embedding, embedding, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(features.mixed_5c, mixed_5c, rtol=1e-4, atol=1e-3)
    metadata = features.metadata
    assert metadata.model_digest == tiny.weights.digest
    assert (metadata.preset_name, metadata.preset_digest) == (preset.name, preset.digest)
    assert (metadata.backend, metadata.precision) == ("onnxruntime cpu", "fp32")
    assert metadata.milnce_version == milnce.__version__


def test_embed_takes_presets_strides_and_times(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "f.npz"
    options = ["--preset", "sliding", "--stride-frames", "4", "--start-s", "0.5", "--end-s", "2", "--json"]
    result = run("embed", "-b", tiny.path, "-o", out, videos / "c.mp4", *options)
    assert result.code == 0
    document = json.loads(result.stdout)
    preset = milnce.get_preset("sliding", stride_frames=4)
    assert document["preset"] == {**preset.to_json(), "digest": preset.digest}
    features = read_features(out)
    assert document["windows"] == len(features.path)
    assert features.start_s[0] == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(np.diff(features.start_s), 0.4, atol=0.05)
    assert features.metadata.preset["stride_frames"] == 4
    assert (features.metadata.start_s, features.metadata.end_s) == (0.5, 2)


def test_embed_does_the_good_files_and_reports_the_others(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    out, sound, missing = tmp_path / "f.npz", make_audio(tmp_path / "sound.mp4"), tmp_path / "missing.mp4"
    result = run("embed", "--bundle", tiny.path, "--out", out, sound, videos / "a.mp4", missing, "--json")
    assert result.code == 1
    document = json.loads(result.stdout)
    assert document["files"] == [{"path": str(videos / "a.mp4"), "windows": 10}]
    assert [failure["path"] for failure in document["failed"]] == [str(sound), str(missing)]
    assert all(failure["type"] == "VideoError" and failure["error"] for failure in document["failed"])
    assert set(read_features(out).path) == {str(videos / "a.mp4")}
    assert result.stderr.count("Failed: ") == 2
    assert "2 of 3 files failed." in result.stderr


def test_embed_does_the_files_that_have_the_range(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    out, paths = tmp_path / "f.npz", [videos / "a.mp4", videos / "b.mkv", videos / "c.mp4"]
    result = run("embed", "--bundle", tiny.path, "--out", out, "--end-s", "1.5", *paths)
    assert result.code == 1
    assert "b.mkv: end_s=1.5 is beyond the end" in result.stderr
    assert set(read_features(out).path) == {str(paths[0]), str(paths[2])}


def test_embed_writes_nothing_when_every_file_fails(tiny: Tiny, tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty.mp4").touch()
    result = run("embed", "--bundle", tiny.path, "--out", tmp_path / "f.npz", tmp_path / "empty.mp4")
    assert result.code == 1
    assert "f.npz: not written, since no file could be embedded" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["empty.mp4"]


def test_embed_refuses_outputs_before_any_work(tiny: Tiny, tmp_path: Path, run: Run) -> None:
    # The bundle does not exist either: what is wrong with the output is found first.
    (tmp_path / "there.npz").write_bytes(b"old")
    cases = {
        "f.csv": "suffix '.csv' given; .npz or .parquet expected",
        "there.npz": "exists already; pass --overwrite",
        "missing/f.npz": "no such folder; make it first",
    }
    for name, message in cases.items():
        result = run("embed", "--bundle", tmp_path / "no-bundle", "--out", tmp_path / name, "a.mp4")
        assert result.code == 1
        assert message in result.stderr
        assert result.stdout == ""
    assert (tmp_path / "there.npz").read_bytes() == b"old"
    make_video(tmp_path / "a.mp4", frames=10)
    result = run("embed", "--bundle", tiny.path, "--out", tmp_path / "there.npz", tmp_path / "a.mp4", "--overwrite")
    assert result.code == 0
    assert len(read_features(tmp_path / "there.npz").path) == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{empty}"], "no videos in"),
        (["{videos}", "--preset", "fast"], "no preset 'fast'; there are milnce-eval"),
        (
            ["{videos}", "--preset", "tfhub-colab", "--stride-frames", "4"],
            "fps=None (frames as they come) needs windows=1",
        ),
        (["{videos}", "--start-s", "3", "--end-s", "1"], "start 3.0 s and end 1.0 s given; 0 <= start < end expected"),
        (["{videos}", "--batch-size", "0"], "--batch-size"),
        (["{videos}", "--batch-size", "1000000000000"], "batch_size is 1000000000000, too large"),
        (["{videos}", "--frobnicate"], "--frobnicate"),
        ([], "PATHS"),
    ],
)
def test_wrong_arguments_exit_with_2(
    arguments: list[str], message: str, tiny: Tiny, videos: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "empty").mkdir()
    places = [argument.format(empty=tmp_path / "empty", videos=videos) for argument in arguments]
    result = run("embed", "--bundle", tiny.path, "--out", tmp_path / "f.npz", *places)
    assert result.code == 2
    assert message in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_an_unknown_backend_says_what_there_is(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    result = run("embed", "--bundle", tiny.path, "--out", tmp_path / "f.npz", videos, "--backend", "caffe", "--json")
    assert result.code in (1, 2)
    assert "caffe" in result.stderr
    assert "onnxruntime" in result.stderr
    assert "caffe" in json.loads(result.stdout)["error"]["message"]


def test_times_sizes_and_names_as_people_read_them() -> None:
    assert [clock(seconds) for seconds in (0, 3.24, 59.96, 61.5, 3599.96, 3723.4)] == [
        "0:00.0",
        "0:03.2",
        "1:00.0",
        "1:01.5",
        "1:00:00.0",
        "1:02:03.4",
    ]
    assert [size(count) for count in (12, 1500, 2_500_000, 3 * 10**9)] == ["12 B", "1.5 kB", "2.5 MB", "3.0 GB"]
    assert printable("é\x07\n\udcff") == "é\\x07\\n\\udcff"
