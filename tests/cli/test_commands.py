"""The commands: what they print, what they write, and how they fail."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import milnce
from helpers.tiny_bundle import write_tiny_bundle
from helpers.videos import make_audio, make_video
from milnce.backends import Availability
from milnce.cli import doctor
from milnce.cli.common import clock, printable, size
from milnce.features import read_features
from milnce.video import iter_windows, read_frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.commands import Ran, Tiny
    from milnce.model import Model

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
        (["export"], ["--weights", "--vocab", "--seeded", "They retrieve", "--precision", "--stem", '"convert"']),
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
    assert "preset milnce-native (4 frames, 10 fps, 10 windows, 32 px)" in result.stdout
    assert "onnxruntime on cpu in fp32" in result.stderr
    features = read_features(out)
    preset = milnce.get_preset("milnce-native", frames=4, size=32)
    windows = [(path, window) for path in sorted(videos.iterdir()) for window in iter_windows(path, preset)]
    assert features.path == tuple(str(path) for path, _ in windows)
    np.testing.assert_allclose(features.start_s, [window.start_s for _, window in windows])
    np.testing.assert_allclose(features.end_s, [window.end_s for _, window in windows])
    embedding, mixed_5c = tiny.weights.video(np.stack([window.clip for _, window in windows]))
    np.testing.assert_allclose(features.embedding, embedding, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(features.mixed_5c, mixed_5c, rtol=1e-4, atol=1e-3)
    metadata = features.metadata
    assert metadata.model_digest == tiny.weights.digest
    assert (metadata.preset_name, metadata.preset_digest) == ("milnce-native", preset.digest)
    assert (metadata.backend, metadata.precision) == ("onnxruntime cpu", "fp32")
    assert metadata.milnce_version == milnce.__version__


def test_embed_takes_presets_strides_and_times(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "f.npz"
    options = ["--preset", "sliding", "--stride-frames", "4", "--start-s", "0.5", "--end-s", "2", "--json"]
    result = run("embed", "-b", tiny.path, "-o", out, videos / "c.mp4", *options)
    assert result.code == 0
    document = json.loads(result.stdout)
    assert (document["preset"]["name"], document["preset"]["stride_frames"]) == ("sliding", 4)
    features = read_features(out)
    assert document["windows"] == len(features.path)
    assert features.start_s[0] == pytest.approx(0.5, abs=0.05)
    np.testing.assert_allclose(np.diff(features.start_s), 0.4, atol=0.05)
    assert features.metadata.preset["stride_frames"] == 4


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


def scores(model: Model, query: str, videos: Path) -> list[tuple[float, str, float]]:
    """Return score, file and start of every window, best first, by plain NumPy."""
    text = model.encode_text(query)[0]
    preset = milnce.get_preset("milnce-native", frames=4, size=32)
    return sorted(
        (
            (float(model.encode_video(window.clip[None]).embedding[0] @ text), str(path), window.start_s)
            for path in sorted(videos.iterdir())
            for window in iter_windows(path, preset)
        ),
        reverse=True,
    )


def test_search_ranks_windows_best_first(tiny: Tiny, model: Model, videos: Path, run: Run) -> None:
    query = "someone cutting a tomato"
    result = run("search", "--bundle", tiny.path, query, videos, "--top", 7, "--json", "--backend", "onnxruntime")
    assert result.code == 0
    document = json.loads(result.stdout)
    best = scores(model, query, videos)[:7]
    assert [found["rank"] for found in document["results"]] == list(range(1, 8))
    assert [found["score"] for found in document["results"]] == pytest.approx([score for score, _, _ in best], rel=1e-4)
    assert [(found["path"], found["start_s"]) for found in document["results"]] == [
        (path, start_s) for _, path, start_s in best
    ]
    assert document["windows"] == 30
    assert document["unknown_words"] == []
    assert document["failed"] == []


def test_search_prints_rank_score_bar_time_and_file(tiny: Tiny, videos: Path, run: Run) -> None:
    result = run("search", "--bundle", tiny.path, "open the door", videos, "--top", 30)
    assert result.code == 0
    lines = [line.split() for line in result.stdout.splitlines() if ".m" in line]
    assert [line[0] for line in lines] == [str(rank) for rank in range(1, 31)]
    assert lines[0][2] == "█" * 12
    # The worst of all windows has an empty bar, and so one word less.
    assert (len(lines[0]), len(lines[-1])) == (7, 6)
    assert lines[0][3].count(":") == 1
    assert {Path(line[-1]).name for line in lines} == {"a.mp4", "b.mkv", "c.mp4"}


def test_search_per_file_keeps_the_best_window_of_each(tiny: Tiny, model: Model, videos: Path, run: Run) -> None:
    result = run("search", "--bundle", tiny.path, "pour water", videos, "--per-file", "--json")
    found = [(item["path"], item["start_s"]) for item in json.loads(result.stdout)["results"]]
    expected: dict[str, float] = {}
    for _, path, start_s in scores(model, "pour water", videos):
        expected.setdefault(path, start_s)
    assert found == list(expected.items())


def test_search_names_the_words_it_ignores(tiny: Tiny, videos: Path, run: Run) -> None:
    result = run("search", "--bundle", tiny.path, "cut the zucchini, quickly", videos)
    assert result.code == 0
    assert "Not in the vocabulary, ignored: zucchini, quickly\n" in result.stderr
    assert "Warning" not in result.stderr
    result = run("search", "--bundle", tiny.path, "zucchini", videos, "--json")
    assert result.code == 0
    assert json.loads(result.stdout)["unknown_words"] == ["zucchini"]
    assert "Warning: no word of 'zucchini' is in the vocabulary" in result.stderr


@pytest.mark.parametrize("name", ["f.npz", "f.parquet"])
def test_search_in_features_gives_what_the_videos_give(
    name: str, tiny: Tiny, videos: Path, tmp_path: Path, run: Run
) -> None:
    assert run("embed", "--bundle", tiny.path, "--out", tmp_path / name, videos).code == 0
    asked = ["search", "--bundle", tiny.path, "run", "--json", "--top", 12]
    from_features = json.loads(run(*asked, tmp_path / name).stdout)
    from_videos = json.loads(run(*asked, videos).stdout)
    assert from_features["results"] == from_videos["results"]
    assert from_features["preset"] is None
    both = json.loads(run(*asked, tmp_path / name, videos / "a.mp4").stdout)
    assert both["windows"] == 40


def test_search_refuses_features_of_another_model(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    other = write_tiny_bundle(tmp_path / "other", seed=1)
    assert run("embed", "--bundle", tmp_path / "other", "--out", tmp_path / "f.npz", videos / "a.mp4").code == 0
    result = run("search", "--bundle", tiny.path, "run", tmp_path / "f.npz")
    assert result.code == 2
    assert f"made with the model {other.digest[:12]}..." in result.stderr
    assert "Embed the videos again with this bundle" in result.stderr


def test_search_says_when_presets_differ(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    assert run("embed", "--bundle", tiny.path, "--out", tmp_path / "f.npz", videos / "a.mp4").code == 0
    asked = ["search", "--bundle", tiny.path, "run", tmp_path / "f.npz", videos / "a.mp4"]
    assert "different presets" not in run(*asked).stderr
    assert "the windows come from different presets" in run(*asked, "--preset", "milnce-eval").stderr


def test_search_draws_a_sheet_of_the_middle_frames(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    sheet = tmp_path / "sheet.png"
    result = run("search", "--bundle", tiny.path, "run", videos, "--top", 3, "--sheet", sheet, "--json")
    assert result.code == 0
    document = json.loads(result.stdout)
    assert document["sheet"] == str(sheet)
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB"), np.int16)
    for number, found in enumerate(document["results"]):
        frame = read_frame(Path(found["path"]), (found["start_s"] + found["end_s"]) / 2)
        centre_x = 20 + number * 372 + 176
        rows = np.flatnonzero(np.abs(pixels[:, centre_x] - 255).max(axis=-1) > 3)
        assert len(rows) > 0
        expected = frame[frame.shape[0] // 2, frame.shape[1] // 2].astype(int)
        tile = pixels[:, 20 + number * 372 : 20 + number * 372 + 352].reshape(-1, 3)
        near = (np.abs(tile - expected).max(axis=-1) < 40).sum()
        assert near > 500, f"the middle frame's colour {expected} is not in tile {number + 1}"


def test_search_leaves_a_tile_empty_when_its_video_is_gone(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    video = tmp_path / "gone.mp4"
    shutil.copy(videos / "a.mp4", video)
    assert run("embed", "--bundle", tiny.path, "--out", tmp_path / "f.npz", video).code == 0
    video.unlink()
    result = run("search", "--bundle", tiny.path, "run", tmp_path / "f.npz", "--sheet", tmp_path / "s.png", "--top", 1)
    assert result.code == 1
    assert "No picture for rank 1" in result.stderr
    assert (tmp_path / "s.png").is_file()


def test_search_checks_the_sheet_before_any_work(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = ["search", "--bundle", tmp_path / "none", "run", "a.mp4", "--sheet"]
    result = run(*asked, tmp_path / "s.pdf")
    assert (result.code, "suffix '.pdf' given; one of .png" in result.stderr) == (1, True)
    monkeypatch.setitem(sys.modules, "PIL", None)
    result = run(*asked, tmp_path / "s.png")
    assert (result.code, 'pip install "milnce[video]"' in result.stderr) == (1, True)


def test_search_does_the_good_files_and_reports_the_others(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "empty.mp4").touch()
    result = run("search", "--bundle", tiny.path, "run", videos / "a.mp4", tmp_path / "empty.mp4", "--top", 1)
    assert result.code == 1
    assert "a.mp4" in result.stdout
    assert "1 of 2 files failed." in result.stderr
    result = run("search", "--bundle", tiny.path, "run", tmp_path / "empty.mp4", "--json")
    assert result.code == 1
    assert json.loads(result.stdout)["results"] == []


def test_search_refuses_an_empty_sentence(tiny: Tiny, videos: Path, run: Run) -> None:
    result = run("search", "--bundle", tiny.path, "  ", videos)
    assert (result.code, "the sentence is empty" in result.stderr) == (2, True)


def test_names_with_control_characters_do_not_reach_the_terminal(tiny: Tiny, tmp_path: Path, run: Run) -> None:
    video = make_video(tmp_path / "a\x1b[31m[red].mp4", frames=10)
    result = run("search", "--bundle", tiny.path, "run", video, "--top", 1)
    assert result.code == 0
    assert "\x1b" not in result.stdout
    assert "a\\x1b[31m[red].mp4" in result.stdout


def test_doctor_lists_backends_packages_and_the_processor(run: Run) -> None:
    result = run("doctor")
    assert result.code == 0
    for text in ("onnxruntime", "openvino", "CPU: ", "GPU: ", "FFmpeg", "pyarrow", "torch", "Python 3."):
        assert text in result.stdout


def test_doctor_runs_a_bundle(tiny: Tiny, tmp_path: Path, run: Run) -> None:
    result = run("doctor", "--bundle", tiny.path, "--json")
    assert result.code == 0
    document = json.loads(result.stdout)
    assert document["bundle"]["clip"] == [1, 4, 16, 16, 3]
    assert document["bundle"]["finite"] is True
    assert {item["name"] for item in document["backends"]} >= {"onnxruntime", "openvino"}
    result = run("doctor", "--bundle", tmp_path)
    assert (result.code, "milnce export" in result.stderr) == (1, True)


def test_doctor_without_a_backend_exits_with_1_and_says_what_to_install(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = Availability(
        name="onnxruntime", version=None, devices=(), precisions=(), problem='pip install "milnce[onnxruntime]"'
    )
    monkeypatch.setattr("milnce.backends.available", lambda: [absent])
    result = run("doctor")
    assert result.code == 1
    assert 'pip install "milnce[onnxruntime]"' in result.stdout
    assert "missing" in result.stdout


@pytest.mark.parametrize(
    ("version", "fixed"),
    [
        ("8.0.2", False),
        ("8.0.3", True),
        ("8.1.1", False),
        ("8.1.2", True),
        ("8.1", False),
        ("8.2.0", False),
        ("9.0", True),
        ("9.1.3", True),
        ("n9.0.1-3-gabc", True),
        ("7.1.5", False),
    ],
)
def test_doctor_knows_which_ffmpeg_has_the_fix(version: str, fixed: bool) -> None:
    note = doctor.ffmpeg_note(version)
    assert (note is None) == fixed
    if note is not None:
        assert "CVE-2026-8461" in note
        assert "leaves that decoder out" in note


def test_doctor_does_not_guess_at_an_unreadable_ffmpeg_version() -> None:
    note = doctor.ffmpeg_note("N-12345-gabcdef")
    assert note is not None
    assert "cannot be told" in note


def test_the_affected_decoder_is_not_on_the_allow_list(tmp_path: Path) -> None:
    # What `doctor` says about an old FFmpeg must be true.
    video = make_video(tmp_path / "magic.avi", codec="magicyuv", pix_fmt="gbrp", frames=4)
    with pytest.raises(milnce.errors.VideoError, match="magicyuv"):
        list(iter_windows(video, milnce.get_preset("milnce-eval")))


def test_doctor_says_how_to_get_a_missing_package(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    versions: dict[str, Any] = {"pillow": "12.0"}
    monkeypatch.setattr(doctor, "_version", versions.get)
    document = json.loads(run("doctor", "--json").stdout)
    problems = {item["name"]: item["problem"] for item in document["packages"]}
    assert problems["pillow"] is None
    assert problems["av"] == 'not installed; run: pip install "milnce[video]"'
    assert problems["pyarrow"] == 'not installed; run: pip install "milnce[parquet]"'
    assert problems["torch"] == 'not installed; run: pip install "milnce[convert]"'


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
