"""Which clips calibrate and which measure: different ones, of different videos, the same for the same seed."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.quantizing import write_videos
from helpers.videos import truncate
from milnce.errors import InputError, OutputError, VideoError
from milnce.video import get_preset, iter_windows
from milnce_convert import quantize_clips
from milnce_convert.demo.clips import encode
from milnce_convert.quantize_clips import Drawn, draw_clips

PRESET = get_preset("milnce-native", frames=4, size=32)  # windows of 0.4 s


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with eight videos of 2 s."""
    return write_videos(tmp_path_factory.mktemp("videos"))


def draw(videos: Path, folder: Path, **changes: Any) -> Drawn:  # noqa: ANN401 - keywords of draw_clips
    options: dict[str, Any] = {"calibration": 16, "held_out": 8, "seed": 0, **changes}
    folder.mkdir(exist_ok=True)
    return draw_clips([videos], options.pop("preset", PRESET), folder=folder, **options)


def test_the_parts_share_no_video_and_have_what_was_wanted(videos: Path, tmp_path: Path) -> None:
    drawn = draw(videos, tmp_path / "a")
    assert drawn.calibration.clips.shape == (16, 4, 32, 32, 3)
    assert drawn.held_out.clips.shape == (8, 4, 32, 32, 3)
    assert set(drawn.calibration.videos).isdisjoint(drawn.held_out.videos)
    assert len(drawn.calibration.videos) + len(drawn.held_out.videos) == 8
    assert set(drawn.held_out_files) == set(drawn.held_out.videos)
    assert drawn.failed == ()
    everything = np.concatenate([drawn.calibration.clips, drawn.held_out.clips]).reshape(24, -1)
    assert len(np.unique(everything, axis=0)) == 24


def test_clips_are_windows_as_the_preset_samples_them(videos: Path, tmp_path: Path) -> None:
    drawn = draw(videos, tmp_path / "a")
    path = drawn.calibration.videos[0]
    count = -(-16 // 5)  # its share: five of the eight videos calibrate
    windows = list(iter_windows(path, get_preset(PRESET, windows=count)))
    for clip, window in zip(drawn.calibration.clips, windows, strict=False):
        np.testing.assert_array_equal(clip, window.clip)
    assert len(windows) == count


def test_a_seed_decides_and_another_one_decides_otherwise(videos: Path, tmp_path: Path) -> None:
    first, again, other = (draw(videos, tmp_path / name, seed=seed) for name, seed in (("a", 3), ("b", 3), ("c", 4)))
    np.testing.assert_array_equal(first.calibration.clips, again.calibration.clips)
    np.testing.assert_array_equal(first.held_out.clips, again.held_out.clips)
    assert first.held_out_files != other.held_out_files


def shared_clips(drawn: Drawn) -> int:
    """Return how many clips are in both parts."""
    calibration, held_out = ({clip.tobytes() for clip in part.clips} for part in (drawn.calibration, drawn.held_out))
    return len(calibration & held_out)


@pytest.mark.parametrize("seed", range(3))
def test_a_copied_video_is_on_one_side_with_its_copies(videos: Path, tmp_path: Path, seed: int) -> None:
    folder = shutil.copytree(videos, tmp_path / "videos")
    for path in sorted(videos.iterdir()):
        shutil.copy(path, folder / f"copy-of-{path.name}")
    drawn = draw(folder, tmp_path / "a", calibration=24, held_out=24, seed=seed)
    assert min(len(drawn.calibration), len(drawn.held_out)) >= 8
    assert shared_clips(drawn) == 0
    sides = [
        {path.name.removeprefix("copy-of-") for path in part}
        for part in (drawn.calibration.videos, drawn.held_out_files)
    ]
    assert sides[0].isdisjoint(sides[1])
    assert sum(path.name.startswith("copy-of-") for path in drawn.held_out_files) == len(sides[1])


def test_clips_of_a_video_in_another_file_are_not_held_out_when_they_calibrate(videos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(videos, tmp_path / "videos")
    for path in sorted(videos.iterdir()):
        # Other bytes, the same pixels: as a file that was written again with other tags. "free" is a box without use.
        (folder / f"again-{path.name}").write_bytes(path.read_bytes() + b"\x00\x00\x00\x08free")
    drawn = draw(folder, tmp_path / "a", calibration=24, held_out=24)
    names = [
        {path.name.removeprefix("again-") for path in part} for part in (drawn.calibration.videos, drawn.held_out_files)
    ]
    assert names[0] & names[1]  # the bytes do not say that they are the same
    assert shared_clips(drawn) == 0


def test_copies_of_one_video_are_one_video(tmp_path: Path) -> None:
    write_videos(tmp_path / "one", 1, frames=120)
    for number in range(3):
        shutil.copy(tmp_path / "one" / "0.mp4", tmp_path / "one" / f"copy{number}.mp4")
    drawn = draw(tmp_path / "one", tmp_path / "a")
    assert drawn.calibration.videos == drawn.held_out_files == (tmp_path / "one" / "0.mp4",)
    assert shared_clips(drawn) == 0


def fail_half_way(monkeypatch: pytest.MonkeyPatch, fallen: Path) -> None:
    """Let the decoding of one video fail after its first window."""

    def failing(path: Path, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as the original
        windows = iter_windows(path, *arguments, **options)
        yield next(windows)
        if path == fallen:
            raise VideoError(f"{path}: damaged half-way")
        yield from windows

    monkeypatch.setattr(quantize_clips, "iter_windows", failing)


def test_a_video_that_fails_half_way_does_not_keep_its_clips_from_another(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(videos, tmp_path / "videos")
    fallen = draw(folder, tmp_path / "honest").calibration.videos[0]
    shutil.copy(fallen, folder / "copy.mp4")
    fail_half_way(monkeypatch, fallen)
    drawn = draw(folder, tmp_path / "a", calibration=40, held_out=40)
    assert [path for path, _ in drawn.failed] == [fallen]
    part = drawn.calibration if folder / "copy.mp4" in drawn.calibration.videos else drawn.held_out
    assert folder / "copy.mp4" in part.videos
    first = next(iter_windows(fallen, get_preset(PRESET, windows=4))).clip
    assert any(np.array_equal(clip, first) for clip in part.clips)


def test_only_as_many_videos_are_decoded_as_clips_are_wanted(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Path] = []

    def watched(path: Path, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - as the original
        opened.append(path)
        return iter_windows(path, *arguments, **options)

    monkeypatch.setattr(quantize_clips, "iter_windows", watched)
    many = write_videos(tmp_path / "many", 40, frames=6)
    drawn = draw(many, tmp_path / "a", calibration=8, held_out=8)
    assert len(opened) == len(set(opened)) == 16
    assert (len(drawn.calibration), len(drawn.held_out)) == (8, 8)
    assert videos.is_dir()


def test_one_long_video_is_split_in_the_middle(tmp_path: Path) -> None:
    write_videos(tmp_path / "one", 1, frames=120)
    drawn = draw(tmp_path / "one", tmp_path / "a")
    path = tmp_path / "one" / "0.mp4"
    assert (drawn.calibration.videos, drawn.held_out.videos) == ((path,), (path,))
    whole = [window.clip for window in iter_windows(path, get_preset(PRESET, windows=None, stride_frames=1))]
    half = len(whole) // 2

    def place(clip: Any) -> int:  # noqa: ANN401 - an array
        return min(range(len(whole)), key=lambda index: int(np.abs(whole[index].astype(int) - clip).sum()))

    assert max(map(place, drawn.calibration.clips)) <= half + 1
    assert min(map(place, drawn.held_out.clips)) >= half - 1


def test_held_out_windows_do_not_overlap_while_those_that_calibrate_may(videos: Path, tmp_path: Path) -> None:
    drawn = draw(videos, tmp_path / "a", calibration=40, held_out=40)
    room = int(2.0 / 0.4)  # windows side by side in a video
    assert len(drawn.held_out) <= room * len(drawn.held_out.videos) < 40
    assert len(drawn.calibration) == 40


def test_a_video_that_fails_is_named_and_the_others_fill_its_place(videos: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(videos, tmp_path / "videos")
    truncate(folder / "2.mp4", 0.6)
    (folder / "5.mp4").write_bytes(b"no video")
    drawn = draw(folder, tmp_path / "a")
    assert sorted(path.name for path, _ in drawn.failed) == ["2.mp4", "5.mp4"]
    used = {path.name for path in (*drawn.calibration.videos, *drawn.held_out.videos)}
    assert used.isdisjoint({"2.mp4", "5.mp4"})
    assert len(used) == 6
    assert len(drawn.calibration) >= 12  # those decoded after one that failed give more; nothing comes after the last


def test_nothing_is_left_of_a_video_that_fails_half_way(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = draw(videos, tmp_path / "honest")
    fallen = honest.calibration.videos[0]
    fail_half_way(monkeypatch, fallen)
    drawn = draw(videos, tmp_path / "a")
    assert [path for path, _ in drawn.failed] == [fallen]
    assert fallen not in drawn.calibration.videos
    first = next(iter_windows(fallen, get_preset(PRESET, windows=4))).clip
    assert not any(np.array_equal(clip, first) for clip in drawn.calibration.clips)
    assert len(drawn.calibration) == 16


def test_videos_that_all_fail_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.mp4").write_bytes(b"no video %d" % number)
    with pytest.raises(InputError) as caught:
        draw(folder, tmp_path / "a")
    text = str(caught.value)
    assert text.startswith("12 videos gave 0 different calibration clips; at least 8 needed. Give more videos")
    assert "12 of them could not be decoded:\n  - " in text
    assert text.endswith("  - and 2 more")
    assert len([line for line in text.splitlines() if ".mp4" in line]) == 10


def test_videos_that_are_all_the_same_are_too_few(tmp_path: Path) -> None:
    folder = tmp_path / "videos"
    folder.mkdir()
    for number in range(10):
        encode(folder / f"{number}.mp4", np.full((20, 64, 96, 3), 90, np.uint8), 10)
    with pytest.raises(InputError, match="10 videos gave 1 different calibration clips; at least 8 needed"):
        draw(folder, tmp_path / "a")


def test_folders_without_videos_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no videos in"):
        draw(tmp_path / "empty", tmp_path / "a")


def test_a_full_disk_is_said_and_not_taken_for_a_video_that_fails(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Disk:
        """A file on a full disk."""

        write = full

        def seek(self, _: int) -> None: ...

        def close(self) -> None: ...

    opened = Path.open
    monkeypatch.setattr(Path, "open", lambda path, *rest: Disk() if path.suffix == ".clips" else opened(path, *rest))
    text = r"cannot hold the clips \(No space left on device\); make room there, or set TMPDIR"
    with pytest.raises(OutputError, match=text):
        draw(videos, tmp_path / "a")
