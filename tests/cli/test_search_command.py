"""`milnce search`: what it ranks, prints and draws, and how it fails."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

import milnce
from helpers.tiny_bundle import write_tiny_bundle
from helpers.videos import make_video, numbered, read_number
from milnce.video import iter_windows, read_frame

if TYPE_CHECKING:
    from collections.abc import Callable

    from helpers.commands import Ran, Tiny
    from milnce.model import Model

    Run = Callable[..., Ran]


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
    asked = ["search", "--bundle", tiny.path, query, videos, "--top", 7, "--no-merge"]
    result = run(*asked, "--json", "--backend", "onnxruntime")
    assert result.code == 0
    document = json.loads(result.stdout)
    best = scores(model, query, videos)[:7]
    results = document["queries"][0]["results"]
    assert [found["rank"] for found in results] == list(range(1, 8))
    assert [found["score"] for found in results] == pytest.approx([score for score, _, _ in best], rel=1e-4)
    assert [(found["path"], found["start_s"]) for found in results] == [(path, start_s) for _, path, start_s in best]
    assert document["windows"] == 30
    assert document["queries"][0]["unknown_words"] == []
    assert document["failed"] == []


def test_search_prints_rank_score_bar_time_and_file(tiny: Tiny, videos: Path, run: Run) -> None:
    result = run("search", "--bundle", tiny.path, "open the door", videos, "--top", 30, "--no-merge")
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
    found = [(item["path"], item["best_start_s"]) for item in json.loads(result.stdout)["queries"][0]["results"]]
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
    assert json.loads(result.stdout)["queries"][0]["unknown_words"] == ["zucchini"]
    assert "Warning: no word of 'zucchini' is in the vocabulary" in result.stderr


@pytest.mark.parametrize("name", ["f.npz", "f.parquet"])
def test_search_in_features_gives_what_the_videos_give(
    name: str, tiny: Tiny, videos: Path, tmp_path: Path, run: Run
) -> None:
    assert run("embed", "--bundle", tiny.path, "--out", tmp_path / name, videos).code == 0
    asked = ["search", "--bundle", tiny.path, "run", "--json", "--top", 12]
    from_features = json.loads(run(*asked, tmp_path / name).stdout)
    from_videos = json.loads(run(*asked, videos).stdout)
    assert from_features["queries"] == from_videos["queries"]
    assert from_features["preset"] is None


def test_search_refuses_features_of_another_model(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    other = write_tiny_bundle(tmp_path / "other", seed=1)
    assert run("embed", "--bundle", tmp_path / "other", "--out", tmp_path / "f.npz", videos / "a.mp4").code == 0
    result = run("search", "--bundle", tiny.path, "run", tmp_path / "f.npz")
    assert result.code == 1
    assert f"made with the model {other.digest[:12]}..." in result.stderr
    assert "Embed the videos again with this bundle" in result.stderr


def test_search_says_when_presets_differ(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    assert run("embed", "--bundle", tiny.path, "--out", tmp_path / "f.npz", videos / "a.mp4").code == 0
    asked = ["search", "--bundle", tiny.path, "run", tmp_path / "f.npz", videos / "a.mp4"]
    assert "different presets" not in run(*asked).stderr
    assert "the windows come from different presets" in run(*asked, "--preset", "milnce-eval").stderr


def tiles(sheet: Path, shapes: list[tuple[int, ...]]) -> list[Any]:
    """Return the pictures of a sheet of one row, cut to where a frame of that shape lies in its tile."""
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB"))
    found = []
    for number, (height, width, _) in enumerate(shapes):
        x = 20 + number * 372
        top = int(np.flatnonzero((pixels[:, x + 176] != 255).any(axis=-1))[0])
        scale = min(198 / height, 352 / width)
        rows, columns = round(height * scale), round(width * scale)
        y, x = top + (198 - rows) // 2, x + (352 - columns) // 2
        found.append(pixels[y : y + rows, x : x + columns])
    return found


def test_search_draws_a_sheet_of_the_middle_frames(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    sheet = tmp_path / "sheet.png"
    result = run("search", "--bundle", tiny.path, "cut", videos, "--per-file", "--sheet", sheet, "--json")
    assert result.code == 0
    document = json.loads(result.stdout)
    assert document["sheet"] == str(sheet)
    middles = [
        (found["start_s"] + found["end_s"] - found["best_start_s"] - found["best_end_s"]) / 2
        for found in document["queries"][0]["results"]
    ]
    assert max(map(abs, middles)) > 0.05, "a moment must reach further on one side, or its own middle would do as well"
    frames, starts = [], []
    for found in document["queries"][0]["results"]:
        path = Path(found["path"])
        frames.append(read_frame(path, (found["best_start_s"] + found["best_end_s"]) / 2))
        starts.append(read_number(read_frame(path, found["best_start_s"])))
    drawn = [read_number(tile) for tile in tiles(sheet, [frame.shape for frame in frames])]
    assert drawn == [read_number(frame) for frame in frames]
    assert all(abs(middle - start - 5) <= 1 for middle, start in zip(drawn, starts, strict=True)), "0.2 s at 25 fps"


def test_a_sheet_that_fails_does_not_cost_the_ranking(
    tiny: Tiny, videos: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    asked = ["search", "--bundle", tiny.path, "run", videos / "a.mp4", "--sheet", tmp_path / "s.png", "--top", 2]
    result = run(*asked)
    assert result.code == 1
    assert result.stdout.count("a.mp4") == 2
    assert "s.png: cannot write the contact sheet" in result.stderr
    result = run(*asked, "--json")
    assert result.code == 1
    document = json.loads(result.stdout)
    assert (len(document["queries"][0]["results"]), document["sheet"]) == (2, None)
    assert [item["path"] for item in document["failed"]] == [str(tmp_path / "s.png")]


def test_a_sheet_is_replaced_only_when_asked(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    sheet = tmp_path / "s.png"
    sheet.write_bytes(b"old")
    asked = ["search", "--bundle", tiny.path, "run", videos / "a.mp4", "--sheet", sheet]
    result = run(*asked)
    assert (result.code, "s.png: exists already; pass --overwrite" in result.stderr) == (1, True)
    assert (result.stdout, sheet.read_bytes()) == ("", b"old")
    assert run(*asked, "--overwrite").code == 0
    with Image.open(sheet) as image:
        assert image.format == "PNG"


def test_search_shows_a_moment_of_a_short_video_once(tiny: Tiny, tmp_path: Path, run: Run) -> None:
    video = make_video(tmp_path / "short.mp4", frames=10)
    result = run("search", "--bundle", tiny.path, "run", video, "--json")
    assert result.code == 0
    assert [(item["start_s"], item["end_s"]) for item in json.loads(result.stdout)["queries"][0]["results"]] == [
        (0.0, 0.4)
    ]


def test_search_does_the_files_that_have_the_range(tiny: Tiny, videos: Path, run: Run) -> None:
    paths = [videos / "a.mp4", videos / "b.mkv", videos / "c.mp4"]
    result = run("search", "--bundle", tiny.path, "run", "--end-s", "1.5", "--top", 99, "--json", *paths)
    assert result.code == 1
    document = json.loads(result.stdout)
    assert {item["path"] for item in document["queries"][0]["results"]} == {str(paths[0]), str(paths[2])}
    assert [(item["path"], item["type"]) for item in document["failed"]] == [(str(paths[1]), "RangeError")]


def test_times_choose_among_stored_windows(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "f.npz"
    assert run("embed", "--bundle", tiny.path, "--out", out, videos / "c.mp4", videos / "a.mp4").code == 0
    asked = ["search", "--bundle", tiny.path, "run", out, "--top", 99, "--no-merge", "--json"]
    everything = json.loads(run(*asked).stdout)["queries"][0]["results"]
    inside = [item for item in everything if item["start_s"] >= 0.3 and item["end_s"] <= 1.5]
    assert 0 < len(inside) < len(everything)
    found = json.loads(run(*asked, "--start-s", "0.3", "--end-s", "1.5").stdout)["queries"][0]["results"]
    assert [{**item, "rank": 0} for item in found] == [{**item, "rank": 0} for item in inside]
    result = run(*asked, "--start-s", "100")
    assert (result.code, "f.npz: none of its windows lies between the given" in result.stderr) == (1, True)
    result = run(*asked, "--start-s", "3", "--end-s", "2")
    assert (result.code, "start 3.0 s and end 2.0 s given" in result.stderr) == (2, True)


def test_sampling_options_without_a_video_are_refused(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    out = tmp_path / "f.npz"
    assert run("embed", "--bundle", tiny.path, "--out", out, videos / "a.mp4").code == 0
    for option in (["--preset", "sliding"], ["--stride-frames", "4"]):
        result = run("search", "--bundle", tiny.path, "run", out, *option)
        assert (result.code, "only features files are given" in result.stderr) == (2, True)
    result = run("search", "--bundle", tiny.path, "run", out, videos / "b.mkv", "--stride-frames", "4")
    assert result.code == 0


def test_a_damaged_features_file_fails_alone(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    good, bad = tmp_path / "good.npz", tmp_path / "bad.npz"
    assert run("embed", "--bundle", tiny.path, "--out", good, videos / "a.mp4").code == 0
    bad.write_bytes(good.read_bytes()[:-9])
    result = run("search", "--bundle", tiny.path, "run", bad, good, "--no-merge", "--json")
    assert result.code == 1
    document = json.loads(result.stdout)
    assert len(document["queries"][0]["results"]) == 10
    assert [item["path"] for item in document["failed"]] == [str(bad)]
    assert "bad.npz: damaged, or not an NPZ" in result.stderr
    assert "1 of 2 files failed." in result.stderr


def test_what_several_sources_hold_is_found_once(
    tiny: Tiny, videos: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, copy = tmp_path / "f.npz", tmp_path / "copy.npz"
    monkeypatch.chdir(videos.parent)
    assert run("embed", "--bundle", tiny.path, "--out", stored, videos.name).code == 0
    shutil.copy(stored, copy)

    def found(*sources: Path) -> tuple[Any, int, bool]:
        result = run("search", "--bundle", tiny.path, "run", *sources, "--no-merge", "--top", 99, "--json")
        assert result.code == 0, result.stderr
        document = json.loads(result.stdout)
        places = [(Path(one["path"]).name, one["start_s"]) for one in document["queries"][0]["results"]]
        repeated = "30 windows lie in several of the sources; each is found once." in result.stderr
        return places, document["windows"], repeated

    places, count, _ = found(stored)
    assert count == len(places) == 30
    assert found(stored, stored) == found(stored, Path(os.path.relpath(stored))) == (places, 30, False)
    assert found(stored, copy) == found(stored, videos) == found(videos, copy) == (places, 30, True)
    assert found(videos, Path(videos.name)) == (places, 30, False)


def test_the_one_window_of_a_short_video_is_found_once_too(tiny: Tiny, tmp_path: Path, run: Run) -> None:
    video, stored = make_video(tmp_path / "short.mp4", frames=3), tmp_path / "f.npz"  # the same window ten times over
    assert run("embed", "--bundle", tiny.path, "--out", stored, video).code == 0
    result = run("search", "--bundle", tiny.path, "run", stored, video, "--no-index", "--json")
    assert json.loads(result.stdout)["windows"] == 1


def test_other_videos_of_the_same_name_are_all_found(
    tiny: Tiny, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, first in (("one", 0), ("two", 100)):
        (tmp_path / name).mkdir()
        make_video(
            tmp_path / name / "a.mp4",
            frames=40,
            draw=lambda number, *size, first=first: numbered(first + number, *size),
        )
        monkeypatch.chdir(tmp_path / name)
        assert run("embed", "--bundle", tiny.path, "--out", "f.npz", "a.mp4").code == 0
    result = run("search", "--bundle", tiny.path, "run", "f.npz", tmp_path / "one" / "f.npz", "--json")
    assert json.loads(result.stdout)["windows"] == 20


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
    assert json.loads(result.stdout)["queries"][0]["results"] == []


def test_files_that_cannot_be_looked_at_fail_alone(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    # A name that is too long stands for a folder that is closed, which it is not for the superuser.
    bad = [tmp_path / f"{'n' * 300}{suffix}" for suffix in (".mp4", ".MKV", ".npz")]
    result = run("search", "--bundle", tiny.path, "run", *bad, videos / "a.mp4", "--json", "--no-merge")
    assert result.code == 1
    document = json.loads(result.stdout)
    assert len(document["queries"][0]["results"]) == 10
    assert {item["path"] for item in document["failed"]} == {str(path) for path in bad}
    assert "3 of 4 files failed." in result.stderr


def test_search_refuses_an_empty_sentence(tiny: Tiny, videos: Path, run: Run) -> None:
    result = run("search", "--bundle", tiny.path, "  ", videos)
    assert (result.code, "the sentence is empty" in result.stderr) == (2, True)


def test_names_with_control_characters_do_not_reach_the_terminal(tiny: Tiny, tmp_path: Path, run: Run) -> None:
    video = make_video(tmp_path / "a\x1b[31m[red].mp4", frames=10)
    result = run("search", "--bundle", tiny.path, "run", video, "--top", 1)
    assert result.code == 0
    assert "\x1b" not in result.stdout
    assert "a\\x1b[31m[red].mp4" in result.stdout


def test_a_bundle_in_another_precision_names_the_option(tmp_path: Path, videos: Path, run: Run) -> None:
    write_tiny_bundle(tmp_path / "half", precisions=["fp16"])
    options = ["--bundle", tmp_path / "half"]
    for arguments in (["search", *options, "cut", videos], ["embed", *options, "--out", tmp_path / "f.npz", videos]):
        result = run(*arguments)
        assert result.code == 1
        assert " graphs in fp16. Ask for that:" in result.stderr
        assert "--precision fp16" in result.stderr
        assert run(*arguments, "--precision", "fp16").code == 0
