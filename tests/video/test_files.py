"""Finding videos in folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from milnce.errors import InputError
from milnce.video import VIDEO_SUFFIXES, find_videos


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.MKV", "deep/er/c.webm", "notes.txt", ".hidden.mp4", ".cache/d.mp4", "deep/e.gif"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


def test_folders_are_searched_recursively_by_suffix_and_sorted(tree: Path) -> None:
    found = [str(path.relative_to(tree)) for path in find_videos(tree)]
    assert found == ["a.MKV", "b.mp4", "deep/e.gif", "deep/er/c.webm"]


def test_files_are_taken_as_given_in_the_given_order_and_once(tree: Path) -> None:
    named = [tree / "notes.txt", tree / "b.mp4", tree / "missing.mp4", tree / "deep"]
    assert find_videos([*named, tree]) == [
        tree / "notes.txt",
        tree / "b.mp4",
        tree / "missing.mp4",
        tree / "deep" / "e.gif",
        tree / "deep" / "er" / "c.webm",
        tree / "a.MKV",
    ]
    assert find_videos(str(tree / "b.mp4")) == [tree / "b.mp4"]


def test_two_spellings_of_a_path_are_one_file_and_two_links_are_two(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    (tree / "link.mp4").symlink_to(tree / "b.mp4")
    assert find_videos(["b.mp4", tree / "b.mp4", tree / "deep" / ".." / "b.mp4", "deep", tree, tree / "link.mp4"]) == [
        Path("b.mp4"),
        Path("deep/e.gif"),
        Path("deep/er/c.webm"),
        tree / "a.MKV",
        tree / "link.mp4",
    ]


def test_a_name_that_is_too_long_is_taken_as_given_too(tmp_path: Path) -> None:
    assert find_videos([tmp_path / ("n" * 300)]) == [tmp_path / ("n" * 300)]


def test_nothing_to_do_is_an_error_that_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"no videos in .*; looked for files ending in .*\.avi, \.gif, .*\.mp4, \.webm"
    ):
        find_videos([tmp_path])
    with pytest.raises(InputError, match="no videos: the list of paths is empty; give files or folders"):
        find_videos([])


def test_a_folder_that_cannot_be_read_is_named(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refuse(path: str) -> object:  # root may read everything, so the mode would not do
        if Path(path).name == "er":
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(
        InputError, match=r"folder .*/deep/er cannot be read \(Permission denied\); make it readable, or"
    ):
        find_videos(tree)


def test_a_link_in_a_circle_ends(tree: Path) -> None:
    (tree / "deep" / "round").symlink_to(tree, target_is_directory=True)
    assert len(find_videos(tree)) == 4


def test_every_suffix_of_the_six_containers_is_known() -> None:
    assert {".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif"} <= VIDEO_SUFFIXES
    assert all(Path(f"x{suffix}").suffix == suffix.lower() for suffix in VIDEO_SUFFIXES)
