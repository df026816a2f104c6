"""Windows of a file as a batch wants them: with the clips that the model need not see twice marked."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Protocol, TypeVar

from milnce.errors import VideoError
from milnce.video.container import nothing

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from milnce.video import Preset
    from milnce.video.windows import PictureWindow


class _Timed(Protocol):
    @property
    def start_s(self) -> float: ...

    @property
    def end_s(self) -> float: ...


AnyWindow = TypeVar("AnyWindow", bound=_Timed)


def windows_of(
    path: Path,
    preset: Preset,
    span_s: tuple[float | None, float | None],
    *,
    threads: int = 0,
    on_progress: Callable[[], None] = nothing,
) -> Generator[tuple[PictureWindow, bool], None, None]:
    """Decode a file.

    Args:
        path: The file.
        preset: How frames are sampled and resized.
        span_s: Where to start and to stop, in seconds; None is the file's beginning and its end.
        threads: Threads of the decoder; 0 for one a core.
        on_progress: Called whenever something was read or decoded.

    Returns:
        Windows, and whether each is a repetition of the one before it, as in a video shorter than a window.

    Raises:
        VideoError: if the file cannot be decoded, or has no window there.
    """
    from milnce.video import windows as video  # noqa: PLC0415  # so that whoever replaces its function is heeded

    windows = video.iter_picture_windows(
        path, preset, start_s=span_s[0], end_s=span_s[1], threads=threads, on_progress=on_progress
    )
    return marked(path, windows)


def marked(path: Path, windows: Generator[AnyWindow, None, None]) -> Generator[tuple[AnyWindow, bool], None, None]:
    """Mark the windows that are the same as the one before.

    Args:
        path: Their file.
        windows: Closed with this iterator.

    Yields:
        Windows, and whether each is a repetition.

    Raises:
        VideoError: if there is none.
    """
    last_s: tuple[float, float] | None = None
    with closing(windows):
        for window in windows:
            times_s = (window.start_s, window.end_s)
            yield window, times_s == last_s
            last_s = times_s
    if last_s is None:
        raise VideoError(f"{path}: no window lies between the given start and end; widen them")
