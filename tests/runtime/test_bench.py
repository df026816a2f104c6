"""What is measured and what gets a speed: sources of the test's own, on a tiny bundle in every backend that is here."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import milnce
from helpers.tiny_bundle import tiny_clips, write_tiny_bundle
from milnce import backends, bench
from milnce.backends import Availability
from milnce.bench import Source, clips_work, measure, open_all, sentences_work, text_source, video_source
from milnce.errors import BackendUnavailableError, BundleNotFoundError, InputError
from milnce_convert.judge import judge

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

ROW = ["name", "batch", "frames", "size", "gate", "parity", "failures", "error"]
FIGURES = [
    "median_s",
    "p95_s",
    "p99_s",
    "minimum_s",
    "spread",
    "rounds",
    "seconds",
    "ms_an_item",
    "items_per_s",
    "speed",
]


def embeddings(clips: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return (N, 3) means of colours, which differ from clip to clip."""
    return np.asarray(clips.mean(axis=(1, 2, 3)), np.float32)


def swapped(clips: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the embeddings with the first two clips' changed places, where there are two."""
    found = embeddings(clips)
    return found[:, ::-1]


def not_numbers(clips: NDArray[np.uint8]) -> NDArray[np.float32]:
    return embeddings(clips) * np.float32(math.nan)


def refuse(_: NDArray[np.uint8]) -> NDArray[np.float32]:
    raise RuntimeError("no such instruction")


@pytest.fixture
def clips() -> NDArray[np.uint8]:
    return tiny_clips(3)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_rows_say_how_fast_and_how_exact(clips: NDArray[np.uint8]) -> None:
    sources = [Source("first", "fp32", embeddings), Source("second", "fp32", embeddings, {"backend": "b"})]
    rows = measure(sources, clips_work(clips, 2, embeddings), judge, rounds=4)
    assert json.loads(json.dumps(rows)) == rows
    assert list(rows[0]) == ROW + FIGURES
    assert list(rows[1]) == ["name", "backend", *ROW[1:], *FIGURES]
    for row in rows:
        assert (row["batch"], row["frames"], row["size"]) == (2, 4, 16)
        assert (row["failures"], row["error"], row["parity"]["rows"]) == ([], None, 4)
        assert (row["rounds"], len(row["seconds"])) == (4, 4)
        assert row["ms_an_item"] == pytest.approx(1000 * row["median_s"] / 2)
        assert row["items_per_s"] == pytest.approx(2 / row["median_s"])
    assert rows[0]["speed"] == {"median": 1, "minimum": 1, "maximum": 1}


@pytest.mark.parametrize(("broken", "reason"), [(swapped, "cosine"), (not_numbers, "cosine nan")])
@pytest.mark.parametrize("place", [0, 1])
def test_wrong_outputs_never_get_a_speed(clips: NDArray[np.uint8], broken: Any, reason: str, place: int) -> None:  # noqa: ANN401
    sources = [Source("good", "fp32", embeddings)] * 2
    sources[place] = Source("bad", "fp32", broken)
    rows = measure(sources, clips_work(clips, 1, embeddings), judge, rounds=2)
    assert reason in "; ".join(rows[place]["failures"])
    assert not set(FIGURES) & set(rows[place])
    other = rows[1 - place]
    assert other["failures"] == []
    # With nothing sound to compare with there is no ratio, but a time.
    assert other["speed"] is None if place == 0 else other["speed"]["median"] == 1
    assert other["median_s"] > 0


def test_what_does_not_run_says_why_and_the_others_go_on(clips: NDArray[np.uint8]) -> None:
    turns = iter(range(100))

    def fail_later(given: NDArray[np.uint8]) -> NDArray[np.float32]:
        if next(turns) == 5:
            raise MemoryError("full")
        return embeddings(given)

    sources = [Source("good", "fp32", embeddings), Source("bad", "fp32", refuse), Source("late", "fp32", fail_later)]
    rows = measure(sources, clips_work(clips, 1, embeddings), judge, rounds=4)
    assert [row["error"] for row in rows] == [None, "RuntimeError: no such instruction", "MemoryError: full"]
    assert [("median_s" in row) for row in rows] == [True, False, False]
    rows = measure([Source("bad", "no-gate", embeddings)], clips_work(clips, 1, embeddings), judge, rounds=1)
    assert "gate 'no-gate' given; gates are fp32" in rows[0]["error"]


def test_every_batch_is_checked_and_the_timed_one_is_of_the_size_asked(clips: NDArray[np.uint8]) -> None:
    seen: list[int] = []

    def count(given: NDArray[np.uint8]) -> NDArray[np.float32]:
        seen.append(len(given))
        return embeddings(given)

    for batch, checked in ((1, [1, 1, 1]), (2, [2, 2]), (5, [5])):
        seen.clear()
        work = clips_work(clips, batch, embeddings)
        rows = measure([Source("s", "fp32", count)], work, judge, rounds=2)
        assert seen == [*checked, batch, batch, batch]  # a round to warm up, then two
        assert rows[0]["parity"]["rows"] == sum(checked)
        assert np.array_equal(work.timed, np.resize(clips, (batch, *clips.shape[1:])))
    sentences = sentences_work(["a", "b"], 5, lambda given: np.zeros((len(given), 2), np.float32))
    assert sentences.timed == ["a", "b", "a", "b", "a"]
    assert sentences.checked == [["a", "b"]]


def test_everything_that_is_here_is_opened_once_fp32_first(tiny: Path) -> None:
    with open_all(tiny) as opened:
        found = [(model.backend.name, model.backend.precision) for model in opened.models]
        assert {("onnxruntime", "fp32"), ("onnxruntime", "fp16"), ("openvino", "fp32")} <= set(found)
        assert len(set(found)) == len(found)
        precisions = [precision for _, precision in found]
        assert precisions == sorted(precisions, key=lambda precision: precision != "fp32")
        assert opened.left_out["int8"] == "the bundle's video graphs are in fp16, fp32"
        assert "it computes in fp32, fp16" in opened.left_out["onnxruntime bf16"]
        assert "tensorrt" in opened.left_out
        assert not any("numpy" in name for name in opened.left_out)  # it runs sentences alone
        expected = opened.models[0].encode_video(tiny_clips(3)).embedding
        rows = measure(
            list(map(video_source, opened.models)),
            clips_work(tiny_clips(3), 1, lambda _: expected),
            judge,
            rounds=1,
        )
        assert {row["name"]: row["failures"] for row in rows if row["precision"] == "fp32"} == {
            "onnxruntime fp32": [],
            "openvino fp32": [],
        }
        models = list(opened.models)
    assert opened.models == []
    for model in models:
        with pytest.raises(milnce.errors.BackendError, match="closed"):
            model.encode_video(tiny_clips(1))


def test_one_backend_and_precision_can_be_asked_for(tiny: Path) -> None:
    with open_all(tiny, backend="onnxruntime", precisions=("fp16",), device="cpu", threads=1) as opened:
        (model,) = opened.models
        assert (model.backend.name, model.backend.precision) == ("onnxruntime", "fp16")
        assert text_source(model).name.endswith("fp16")
    with pytest.raises(InputError, match=r"backend gpu given; known are tensorrt, openvino, onnxruntime"):
        open_all(tiny, backend="gpu")
    with pytest.raises(InputError, match=r"precision fp8 given; known are fp32, fp16"):
        open_all(tiny, precisions=("fp32", "fp8"))
    with pytest.raises(InputError, match=r"device tpu given; known are cpu, cuda"):
        open_all(tiny, device="tpu")
    with pytest.raises(BundleNotFoundError):
        open_all(tiny.parent / "none")


def test_what_cannot_be_had_is_refused_with_every_reason(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackendUnavailableError, match=r"nothing here runs .*int8: the bundle's video graphs are in"):
        open_all(tiny, precisions=("int8",))
    with pytest.raises(BackendUnavailableError, match="tensorrt: "):
        open_all(tiny, device="cuda")
    libraries = [
        Availability("onnxruntime", "1", ("cpu",), ("fp32",), gpu_problem="cuDNN is missing"),
        Availability("openvino", None, problem="not installed: pip install it"),
    ]
    monkeypatch.setattr(backends, "available", lambda: libraries)
    with open_all(tiny) as opened:
        assert [str(model.backend).split(":")[0] for model in opened.models] == ["onnxruntime on cpu in fp32"]
        assert opened.left_out["onnxruntime on cuda"] == "cuDNN is missing"
        assert opened.left_out["openvino"] == "not installed: pip install it"
    with open_all(tiny, device="cpu") as opened:
        assert "onnxruntime on cuda" not in opened.left_out


def test_a_backend_that_refuses_the_graph_is_left_out_and_closed(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    open_module, close = milnce.Model.open, milnce.Model.close

    def refuse_openvino(self: milnce.Model, module: str, **options: Any) -> Any:  # noqa: ANN401
        if self.backend.name == "openvino":
            raise milnce.errors.BackendError("no kernel")
        return open_module(self, module, **options)

    def note(self: milnce.Model) -> None:
        closed.append(self.backend.name)
        close(self)

    monkeypatch.setattr(milnce.Model, "open", refuse_openvino)
    monkeypatch.setattr(milnce.Model, "close", note)
    with open_all(tiny, precisions=("fp32",)) as opened:
        assert [model.backend.name for model in opened.models] == ["onnxruntime"]
        assert opened.left_out["openvino fp32 on cpu"] == "no kernel"
    assert sorted(closed) == ["onnxruntime", "openvino"]


def test_speed_is_that_of_the_calls_users_make(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    encode = milnce.Model.encode_video

    def note(self: milnce.Model, clips: Any, **options: Any) -> Any:  # noqa: ANN401
        calls.append(f"{len(clips)} {options}")
        return encode(self, clips, **options)

    monkeypatch.setattr(milnce.Model, "encode_video", note)
    with open_all(tiny, backend="onnxruntime", precisions=("fp32",)) as opened:
        source = video_source(opened.models[0])
        assert source.run(tiny_clips(2)).shape == (2, 8)
        assert calls == ["2 {}"]
        assert dict(source.about) == {"backend": "onnxruntime", "device": "cpu", "precision": "fp32"}
        assert text_source(opened.models[0]).run(["open door", "cut the tomato"]).shape == (2, 8)
    assert bench.DISTINCT_CLIPS >= 2
