"""The plain loop against the pipeline, what bounds it, memory of processes, and the report as a whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import harness
import long_videos
import milnce
import overlap
import pipeline
from helpers.processes import eventually
from helpers.videos import make_video
from milnce.bundle import Bundle
from milnce.timing import Timing
from milnce.video import iter_windows
from milnce.video.presets import get_preset
from milnce_convert.from_bundle import rebuild_video_tower
from milnce_convert.parity import FP32_GATE
from plain_loop import clips_of
from render import pipeline as page

if TYPE_CHECKING:
    from milnce.video import Preset

DEMO = Path(__file__).parents[2] / "engines" / "demo"


def sliding(**changes: Any) -> Preset:  # noqa: ANN401 - fields of Preset
    return get_preset("sliding", **{"frames": 8, "size": 32, "stride_frames": 8, **changes})


@pytest.mark.parametrize(
    "recipe",
    [
        {"frames": 75},  # 30 sampled frames: three windows and one more at the end
        {"frames": 80},  # 32: four windows exactly
        {"frames": 30, "fps": Fraction(5)},  # each frame is shown twice
        {"frames": 90, "fps": Fraction(30000, 1001)},
        {"frames": 60, "b_frames": 2},
    ],
    ids=["rest", "exact", "slow", "29.97", "b-frames"],
)
def test_the_lean_loop_takes_the_pipelines_very_frames(tmp_path: Path, recipe: dict[str, Any]) -> None:
    video = make_video(tmp_path / "video.mp4", **recipe)
    expected = np.stack([window.clip for window in iter_windows(video, sliding())])
    np.testing.assert_array_equal(clips_of(video, sliding(), lean=True), expected)


def test_the_plain_loop_takes_the_same_frames_and_other_pixels(tmp_path: Path) -> None:
    video = make_video(tmp_path / "video.mp4", frames=75)
    lean, plain = (clips_of(video, sliding(), lean=lean).astype(int) for lean in (True, False))
    assert plain.shape == lean.shape
    errors = np.abs(plain - lean).mean(axis=(2, 3, 4))
    assert errors.max() < 8
    # Another frame would be further away than Pillow's picture of the same one.
    assert np.abs(plain[:, 1:] - lean[:, :-1]).mean(axis=(2, 3, 4)).min() > errors.max()


def test_the_plain_loop_refuses_a_preset_without_a_grid(tmp_path: Path) -> None:
    video = make_video(tmp_path / "video.mp4", frames=20)
    with pytest.raises(ValueError, match="sliding windows at a frame rate expected"):
        clips_of(video, get_preset("tfhub-colab"))


def row(name: str, part: str, seconds: tuple[float, ...], cpu_s: list[float], **more: Any) -> dict[str, Any]:  # noqa: ANN401
    timing = Timing(seconds)
    clips = {"clips_per_s": 12 / timing.median_s, "timing": timing.to_json(), "cpu_s": cpu_s}
    return {"name": name, "part": part, "backend": "", "workers": None, "failures": [], **clips, **more}


def rows() -> list[dict[str, Any]]:
    ours: dict[str, Any] = {"backend": "openvino fp32", "gate": "fp32", "parity": {"centred_cosine": 0.999}}
    return [
        row("decode 1", "decode", (4.0, 8.0), [4.0, 4.0], workers=1),
        row("decode 2", "decode", (2.0, 4.0), [4.0, 4.4], workers=2),
        row("model", "model", (5.0, 6.0), [10.0, 10.0], **ours),
        row("none", "pipeline", (9.0, 14.0), [14.0, 14.0], **ours, workers=0),
        row("one", "pipeline", (7.0, 16.0), [14.0, 14.0], **ours, workers=1),
        row("two", "pipeline", (7.5, 9.0), [14.0, 14.0], **ours, workers=2),
        row("plain", "plain loop", (12.0, 18.0), [16.0, 16.0], **ours),
        row("lean", "lean loop", (9.0, 9.0), [14.0, 14.0], **ours),
    ]


def test_the_pipeline_is_held_against_the_larger_part_and_the_cores_round_by_round() -> None:
    found = rows()
    overlap.add_bounds(found, cores=2)
    none, one, two = found[3:6]
    assert one["parts"] == {"median": pytest.approx((7 / 5 + 16 / 8) / 2), "minimum": 1.4, "maximum": 2.0}
    assert two["parts"]["median"] == pytest.approx((7.5 / 5 + 9 / 6) / 2)
    assert none["parts"]["minimum"] == 14 / 8  # decoding here is held against one worker
    assert two["bound_s"] == pytest.approx((14.0 / 2 + 14.4 / 2) / 2)
    assert two["of_bound"]["maximum"] == 9.0 / 7.2
    assert two["gain"]["median"] == pytest.approx((12 / 7.5 + 2.0) / 2)
    assert two["lean_gain"]["maximum"] == 9.0 / 7.5
    assert two["bounded_by"] == "the cores"
    assert one["bounded_by"] == "the cores"
    assert "parts" not in found[0]
    assert "parts" not in found[6]


@pytest.mark.parametrize(
    ("decode_s", "model_s", "by"), [(9.0, 5.0, "decoding"), (5.0, 9.0, "the model"), (5.0, 5.0, "the cores")]
)
def test_what_bounds_is_the_largest(decode_s: float, model_s: float, by: str) -> None:
    found = [
        row("d", "decode", (decode_s,), [6.0], workers=1),
        row("m", "model", (model_s,), [8.0], backend="b"),
        row("p", "pipeline", (10.0,), [14.0], backend="b", workers=1),
    ]
    overlap.add_bounds(found, cores=2)
    assert found[2]["bounded_by"] == by


def test_targets_are_those_of_the_fastest_exact_row() -> None:
    found = rows()
    overlap.add_bounds(found, cores=2)
    found.append({**found[5], "name": "faster, not exact", "gate": "bf16", "timing": Timing((1.0,)).to_json()})
    parts, gain = overlap.targets(found)
    assert "(two)" in parts.name
    assert (parts.wanted, parts.better, parts.measured) == (1.1, "lower", found[5]["parts"]["median"])
    assert (gain.wanted, gain.better, gain.measured) == (1.6, "higher", found[5]["gain"]["median"])
    assert not parts.reached
    assert gain.reached
    assert "their CPU time over the cores is 7.10 s" in parts.bound
    assert "bounded most of all by the cores" in parts.bound
    assert [target.measured for target in overlap.targets([])] == [None, None]


def test_the_memory_target_counts_the_processes_that_decode() -> None:
    kinds = {
        kind: {"windows": 9, "peak_mib": 1.0, "tree_peak_mib": mib} for kind, mib in (("short", 200), ("long", 290))
    }
    target = overlap.memory_target({**kinds, "features_mib": 66.0})
    assert (target.measured, target.better, target.reached) == (90, "lower", True)
    assert "features of 9 windows are held until they are written: 66 MiB" in target.bound


def test_a_looped_video_lasts_as_long_as_asked(tmp_path: Path) -> None:
    source, looped = tmp_path / "source.mp4", tmp_path / "looped.mp4"
    long_videos.draw(source, seconds=2, fps=Fraction(5, 2))
    long_videos.loop(source, looped, seconds=7)
    preset = sliding(fps=2.5, frames=4, stride_frames=4)
    ends = [window.end_s for window in iter_windows(looped, preset)]
    assert ends == pytest.approx([1.6, 3.2, 4.8, 6.4, 8.0])


def test_memory_of_a_process_and_its_children_is_summed() -> None:
    held = 48 << 20
    child = f"import sys; x = bytearray(b'1') * {held}; print('ready', flush=True); sys.stdin.read()"
    parent = (
        "import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', sys.argv[1]], stdin=subprocess.PIPE); "
        "sys.stdin.read(); p.stdin.close(); p.wait()"
    )
    command = [sys.executable, "-c", parent, child]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        watch = long_videos.MemoryWatch(process.pid)
        seen = long_videos.tree_bytes(process.pid)
        eventually(lambda: watch.peak_bytes > held)
        process.communicate()
    assert held < seen < 3 * held
    assert watch.stop() * 2**20 > held
    assert long_videos.tree_bytes(process.pid) == 0


@pytest.fixture(scope="module")
def tower() -> torch.nn.Module:
    return rebuild_video_tower(Bundle.open(DEMO))


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("videos")
    return [make_video(folder / f"{frames}.mp4", frames=frames) for frames in (60, 100)]


@pytest.fixture(scope="module")
def report(tower: torch.nn.Module, videos: list[Path]) -> dict[str, Any]:
    """Return a report on the demo bundle as it is read back from JSON."""
    found = pipeline.measure(DEMO, videos, sliding(frames=16, size=64), rounds=1, tower=tower)
    loaded: dict[str, Any] = json.loads(json.dumps(harness.plain(found), allow_nan=False))
    return loaded


def test_every_way_gives_the_same_features_and_has_its_speed(report: dict[str, Any]) -> None:
    assert report["settings"]["clips"] == 2 + 4
    assert not [row["name"] for row in report["rows"] if row.get("failures")]
    parts = {row["part"] for row in report["rows"]}
    assert parts == {"decode", "model", "pipeline", "plain loop", "lean loop"}
    exact = [row for row in report["rows"] if row["backend"] == "openvino fp32" and row["part"] != "plain loop"]
    assert len(exact) >= 5
    assert all(row["gate"] == "fp32" and row["clips_per_s"] > 0 for row in exact)
    assert all("parity" not in row for row in report["rows"] if row["part"] == "decode")
    bounded = [row for row in report["rows"] if row["part"] == "pipeline"]
    assert all(row["bound_s"] > 0 and row["gain"]["median"] > 0 for row in bounded)
    assert [target["wanted"] for target in report["targets"]] == [1.1, 1.6]


def test_cpu_time_of_the_processes_that_decode_is_counted(videos: list[Path]) -> None:
    before = os.times()
    with milnce.load(DEMO, modules=("video",)) as model:
        found = pipeline.Run("decode", "decode", "", 1, lambda: _zeros(model, videos), None)
        found()
    after = os.times()
    assert after.children_user + after.children_system > before.children_user + before.children_system
    assert found.cpu_s[0] > 0
    assert found.found is not None
    assert not found.found.any()


def _zeros(model: Any, videos: list[Path]) -> Any:  # noqa: ANN401
    return pipeline._embed(pipeline.Answering(model), videos, sliding(frames=16, size=64), 1)  # noqa: SLF001


def test_features_of_another_model_have_no_speed(tower: torch.nn.Module, videos: list[Path]) -> None:
    class Reversed(torch.nn.Module):
        def forward(self, video: torch.Tensor) -> dict[str, torch.Tensor]:
            found: dict[str, torch.Tensor] = tower(video.flip(2))
            return found

    exact = [("openvino", "fp32", FP32_GATE)]
    found = pipeline.measure(DEMO, videos[1:], sliding(frames=16, size=64), rounds=1, tower=Reversed(), backends=exact)
    models = [row for row in found["rows"] if row["part"] == "model" and row["gate"] == "fp32"]
    assert models
    assert all(row["failures"] and "timing" not in row for row in models)
    assert found["targets"][0]["measured"] is None
    assert "fails the fp32 gate" in page.markdown(found)


def test_the_page_and_the_picture(report: dict[str, Any], tmp_path: Path) -> None:
    kinds = {kind: {"windows": 9, "took_s": 3, "peak_mib": 100.4, "tree_peak_mib": 200.4} for kind in ("short", "long")}
    memory = {"files": 10, "minutes": [1, 60], "video": "drawn, 64x48", "clips": "tiny", "features_mib": 66.0, **kinds}
    text = page.markdown({**report, "memory": memory})
    assert "| openvino fp32: lean loop |" in text
    assert "Medians of 1 interleaved rounds" in text
    assert "| 10 of 60 min | 9 | 3 | 100 | 200 |" in text
    drawn = page.figure(report)
    assert drawn is not None
    drawn.savefig(tmp_path / "pipeline.png")
    assert len(drawn.axes[0].get_yticklabels()) == len(report["rows"])
    assert page.figure({**report, "rows": []}) is None
