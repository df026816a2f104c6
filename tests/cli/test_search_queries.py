"""`milnce search` by several sentences, a clip or a vector, and by arguments that make no sense."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import milnce
from helpers.tiny_bundle import write_tiny_bundle
from helpers.videos import make_video

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.commands import Ran, Tiny
    from milnce.model import Model

    Run = Callable[..., Ran]

WIDTH = 8
TOO_LONG = "n" * 300  # for a file's name: what a folder that is closed would give, were it not the superuser's


def queries(ran: Ran) -> Any:  # noqa: ANN401 - JSON
    assert ran.code == 0, ran.stderr
    return json.loads(ran.stdout)["queries"]


def windows(model: Model, path: Path, start_s: float | None = None, end_s: float | None = None) -> Any:  # noqa: ANN401
    (item,) = model.embed_files([path], start_s=start_s, end_s=end_s)
    assert item.error is None
    return item.embedding


def test_several_sentences_answer_as_one_at_a_time_does(tiny: Tiny, videos: Path, run: Run) -> None:
    sentences = ["open the door", "pour water", "a tomato"]
    one_by_one = [queries(run("search", "--bundle", tiny.path, one, videos, "--json"))[0] for one in sentences]
    asked = ["search", "--bundle", tiny.path, videos]
    for sentence in sentences:
        asked += ["--query", sentence]
    together = queries(run(*asked, "--json"))
    assert [one["query"] for one in together] == sentences
    for one, other in zip(together, one_by_one, strict=True):
        assert [(m["path"], m["start_s"], m["end_s"]) for m in one["results"]] == [
            (m["path"], m["start_s"], m["end_s"]) for m in other["results"]
        ]
        assert [m["score"] for m in one["results"]] == pytest.approx([m["score"] for m in other["results"]], rel=1e-5)
    shown = run(*asked, "-k", 1).stdout
    assert [line.strip() for line in shown.splitlines() if line.strip() in sentences] == sentences
    assert shown.count("rank") == 3
    assert shown.count("█" * 12) == 3


def test_each_sentence_names_its_unknown_words(tiny: Tiny, videos: Path, run: Run) -> None:
    ran = run("search", "-b", tiny.path, "-q", "cut the zucchini", "-q", "run", "-q", "a qualm", videos, "--json")
    assert "Not in the vocabulary, ignored in 'cut the zucchini': zucchini\n" in ran.stderr
    assert "Not in the vocabulary, ignored in 'a qualm': qualm\n" in ran.stderr
    assert [one["unknown_words"] for one in queries(ran)] == [["zucchini"], [], ["qualm"]]


def test_a_sheet_has_a_row_of_pictures_for_each_sentence(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    asked = ["search", "--bundle", tiny.path, videos, "-k", 2]
    assert run(*asked, "-q", "run", "--sheet", tmp_path / "one.png").code == 0
    assert run(*asked, "-q", "open the door", "--sheet", tmp_path / "other.png").code == 0
    assert run(*asked, "-q", "run", "-q", "open the door", "--sheet", tmp_path / "both.png").code == 0
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "other.png") as other:
        parts = [np.asarray(one), np.asarray(other)]
    with Image.open(tmp_path / "both.png") as both:
        stacked = np.asarray(both)
    np.testing.assert_array_equal(stacked[: len(parts[0])], parts[0])
    np.testing.assert_array_equal(stacked[len(parts[0]) :], parts[1])


def test_a_clip_finds_itself_and_is_the_mean_of_its_windows(
    tiny: Tiny, model: Model, videos: Path, tmp_path: Path, run: Run
) -> None:
    saved = tmp_path / "q.npy"
    asked = ["search", "--bundle", tiny.path, "--backend", "onnxruntime", "--clip", videos / "c.mp4", "--no-merge"]
    (query,) = queries(run(*asked, videos, "--json", "--save-vector", saved, "--top", 30))
    assert (query["kind"], query["query"], query["unknown_words"]) == ("clip", str(videos / "c.mp4"), [])
    rows = windows(model, videos / "c.mp4")
    mean = rows.astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(np.load(saved), mean, rtol=1e-5)
    for result in query["results"]:
        others = windows(model, Path(result["path"])).astype(np.float64) @ mean
        assert np.abs(others - result["score"]).min() < 1e-3 * abs(result["score"])


def test_the_times_of_a_clip_choose_its_windows(
    tiny: Tiny, model: Model, videos: Path, tmp_path: Path, run: Run
) -> None:
    saved = tmp_path / "q.npy"
    asked = ["search", "--bundle", tiny.path, "--backend", "onnxruntime", "--clip", videos / "c.mp4"]
    times = ["--clip-start-s", 1.0, "--clip-end-s", 2.5, "--save-vector", saved]
    queries(run(*asked, *times, videos / "a.mp4", "--json"))
    mean = windows(model, videos / "c.mp4", start_s=1.0, end_s=2.5).astype(np.float64).mean(axis=0)
    np.testing.assert_allclose(np.load(saved), mean, rtol=1e-5)
    assert np.abs(np.load(saved) - windows(model, videos / "c.mp4").mean(axis=0)).max() > 1e-3


def test_a_clip_shorter_than_a_window_is_that_one_window(tiny: Tiny, tmp_path: Path, run: Run, model: Model) -> None:
    clip = make_video(tmp_path / "short.mp4", frames=12)
    saved = tmp_path / "q.npy"
    asked = ["search", "--bundle", tiny.path, "--backend", "onnxruntime", "--clip", clip, "--save-vector", saved]
    queries(run(*asked, clip, "--json"))
    np.testing.assert_allclose(np.load(saved), windows(model, clip)[0], rtol=1e-6)


def test_a_saved_vector_finds_what_its_query_found(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    saved = tmp_path / "q.npy"
    asked = ["search", "--bundle", tiny.path, "--json"]
    (by_text,) = queries(run(*asked, "open the door", videos, "--save-vector", saved))
    vector = np.load(saved, allow_pickle=False)
    assert (vector.dtype.name, vector.shape) == ("float32", (WIDTH,))
    ran = run(*asked, "--vector", saved, videos)
    (by_vector,) = queries(ran)
    assert by_vector["results"] == by_text["results"]
    assert (by_vector["kind"], by_vector["query"]) == ("vector", str(saved))
    assert f"q.npy does not say what made it; it must be this model, {tiny.weights.digest[:12]}..." in ran.stderr
    np.save(saved, vector[None])
    assert queries(run(*asked, "--vector", saved, videos))[0]["results"] == by_text["results"]


def test_a_vector_is_replaced_only_when_asked(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    saved = tmp_path / "q.npy"
    saved.write_bytes(b"mine")
    asked = ["search", "--bundle", tiny.path, "run", videos, "--save-vector", saved]
    ran = run(*asked)
    assert (ran.code, "q.npy: exists already; pass --overwrite" in ran.stderr) == (1, True)
    assert saved.read_bytes() == b"mine"
    assert run(*asked, "--overwrite").code == 0
    assert np.load(saved).shape == (WIDTH,)
    assert [path.name for path in tmp_path.iterdir()] == ["q.npy"]
    ran = run("search", "--bundle", tiny.path, "run", videos, "--save-vector", tmp_path / "q.txt")
    assert (ran.code, "q.txt: suffix '.txt' given; .npy expected" in ran.stderr) == (1, True)
    ran = run("search", "-b", tiny.path, "-q", "run", "-q", "cut", videos, "--save-vector", tmp_path / "r.npy")
    assert (ran.code, "--save-vector keeps one query's vector, but 2 are given" in ran.stderr) == (2, True)


class Unpickled:
    """Writes a file if it is ever unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros(8), r"q.npy: float64 (8,) given; float32 (8,) expected, as --save-vector writes it; turn it with"),
        (np.zeros(7, np.float32), "q.npy: float32 (7,) given; float32 (8,) expected"),
        (np.zeros((2, 8), np.float32), "q.npy: float32 (2, 8) given"),
        (np.float32(3), "q.npy: float32 () given"),
        (np.full(8, np.nan, np.float32), "q.npy: holds NaN or infinity; make the vector again"),
        (np.full(8, np.inf, np.float32), "q.npy: holds NaN or infinity"),
        (np.array([Unpickled()] * 8), "q.npy: not a .npy file of numbers"),
    ],
)
def test_vectors_that_do_not_fit_are_refused(
    array: Any,  # noqa: ANN401
    message: str,
    tiny: Tiny,
    videos: Path,
    tmp_path: Path,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save(tmp_path / "q.npy", array)
    ran = run("search", "--bundle", tiny.path, "--vector", tmp_path / "q.npy", videos)
    assert (ran.code, ran.stdout) == (2, "")
    assert message in ran.stderr
    assert not Path("unpickled").exists()


def test_files_that_are_no_vectors_are_refused(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    asked = ["search", "--bundle", tiny.path, videos, "--vector"]
    ran = run(*asked, tmp_path / "none.npy")
    assert (ran.code, "none.npy: no such file; a .npy file with float32 (8,) expected" in ran.stderr) == (2, True)
    ran = run(*asked, tmp_path / f"{TOO_LONG}.npy")
    assert (ran.code, "n.npy: no such file; a .npy file with" in ran.stderr) == (2, True)
    np.savez(tmp_path / "q.npz", np.zeros(8, np.float32))
    ran = run(*asked, tmp_path / "q.npz")
    assert (ran.code, "q.npz: an .npz archive, not a .npy file" in ran.stderr) == (2, True)
    for content in (b"", b"text", b"\x93NUMPY\x01\x00v\x00{'descr'", videos.joinpath("a.mp4").read_bytes()):
        (tmp_path / "q.npy").write_bytes(content)
        ran = run(*asked, tmp_path / "q.npy")
        assert (ran.code, "q.npy: not a .npy file of numbers" in ran.stderr) == (2, True)


def test_a_clip_that_cannot_be_used_ends_the_search(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    asked = ["search", "--bundle", tiny.path, videos, "--clip"]
    ran = run(*asked, tmp_path / "bad.mp4")
    assert (ran.code, ran.stdout, "bad.mp4" in ran.stderr) == (1, "", True)
    ran = run(*asked, tmp_path / "none.mp4")
    assert (ran.code, "none.mp4: no such file" in ran.stderr) == (1, True)
    ran = run(*asked, videos)
    assert (ran.code, "is a folder; one video file expected" in ran.stderr) == (2, True)
    ran = run(*asked, tmp_path / f"{TOO_LONG}.mp4")
    assert (ran.code, "cannot be opened (" in ran.stderr) == (1, True)
    ran = run(*asked, videos / "a.mp4", "--clip-start-s", 100)
    assert (ran.code, "a.mp4" in ran.stderr) == (2, True)
    ran = run(*asked, videos / "a.mp4", "--clip-start-s", 2, "--clip-end-s", 1)
    assert (ran.code, "start 2.0 s and end 1.0 s given" in ran.stderr) == (2, True)


def test_a_clip_among_stored_features_is_sampled_as_asked(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "f.npz"
    assert run("embed", "--bundle", tiny.path, "--out", out, videos).code == 0
    asked = ["search", "--bundle", tiny.path, "--clip", videos / "a.mp4", out]
    assert "different presets" not in run(*asked).stderr
    assert "the windows come from different presets" in run(*asked, "--preset", "milnce-eval").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "only 'run' given, which is taken for the sentence; name videos, folders or features files after it"),
        (["--query", "run", "--clip", "a.mp4", "v"], "--query and --clip given; one kind of query at a time"),
        (["--vector", "q.npy", "--clip", "a.mp4", "v"], "--clip and --vector given; one kind of query at a time"),
        (["run", "v", "--clip-start-s", "1"], "are times of the clip that --clip names; name it"),
        (["run", "v", "--clip-end-s", "1"], "are times of the clip that --clip names; name it"),
        (["  ", "v"], "the sentence is empty; say what to look for"),
        (["-q", "run", "-q", "", "v"], "the sentence is empty; say what to look for"),
    ],
)
def test_questions_that_make_no_sense_are_refused(arguments: list[str], message: str, tiny: Tiny, run: Run) -> None:
    ran = run("search", "--bundle", tiny.path, *arguments)
    assert (ran.code, ran.stdout) == (2, "")
    assert message in ran.stderr


def test_a_query_without_a_place_to_search_is_refused(tiny: Tiny, run: Run) -> None:
    ran = run("search", "--bundle", tiny.path, "--query", "run")
    assert ran.code == 2
    assert "PATHS" in ran.stderr


def test_a_sentence_that_was_left_out_is_noticed(tiny: Tiny, videos: Path, run: Run) -> None:
    ran = run("search", "--bundle", tiny.path, videos / "a.mp4", videos / "b.mkv")
    assert "a.mp4' is also a file or folder; was a sentence left out?" in ran.stderr


def test_a_sentence_may_be_longer_than_a_file_name(tiny: Tiny, videos: Path, run: Run) -> None:
    sentence = "open the door and " * 30
    ran = run("search", "--bundle", tiny.path, sentence, videos, "--json")
    assert (ran.code, queries(ran)[0]["query"]) == (0, sentence)


def test_a_vector_of_a_model_of_another_width_is_refused(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    write_tiny_bundle(tmp_path / "wide", embedding=16)
    saved = tmp_path / "q.npy"
    assert run("search", "--bundle", tmp_path / "wide", "run", videos, "--save-vector", saved).code == 0
    ran = run("search", "--bundle", tiny.path, "--vector", saved, videos)
    assert (ran.code, "float32 (16,) given; float32 (8,) expected" in ran.stderr) == (2, True)


def test_the_text_tower_is_not_needed_for_other_queries(videos: Path, tmp_path: Path, run: Run) -> None:
    write_tiny_bundle(tmp_path / "no text", modules=("video",))
    ran = run("search", "--bundle", tmp_path / "no text", "--clip", videos / "a.mp4", videos, "--json")
    assert len(queries(ran)[0]["results"]) > 0
    assert milnce.load(tmp_path / "no text", modules=()).bundle.manifest.name == "tiny"


def test_moments_merge_windows_unless_told_not_to(tiny: Tiny, videos: Path, run: Run) -> None:
    asked = ["search", "--bundle", tiny.path, "open the door", videos, "--json", "--top", 99]
    (merged,) = queries(run(*asked))
    (single,) = queries(run(*asked, "--no-merge"))
    assert len(single["results"]) == 30
    assert all(one["windows"] == 1 for one in single["results"])
    assert 3 <= len(merged["results"]) < 30
    assert max(one["windows"] for one in merged["results"]) > 1
    best = {(one["path"], one["start_s"], one["end_s"], one["score"]) for one in single["results"]}
    for one in merged["results"]:
        assert (one["path"], one["best_start_s"], one["best_end_s"], one["score"]) in best
        assert one["start_s"] <= one["best_start_s"] < one["best_end_s"] <= one["end_s"]
    for one in merged["results"]:
        for other in merged["results"]:
            apart = one["end_s"] <= other["start_s"] + 1e-3 or other["end_s"] <= one["start_s"] + 1e-3
            assert one is other or one["path"] != other["path"] or apart
