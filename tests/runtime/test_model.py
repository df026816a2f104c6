"""The public face: load, encode, project, score, and what it says to wrong input."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pytest

import milnce
from helpers.tiny_bundle import tiny_clips, write_tiny_bundle
from milnce import backends
from milnce.errors import (
    BackendError,
    BackendUnavailableError,
    BundleError,
    InputError,
    NonFiniteError,
    UnknownWordsWarning,
)
from milnce.platforms import is_arm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from helpers.tiny_bundle import Tiny
    from milnce.backends import Backend

# What ARM chooses, and refuses in FP16, has tests of its own (test_selection.py, test_onnxruntime_packages.py).
on_x86 = pytest.mark.skipif(is_arm(), reason="says what is chosen and offered on x86-64")

SENTENCES = ["cut the tomato", "Someone DON'T run!", "open door"]


@pytest.fixture(params=["openvino", "onnxruntime"])
def model(request: pytest.FixtureRequest, tiny: Tiny) -> Iterator[milnce.Model]:
    with milnce.load(tiny.path, backend=request.param) as opened:
        yield opened


def as_float(clips: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.ascontiguousarray(clips.transpose(0, 4, 1, 2, 3).astype(np.float32) / np.float32(255))


@on_x86
def test_load_says_what_it_chose_and_why(tiny: Tiny) -> None:
    with milnce.load(tiny.path) as model:
        assert re.fullmatch(r"openvino on cpu in fp32: version \S+, the fastest exact backend .*", str(model.backend))
        assert repr(model) == f"Model('tiny', {model.backend})"
        assert model.tokenizer.max_words == 16
        assert model.bundle.path == tiny.path


def test_video_gives_the_towers_numbers_in_order(model: milnce.Model, tiny: Tiny) -> None:
    clips = tiny_clips(5)
    embedding, mixed_5c = tiny.weights.video(clips)
    for batch_size in (1, 2, 5, 100):
        video = model.encode_video(clips, batch_size=batch_size)
        np.testing.assert_allclose(video.embedding, embedding, rtol=0, atol=2e-5)
        np.testing.assert_allclose(video.mixed_5c, mixed_5c, rtol=0, atol=2e-5)
    assert len(video) == 5
    assert repr(video) == "VideoEmbeddings(embedding=(5, 8), mixed_5c=(5, 12))"


def test_both_input_forms_agree(model: milnce.Model) -> None:
    clips = tiny_clips(3)
    from_bytes, from_floats = model.encode_video(clips), model.encode_video(as_float(clips))
    np.testing.assert_allclose(from_floats.embedding, from_bytes.embedding, rtol=0, atol=2e-5)


def test_arrays_that_are_not_contiguous_give_the_same(model: milnce.Model) -> None:
    clips = tiny_clips(3)
    view = np.ascontiguousarray(clips.transpose(0, 4, 1, 2, 3)).transpose(0, 2, 3, 4, 1)
    assert not view.flags.c_contiguous
    np.testing.assert_array_equal(model.encode_video(view).embedding, model.encode_video(clips).embedding)
    np.testing.assert_array_equal(model.encode_video(clips[::-1]).embedding, model.encode_video(clips).embedding[::-1])


def test_text_gives_the_towers_numbers_in_order(model: milnce.Model, tiny: Tiny) -> None:
    expected = tiny.weights.text(model.tokenizer(SENTENCES))
    for batch_size in (1, 2, 256):
        text = model.encode_text(SENTENCES, batch_size=batch_size)
        np.testing.assert_allclose(text, expected, rtol=0, atol=2e-5)
    assert text.dtype == np.float32


def test_one_sentence_is_one_row(model: milnce.Model, tiny: Tiny) -> None:
    text = model.encode_text("open door")
    assert text.shape == (1, 8)
    np.testing.assert_allclose(text, tiny.weights.text(model.tokenizer(["open door"])), rtol=0, atol=2e-5)


def test_max_words_of_the_call_reaches_the_tower(model: milnce.Model, tiny: Tiny) -> None:
    text = model.encode_text("cut the tomato", max_words=1)
    np.testing.assert_allclose(text, tiny.weights.text(np.array([[2]])), rtol=0, atol=2e-5)


def test_a_sentence_of_unknown_words_warns_and_encodes_as_padding(model: milnce.Model, tiny: Tiny) -> None:
    with pytest.warns(UnknownWordsWarning, match="no word of 'zzz'"):
        text = model.encode_text("zzz")
    np.testing.assert_allclose(text, tiny.weights.text(np.zeros((1, 16), np.int64)), rtol=0, atol=2e-5)


def test_project_turns_features_into_embeddings(model: milnce.Model) -> None:
    video = model.encode_video(tiny_clips(5))
    np.testing.assert_allclose(model.project(video.mixed_5c), video.embedding, rtol=0, atol=2e-5)
    np.testing.assert_allclose(model.project(video.mixed_5c, batch_size=2), video.embedding, rtol=0, atol=2e-5)


def test_a_batch_never_exceeds_what_the_graph_takes(tmp_path: Path) -> None:
    weights = write_tiny_bundle(tmp_path / "b", largest_batch=2)
    with milnce.load(tmp_path / "b") as model:
        video = model.encode_video(tiny_clips(5), batch_size=5)
        np.testing.assert_allclose(video.embedding, weights.video(tiny_clips(5))[0], rtol=0, atol=2e-5)
        assert model.encode_text(SENTENCES).shape == (3, 8)


def test_similarity_is_the_plain_dot_product(model: milnce.Model) -> None:
    text, video = model.encode_text(SENTENCES), model.encode_video(tiny_clips(2))
    scores = milnce.similarity(text, video.embedding)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, text @ video.embedding.T)
    assert milnce.similarity(text.astype(np.float64), video.embedding).dtype == np.float32


def test_similarity_says_what_does_not_fit() -> None:
    rows = np.ones((2, 8), np.float32)
    video = milnce.VideoEmbeddings(rows, np.ones((2, 12), np.float32))
    with pytest.raises(InputError, match=r"text is 8 wide, video 12; .* embedding of encode_video, not its mixed_5c"):
        milnce.similarity(rows, video.mixed_5c)
    with pytest.raises(InputError, match=r"numpy.ndarray expected, VideoEmbeddings given; pass its \.embedding"):
        milnce.similarity(rows, video)  # type: ignore[arg-type] # wrong on purpose
    with pytest.raises(InputError, match=r"text: float32 of shape \(8,\) given; .* embedding pass text\[None\]"):
        milnce.similarity(rows[0], rows)
    with pytest.raises(InputError, match=r"video: int64 of shape \(2, 8\) given; floats"):
        milnce.similarity(rows, rows.astype(np.int64))


UINT8 = np.zeros((2, 4, 16, 16, 3), np.uint8)
FLOAT32 = np.zeros((2, 3, 4, 16, 16), np.float32)


@pytest.mark.parametrize(("form", "clips"), [("uint8", FLOAT32), ("float32", UINT8)])
def test_an_input_form_that_the_bundle_lacks_is_answered_with_what_it_has(
    tmp_path: Path, form: str, clips: NDArray[np.float32] | NDArray[np.uint8]
) -> None:
    write_tiny_bundle(tmp_path / "b", input_forms=[form], precisions=["fp32"], modules=["video"])
    with milnce.load(tmp_path / "b", modules=["video"]) as model:
        missing = clips.dtype.name
        with pytest.raises(BundleError, match=f"has no graph video {missing} fp32; it has: video {form} fp32"):
            model.encode_video(clips)


def test_wrong_features_are_named(model: milnce.Model) -> None:
    good = np.zeros((2, 12), np.float32)
    for features, text in [
        (good.astype(np.float64), "mixed_5c: dtype float64 given, float32 expected"),
        (good[:, :8], r"mixed_5c: axis 1 is 8, shape \(2, 8\); expected 12"),
        (good[0], "mixed_5c: rank 1 given"),
        (good[:0], r"mixed_5c: batch is 0, shape \(0, 12\); expected batch=1\.\."),
        (good + np.nan, "mixed_5c: holds NaN or infinity"),
        ([1.0], r"numpy\.ndarray expected: mixed_5c float32 \(batch=1\.\., 12\); list given"),
    ]:
        with pytest.raises(InputError, match=text):
            model.project(features)


def test_no_sentences_are_refused(model: milnce.Model) -> None:
    with pytest.raises(InputError, match="no sentences given"):
        model.encode_text([])


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "8", None])
def test_batch_size_and_threads_must_be_positive(tiny: Tiny, value: object) -> None:
    with milnce.load(tiny.path) as model:
        if value is not None:  # the backend's own
            with pytest.raises(InputError, match=r"batch_size is .*; a whole number of at least 1"):
                model.encode_video(UINT8, batch_size=value)  # type: ignore[arg-type] # wrong on purpose
            with pytest.raises(InputError, match=r"batch_size is .*; a whole number of at least 1"):
                model.encode_text("cut", batch_size=value)  # type: ignore[arg-type] # wrong on purpose
        with pytest.raises(InputError, match=r"batch_size is .*; a whole number of at least 1"):
            model.project(np.zeros((1, 12), np.float32), batch_size=value)  # type: ignore[arg-type] # wrong on purpose
    if value is not None:
        with pytest.raises(InputError, match=r"threads is .*; a whole number of at least 1"):
            milnce.load(tiny.path, threads=value)  # type: ignore[arg-type] # wrong on purpose


def test_load_refuses_names_that_do_not_exist(tiny: Tiny) -> None:
    with pytest.raises(InputError, match="module 'audio' given; modules are video, text, projection"):
        milnce.load(tiny.path, modules=["audio"])
    with pytest.raises(BackendUnavailableError, match="backend 'torch' asked for"):
        milnce.load(tiny.path, backend="torch")


def test_only_the_modules_asked_for_are_opened_and_others_on_use(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = backends.open_graph

    def noted(*arguments: object, **options: object) -> Backend:
        opened.append(str(arguments[2]))
        return original(*arguments, **options)  # type: ignore[arg-type] # passed on as it came

    monkeypatch.setattr(backends, "open_graph", noted)
    with milnce.load(tiny.path, modules="text") as model:
        assert opened == ["text tokens fp32 (text-fp32.onnx)"]
        model.encode_text("cut")
        model.encode_video(UINT8)
        model.encode_video(FLOAT32)
        model.encode_video(UINT8)
    assert opened[1:] == ["video uint8 fp32 (video-uint8-fp32.onnx)", "video float32 fp32 (video-float32-fp32.onnx)"]


def test_a_file_that_changes_after_load_is_caught_on_first_use(copied: Path) -> None:
    with milnce.load(copied, modules=["text"]) as model:
        data = (copied / "video-uint8-fp32.onnx").read_bytes()
        (copied / "video-uint8-fp32.onnx").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.raises(BundleError, match=r"video-uint8-fp32\.onnx was changed or damaged: its sha256 is"):
            model.encode_video(UINT8)


@on_x86
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_fp16_is_near_but_not_equal_and_the_projection_stays_fp32(tiny: Tiny, backend: str) -> None:
    clips = tiny_clips(3)
    with milnce.load(tiny.path, backend=backend, precision="fp16") as model:
        video = model.encode_video(clips)
        difference = np.abs(video.embedding - tiny.weights.video(clips)[0]).max()
        assert 1e-4 < difference < 2e-2
        np.testing.assert_allclose(model.project(video.mixed_5c), video.embedding, rtol=0, atol=2e-5)
        assert " in fp16: " in str(model.backend)


@on_x86
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_numbers_that_are_not_finite_are_an_error_not_a_result(tiny: Tiny, precision: str) -> None:
    huge = np.full((1, 12), 3e38, np.float32)
    text = (
        "projection in fp32 on onnxruntime gave NaN or infinity in video_embedding; "
        "the input, or the bundle's weights, are out of range"
    )
    with (
        milnce.load(tiny.path, backend="onnxruntime", precision=precision) as model,
        pytest.raises(NonFiniteError, match=re.escape(text)),
    ):
        model.project(huge)


@on_x86
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_numbers_lost_to_a_low_precision_name_the_one_to_try(
    tiny: Tiny, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph_precision = "fp16" if precision == "fp16" else "fp32"
    with milnce.load(tiny.path, backend="onnxruntime", precision=graph_precision) as model:
        backend = model.open("video")
        monkeypatch.setattr(backend, "precision", precision)  # bf16 is not on every machine
        broken = {"video_embedding": np.full((1, 8), np.nan, np.float32), "mixed_5c": np.zeros((1, 12), np.float32)}
        monkeypatch.setattr(backend, "_run", lambda _: broken)
        text = f"video in {precision} on onnxruntime gave NaN or infinity in video_embedding; try fp32"
        with pytest.raises(NonFiniteError, match=text):
            model.encode_video(UINT8)


def test_a_closed_model_says_so_and_has_closed_its_backends(tiny: Tiny) -> None:
    model = milnce.load(tiny.path)
    towers = [model.open("video"), model.open("text")]
    model.close()
    for tower in towers:
        with pytest.raises(BackendError, match="is closed; load the model again"):
            tower.run({})
    model.close()
    with pytest.raises(BackendError, match="the model is closed; load it again"):
        model.encode_text("cut")


def test_threads_share_one_model(model: milnce.Model, tiny: Tiny) -> None:
    clips = [tiny_clips(2, seed=seed) for seed in range(16)]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(model.encode_video, clips))
    for video, clip in zip(results, clips, strict=True):
        np.testing.assert_allclose(video.embedding, tiny.weights.video(clip)[0], rtol=0, atol=2e-5)


def test_different_clips_and_their_mirrors_get_different_embeddings(model: milnce.Model) -> None:
    # The helper's promise: tests of order would prove nothing if these were equal.
    clip = tiny_clips(1)
    mirrors = [clip, clip[:, ::-1], clip[:, :, ::-1], clip[:, :, :, ::-1], clip[..., ::-1], tiny_clips(1, seed=1)]
    rows = model.encode_video(np.concatenate(mirrors)).embedding
    distances = np.linalg.norm(rows[:, None] - rows[None], axis=-1) + 10 * np.eye(len(rows))
    assert distances.min() > 1e-2


def test_embed_files_hands_everything_to_the_pipeline(model: milnce.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[object, ...]] = []

    def noted(*arguments: object, **options: object) -> Iterator[object]:
        calls.append((*arguments, options))
        return iter(["result"])

    monkeypatch.setattr("milnce.pipeline.embed_files", noted)
    results = model.embed_files(
        ["a.mp4"], preset="milnce-eval", batch_size=3, start_s=1.5, end_s=4.0, workers=2, stall_s=9.0, decoder="cpu"
    )
    assert [str(result) for result in results] == ["result"]
    options = {
        "preset": "milnce-eval",
        "batch_size": 3,
        "start_s": 1.5,
        "end_s": 4.0,
        "workers": 2,
        "stall_s": 9.0,
        "decoder": "cpu",
    }
    assert calls == [(model, ["a.mp4"], options)]
