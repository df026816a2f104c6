"""Finding video files among paths and folders."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from milnce.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterable

# Suffixes of the containers that `milnce.video.container` opens.
VIDEO_SUFFIXES = frozenset({".3gp", ".avi", ".gif", ".m4v", ".mkv", ".mov", ".mp4", ".webm"})


def find_videos(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List video files: given files as they are, folders searched recursively by suffix.

    A file that is named is taken whatever its suffix, and even when it does not exist: opening it says what is wrong
    with it, and the others go on. In folders, hidden files and folders are passed over and links to folders are not
    followed. A file reached twice is listed once, at its first place and as it was spelt there.

    Args:
        paths: Files and folders, or one of them.

    Returns:
        Paths in the order given; each folder's files sorted by path.

    Raises:
        InputError: if there is nothing to do (no paths, or folders without a video), or a folder cannot be read.
    """
    given = [Path(path) for path in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    if not given:
        raise InputError("no videos: the list of paths is empty; give files or folders")
    found: dict[str, Path] = {}
    for path in given:
        # Path.is_dir raises where a name is too long, or in a folder that is closed; opening the file says so.
        for video in _videos_under(path) if os.path.isdir(path) else [path]:  # noqa: PTH112
            found.setdefault(os.path.abspath(video), video)  # noqa: PTH100 - two links to a file are two videos
    if not found:
        folders = ", ".join(map(str, given))
        raise InputError(f"no videos in {folders}; looked for files ending in {', '.join(sorted(VIDEO_SUFFIXES))}")
    return list(found.values())


def _videos_under(folder: Path) -> list[Path]:
    videos = []
    for parent, folders, names in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        videos += [
            Path(parent, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in VIDEO_SUFFIXES
        ]
    return sorted(videos)


def _refuse_unreadable(error: OSError) -> NoReturn:
    raise InputError(
        f"folder {error.filename} cannot be read ({error.strerror}); make it readable, or name the files to use"
    ) from error
