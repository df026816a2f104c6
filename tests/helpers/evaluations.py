"""Captions and clips for the tests of evaluation, without a captions file."""

from __future__ import annotations

from pathlib import Path

from milnce.captions import Caption, Captions, Clip
from milnce.video import get_preset

PRESET = get_preset("milnce-native", frames=4, size=32, windows=3)
SENTENCES = ["open the door", "cut the tomato", "pour water", "run", "someone cutting", "a door"]


def videos_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def captions_of(*rows: tuple[Clip, str], queries: set[int] | None = None) -> Captions:
    """Make captions of (clip, sentence) rows; `queries` are the rows that are asked, None for all."""
    clips = {clip: number for number, clip in enumerate(dict.fromkeys(clip for clip, _ in rows))}
    captions = [
        Caption(row, text, clips[clip], query=queries is None or row in queries)
        for row, (clip, text) in enumerate(rows, 1)
    ]
    return Captions(Path("captions.csv"), tuple(clips), tuple(captions), (), ())


def whole(video: str) -> Clip:
    return Clip(video, None, None)
