"""What the GPU check writes: events that survive anything, the page made of them, timings, and the rows of PyTorch."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from gpucheck import latency
from gpucheck.markdown import render
from gpucheck.record import ABSENT, ERROR, FAILED, LEFT_OUT, MEASURED, PASSED, Recorder, read_events
from gpucheck.report import Report
from gpucheck.settings import Settings
from gpucheck.torch_towers import torch_towers
from harness import plain
from milnce_convert.sample_inputs import moving_clips
from milnce_convert.torch_modes import EAGER, TorchVideo

if TYPE_CHECKING:
    from pathlib import Path


def test_settings_come_through_json() -> None:
    given = Settings(work="/w", bundles=("a", "b"), buckets=(1, 2), present=("cuda",), bucket_s=0.5)
    assert Settings.from_json(given.to_json()) == given


def test_events_are_read_back_and_the_one_under_way_is_named(tmp_path: Path) -> None:
    record = Recorder(tmp_path / "events")
    record.start("first")
    record.add("kind", "first", PASSED, value=np.float32(0.5), wrong=math.nan, path=tmp_path, shape=(1, 2))
    with record.guarded("kind", "second", bundle="b"):
        raise ValueError("on purpose")
    with record.guarded("kind", "third"):
        record.add("kind", "third", MEASURED)
    record.start("fourth")
    with record.path.open("a") as file:
        file.write('{"event": "end", "check": "fou')  # the process died while it wrote
    events, under_way = read_events(record.path)
    assert under_way == "fourth"
    assert [(event["check"], event["outcome"]) for event in events] == [
        ("first", PASSED),
        ("second", ERROR),
        ("third", MEASURED),
    ]
    assert events[0]["data"] == {"value": 0.5, "wrong": "nan", "path": str(tmp_path), "shape": [1, 2]}
    assert events[1]["detail"] == "ValueError: on purpose"
    assert events[1]["data"]["bundle"] == "b"
    assert "test_gpu_check_report.py" in events[1]["data"]["traceback"]
    assert read_events(tmp_path / "none") == ([], None)


def test_ctrl_c_is_not_swallowed(tmp_path: Path) -> None:
    record = Recorder(tmp_path / "events")
    with pytest.raises(KeyboardInterrupt), record.guarded("kind", "check"):
        raise KeyboardInterrupt
    assert read_events(record.path) == ([], "check")


def check(kind: str, name: str, outcome: str, detail: str = "", **data: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"kind": kind, "check": name, "outcome": outcome, "detail": detail, "data": data}


def speed(row: str, path: str, bucket: int, clips_per_s: float) -> dict[str, Any]:
    data: dict[str, Any] = {"bundle": "s3d", "row": row, "path": path, "bucket": bucket, "full": True}
    data |= {"median_s": bucket / clips_per_s, "p95_s": 2 * bucket / clips_per_s, "rounds": 7, "clips": bucket}
    data |= {"clips_per_s": clips_per_s, "parity": {"centred_cosine": 1 - 2e-5}}
    return check("latency", row, MEASURED, **data)


def parity_event(bucket: int, outcome: str = PASSED, detail: str = "", cosine: float | str = 0.9999) -> dict[str, Any]:
    figures = {"centred_cosine": cosine, "relative_error": 0.01, "spread_error": 0.02, "scale_error": 1e-3}
    data: dict[str, Any] = {"bundle": "s3d", "backend": "tensorrt", "precision": "fp16", "form": "uint8"}
    data["bucket"] = bucket
    return check("parity", f"batches of {bucket}", outcome, detail, **data, outputs={"video_embedding": figures})


GPU = {"compute_capability": [9, 0], "total_bytes": 141 << 30, "driver": "580.1", "driver_cuda": [13, 0]}


def document(*checks: dict[str, Any]) -> dict[str, Any]:
    host = {"commit": "abc", "command": "python gpu_check.py", "cpu": "a CPU", "cores": 16, "python": "3.12.3"}
    return {
        "gpu": "NVIDIA H200",
        "began": "2026-01-01T00:00:00+00:00",
        "host": host,
        "complete": True,
        "exit_code": 1,
        "counts": {PASSED: 2, FAILED: 1, ERROR: 0, MEASURED: 3, ABSENT: 4},
        "waiting": ["memory"],
        "parts": [{"name": "all", "outcome": FAILED, "detail": "", "seconds": 3.0, "checks": list(checks)}],
    }


def test_the_page_says_what_ran_where_and_what_failed() -> None:
    page = render(
        document(
            check(
                "gpu",
                "gpu",
                PASSED,
                compute_capability=[9, 0],
                total_bytes=141 << 30,
                driver="580.1",
                driver_cuda=[13, 0],
            ),
            check("versions", "versions", PASSED, packages={"torch": "2.11.0"}),
            check("cudnn", "cudnn", PASSED, version="9.15.0"),
            check("part", "torch", PASSED, version="2.11.0+cu130"),
            check("part", "tensorrt", ABSENT, "not installed; pip install x", version=None),
            parity_event(1),
            parity_event(8, FAILED, "video_embedding: cosine 0.5 | 0.998", cosine="nan"),
        )
    )
    for words in (
        "# GPU check: NVIDIA H200",
        "**2 checks passed, 1 failed, 0 ended with an error**; 3 figures were measured, 4 checks need what this host",
        "The run is complete, exit code 1.",
        "commit abc, `python gpu_check.py`",
        "NVIDIA H200, compute capability 9.0, 141.0 GiB; driver 580.1, which runs CUDA 13.0; cuDNN 9.15.0.",
        "a CPU, 16 cores; Python 3.12.3; torch 2.11.0.",
        "- all: batches of 8: video_embedding: cosine 0.5 | 0.998",
        "| torch | 2.11.0+cu130 | present |",
        "| tensorrt |  | absent: not installed; pip install x |",
        "| memory | not run yet | | |",
        "| s3d | tensorrt | fp16 | uint8 | 1, 8 | not a number | 1.0e-02 | 2.0e-02 | 1.0e-03 | 8 failed: video_",
        "embedding: cosine 0.5 \\| 0.998 |",
    ):
        assert words in page


def test_the_table_of_parity_shows_the_worst_bucket() -> None:
    worse = parity_event(4, cosine=0.99)
    worse["data"]["outputs"]["video_embedding"] |= {"relative_error": 0.5, "spread_error": 0.001}
    page = render(document(parity_event(1), worse, parity_event(8)))
    assert "| s3d | tensorrt | fp16 | uint8 | 1, 4, 8 | 1.0e-02 | 5.0e-01 | 2.0e-02 | 1.0e-03 | passed |" in page


def test_the_table_of_speed_has_ratios_the_bound_and_no_speed_for_what_failed() -> None:
    page = render(
        document(
            speed("tensorrt fp16", "run", 32, 2907.0),
            speed("tensorrt fp16", "stream", 32, 5814.0),
            speed("PyTorch eager FP16", "run", 32, 969.0),
            speed("PyTorch eager FP32", "run", 32, 290.7),
            check("latency", "tensorrt fp32, run", FAILED, "cosine 0.1", bundle="s3d", bucket=32),
        )
    )
    # 172 us a clip is 5,814 clips a second; 74.2 GFLOP a clip.
    assert "| 32 | tensorrt fp16 | run | 11.01 | 22.02 | 7 | 2907 | 216 | 50% | 10.00x | 3.00x | 2.0e-05 |" in page
    assert "| 32 | tensorrt fp16 | stream | 5.50 | 11.01 | 7 | 5814 | 431 | 100% | 20.00x | 6.00x | 2.0e-05 |" in page
    assert "| 32 | PyTorch eager FP32 | run | 110.08 | 220.16 | 7 | 291 | 22 | 5% | 1.00x | 0.30x | 2.0e-05 |" in page
    assert "- no speed: tensorrt fp32, run: cosine 0.1" in page
    assert "| tensorrt fp32" not in page


def test_reports_are_written_as_parts_end_and_are_the_same_in_every_folder(tmp_path: Path) -> None:
    host = document()["host"]
    began = datetime(2026, 1, 2, tzinfo=timezone.utc)
    report = Report(host, "NVIDIA H100 80GB HBM3", [tmp_path / "a", tmp_path / "b"], began)
    first = {
        "name": "environment",
        "outcome": PASSED,
        "detail": "",
        "checks": [check("part", "cuda", PASSED, version="13")],
    }
    report.write([first], ["tests"])
    (path, other) = report.paths
    assert path == tmp_path / "a" / "gpu-check-nvidia-h100-80gb-hbm3-2026-01-02.json"
    found = json.loads(path.read_text("utf-8"))
    assert (found["complete"], found["waiting"], found["counts"][PASSED]) == (False, ["tests"], 1)
    assert "The run is not finished." in path.with_suffix(".md").read_text("utf-8")
    report.write([first, {"name": "tests", "outcome": "not run", "detail": "no time", "checks": []}], [], code=3)
    assert json.loads(other.read_text("utf-8"))["exit_code"] == 3
    assert "| tests | not run |  | no time |" in other.with_suffix(".md").read_text("utf-8")
    assert sorted(file.name for file in (tmp_path / "a").iterdir()) == [
        path.name[:-5] + end for end in (".json", ".md")
    ]


def test_values_become_plain_json() -> None:
    assert plain({1: [math.inf, None, True], "a": (np.int64(3), np.bool_(1))}) == {
        "1": ["inf", None, True],
        "a": [3, True],
    }


@pytest.fixture(scope="module")
def towers() -> TorchVideo:
    return torch_towers(0.125, device="cpu")


def test_the_pytorch_rows_pass_their_gates_and_are_timed(
    towers: TorchVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "torch_towers", lambda *_, **__: towers)
    clips = moving_clips(4, 4, 32, 32)
    record = Recorder(tmp_path / "events")
    settings = Settings(str(tmp_path), buckets=(2,), bucket_s=0, least_rounds=1, most_rounds=1)
    latency.measure(settings, "made up", latency.torch_sources(clips, device="cpu"), record, full=False)
    events = [event for event in read_events(record.path)[0] if event["kind"] == "latency"]
    assert {(event["data"]["row"], event["data"]["path"]) for event in events} == {
        (f"PyTorch {mode}", path) for mode in EAGER["cuda"] for path in ("run", "on GPU")
    }
    assert {event["outcome"] for event in events} == {MEASURED}
    errors = {event["data"]["row"]: 1 - event["data"]["parity"]["centred_cosine"] for event in events}
    assert errors["PyTorch eager FP32"] < errors["PyTorch eager FP16"] < errors["PyTorch eager bf16"]


def test_a_precision_that_is_wrong_has_no_row(
    towers: TorchVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embed = TorchVideo.embed

    def scale(self: TorchVideo, mode: str, clips: Any) -> Any:  # noqa: ANN401
        found = embed(self, mode, clips)
        return found * 1.02 if mode == "eager FP16" else found

    monkeypatch.setattr(TorchVideo, "embed", scale)
    monkeypatch.setattr(latency, "torch_towers", lambda *_, **__: towers)
    record = Recorder(tmp_path / "events")
    settings = Settings(str(tmp_path), buckets=(2,), bucket_s=0, least_rounds=1, most_rounds=1)
    clips = moving_clips(4, 4, 32, 32)
    latency.measure(settings, "made up", latency.torch_sources(clips, device="cpu"), record, full=False)
    for event in read_events(record.path)[0]:
        if event["kind"] == "latency":
            wrong = event["data"]["row"] == "PyTorch eager FP16"
            assert event["outcome"] == (LEFT_OUT if wrong else MEASURED)  # not a failure of milnce's
            assert ("median_s" in event["data"]) != wrong
