"""The sample videos of `make demo`, and the clip sets of `milnce eval`."""

from __future__ import annotations

import csv
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest

from milnce.video import iter_windows, probe_video
from milnce_convert.demo.clips import CAPTIONS_FILE, SAMPLING, write_set
from milnce_convert.demo.concepts import combinations
from milnce_convert.demo.samples import CLIPS, QUESTIONS, SCENES, SCENES_FILE, name_of, write_samples

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray


def test_no_sample_shows_what_the_model_was_trained_on() -> None:
    assert all(combination.held_out for combination in (*CLIPS, *SCENES))
    assert len(set(CLIPS)) == len(CLIPS)
    assert set(QUESTIONS.values()) <= {*CLIPS, *SCENES}
    assert any(answer in SCENES for answer in QUESTIONS.values())


def test_samples_are_clips_of_both_kinds_and_a_longer_video(tmp_path: Path) -> None:
    write_samples(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {SCENES_FILE, *map(name_of, CLIPS)}
    assert {path.suffix for path in tmp_path.iterdir()} == {".mp4", ".gif"}
    assert 13 < (probe_video(tmp_path / SCENES_FILE).duration_s or 0) < 14.5
    before = (tmp_path / SCENES_FILE).read_bytes()
    write_samples(tmp_path)
    assert (tmp_path / SCENES_FILE).read_bytes() == before


def test_a_set_lists_every_clip_with_its_captions(tmp_path: Path) -> None:
    chosen = combinations()[:6]
    write_set(tmp_path, chosen, seed=5, per_combination=2, captions=3)
    with (tmp_path / CAPTIONS_FILE).open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 * 2 * 3
    videos = sorted({row["video"] for row in rows})
    assert videos == sorted(path.name for path in tmp_path.iterdir() if path.name != CAPTIONS_FILE)
    for row in rows:
        combination = chosen[int(row["video"][:5]) // 2]
        assert (row["shape"], row["colour"], row["action"]) == combination
        assert row["split"] == ("unseen" if combination.held_out else "trained")
    first, second = (next(iter_windows(tmp_path / video, SAMPLING)).clip for video in videos[:2])
    assert (first != second).any(), "two clips of a combination differ"


def test_a_set_follows_its_seed(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("again", 1), ("b", 2)):
        write_set(tmp_path / name, combinations()[:2], seed=seed)

    def captions(name: str) -> str:
        return (tmp_path / name / CAPTIONS_FILE).read_text(encoding="utf-8")

    def clip(name: str) -> NDArray[np.uint8]:
        return next(iter_windows(min((tmp_path / name).glob("00000.*")), SAMPLING)).clip

    assert captions("a") == captions("again") != captions("b")
    np.testing.assert_array_equal(clip("a"), clip("again"))
    assert (clip("a") != clip("b")).any()


def test_neither_needs_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from milnce_convert.demo import clips, samples\n"
        f"samples.write_samples(Path({str(tmp_path)!r}))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert (tmp_path / SCENES_FILE).is_file()


@pytest.mark.parametrize("module", ["samples", "clips"])
def test_a_folder_that_cannot_be_made_is_one_line(module: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", f"milnce_convert.demo.{module}", "--out", str(tmp_path / "file")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
