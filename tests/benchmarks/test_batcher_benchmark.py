"""The batcher's benchmark: its figures add up, wrong answers get no speed, and its page says what was measured."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import batcher
import callers
import harness
import milnce
import report as reporting
from batcher import Load
from helpers.tiny_bundle import tiny_clips, write_tiny_bundle
from milnce.batcher import ClipEmbedding
from milnce.timing import Timing
from render import batcher as renderer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from milnce.embeddings import VideoEmbeddings


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return a report on a tiny model and a fast accelerator."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    write_tiny_bundle(path, words=("open", "the", "door"))
    with pytest.MonkeyPatch.context() as patch, milnce.load(path, backend="onnxruntime") as model:
        patch.setattr(batcher, "_BATCH_S", 1e-4)
        patch.setattr(batcher, "_CLIP_S", 1e-5)
        patch.setattr(batcher, "_SIMULATED_LOAD", Load(least=16, each=1, seconds=0.0))
        return batcher.measure(model, tiny_clips(8), [1, 16], seconds=0.0)


def test_the_report_is_whole_and_its_page_says_what_was_measured(report: dict[str, Any], tmp_path: Path) -> None:
    names = [row["name"] for row in report["rows"]]
    assert names == [
        "simulated, 1 callers",
        "simulated, 16 callers",
        "burst on a held accelerator",
        "model, 1 callers",
        "model, 16 callers",
        "model, 4x overload",
    ]
    assert all(row["failures"] == [] for row in report["rows"])
    assert all(row["parity"]["relative_error"] < 1e-4 for row in report["rows"])
    burst, overload = report["rows"][2], report["rows"][-1]
    assert (burst["refused"], burst["expected"], burst["answered"]) == (192, 192, 64)
    assert overload["answered"] + overload["refused"] == overload["sent"] == 192
    for row in (report["rows"][index] for index in (0, 1, 3, 4)):
        share = row["share"]
        assert 0 < share["minimum"] <= share["median"] <= share["maximum"]
        assert row["latency"]["p50_s"] <= row["latency"]["p95_s"] <= row["latency"]["p99_s"]
    assert len(report["targets"]) == 3
    assert report["targets"][2]["reached"]

    harness.write("batcher", report, results=tmp_path / "results")
    page = (tmp_path / "results" / "batcher.md").read_text("utf-8")
    assert "64 may wait: 192 are refused (192 have no room), 64 are answered" in page
    assert "| batcher, 16 callers of video |" in page
    assert "A CPU runs clips one by one" in page
    assert (tmp_path / "results" / "batcher.png").stat().st_size > 10_000
    assert json.loads((tmp_path / "results" / "batcher.json").read_text("utf-8"))["report"] == "batcher"
    assert reporting.renderer_of("batcher") is renderer


def test_full_batches_and_callers_have_as_many_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interleaved(actions: dict[str, Callable[[], object]], **_: object) -> tuple[dict[str, Timing], dict[str, str]]:
        for action in actions.values():
            action()
        return {"full 3": Timing((1.0, 2.0, 1.0)), "3": Timing((0.5, 0.5, 0.25))}, {}

    def encode(self: milnce.Model, clips: Any) -> VideoEmbeddings:  # noqa: ANN401 - encode_video's own
        encoded.append(len(clips))
        return right(self, clips)

    encoded: list[int] = []
    right = milnce.Model.encode_video
    monkeypatch.setattr(batcher, "interleaved", interleaved)
    monkeypatch.setattr(milnce.Model, "encode_video", encode)
    write_tiny_bundle(tmp_path / "tiny")
    with milnce.load(tmp_path / "tiny", backend="onnxruntime") as model:
        (row,) = batcher._rows("model", model, tiny_clips(8), [3], Load(least=12, each=2, seconds=0.0))  # noqa: SLF001
    assert encoded == [8, 12]  # what answers are compared with, and full batches
    assert row["clips"] == 12
    assert row["share"] == {"median": 4.0, "minimum": 2.0, "maximum": 4.0}
    assert (row["full_per_s"], row["clips_per_s"]) == (12.0, 24.0)
    assert row["mean_batch_size"] == 1.0


def test_wrong_answers_get_no_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    right = milnce.Batcher.encode_video

    def wrong(self: milnce.Batcher, clip: Any) -> ClipEmbedding:  # noqa: ANN401 - encode_video's own
        found = right(self, clip)
        return ClipEmbedding(found.embedding + np.float32(0.1), found.mixed_5c)

    monkeypatch.setattr(milnce.Batcher, "encode_video", wrong)
    with milnce.load(tmp_path / "tiny", backend="onnxruntime") as model:
        rows = batcher._rows("model", model, tiny_clips(8), [2], Load(4, 2, 0.0))  # noqa: SLF001
    assert rows[0]["failures"]
    assert "clips_per_s" not in rows[0]
    assert rows[0]["failures"][0] in "".join(renderer._row(rows[0]))  # noqa: SLF001
    burst = {"subject": "burst", "refused": 3, "expected": 4}
    assert [target["reached"] for target in batcher._targets([*rows, burst])] == [False] * 3  # noqa: SLF001


def test_callers_get_every_clip_answered(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    with milnce.load(tmp_path / "tiny", backend="onnxruntime") as model, milnce.Batcher(model) as shared:
        clips = tiny_clips(3)
        run = callers.closed_loop(shared, list(clips), callers=4, each=5)
        assert sorted(index for index, _ in run.answers) == sorted(number % 3 for number in range(20))
        assert len(run.latencies_s) == 20
        open_run = callers.open_loop(shared, list(clips), rate_per_s=1e6, requests=30)
        assert len(open_run.answers) + open_run.refused == 30
