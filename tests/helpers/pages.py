"""Pages with known content, for the tests of pages: those that read the file and those that open it in a browser."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from PIL import Image

from milnce.page import ShownQuery, ShownVideo, write_page

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

RED, BLUE = (220, 20, 20), (20, 20, 220)

# What somebody may put into a caption or a file name. Each would set window.ran if any of it were run as a script.
HOSTILE = (
    "</script><script>window.ran = 1</script>",
    "<!--<script>window.ran = 1",
    "<img src=x onerror='window.ran = 1'>",
    '" onmouseover="window.ran = 1" x=\'',
    "' autofocus onfocus='window.ran = 1",
    "javascript:window.ran=1",
    "${window.ran = 1} $title $data {{7*7}}",
    "]]> &lt;b&gt; &amp; \\u003c \\",
    "\u05e9\u05dc\u05d5\u05dd \u202eexe.4pm",
    "\U0001f469\u200d\U0001f373 cuts a \U0001f345, \u4f60\u597d, e\u0301",
    "line\u2028separator",
)


def loop(
    first: tuple[int, int, int] = RED, second: tuple[int, int, int] = BLUE, size: tuple[int, int] = (32, 18)
) -> bytes:
    """Return an animated WebP of two plain pictures, 60 ms each."""
    file = io.BytesIO()
    pictures = [Image.new("RGB", size, colour) for colour in (first, second)]
    pictures[0].save(file, "WEBP", save_all=True, append_images=pictures[1:], duration=60, loop=0, lossless=True)
    return file.getvalue()


def still(kind: str) -> bytes:
    """Return a plain picture as a PNG or JPEG file."""
    file = io.BytesIO()
    Image.new("RGB", (32, 18), RED).save(file, kind)
    return file.getvalue()


def video(rank: int, **changes: object) -> ShownVideo:
    """Return a video at a place; every other field by its name."""
    fields: dict[str, object] = {
        "rank": rank,
        "video": f"clip{rank}.mp4",
        "start_s": 1.6 * rank,
        "end_s": 1.6 * rank + 3.2,
        "score": 10 - rank / 8,
        "correct": False,
        "picture": "loop",
        **changes,
    }
    return ShownVideo(**fields)  # type: ignore[arg-type]  # by name, as the class says


def query(caption: str, rank: float, videos: int = 5) -> ShownQuery:
    """Return a query with its top videos; the right one among them or after them, as evaluation gives it."""
    shown = [video(place, correct=place == int(rank)) for place in range(1, videos + 1)]
    if rank >= videos + 1:
        shown.append(video(int(rank), correct=True))
    return ShownQuery(caption, rank, tuple(shown))


RANKS = (1, 1, 1.5, 2, 4, 5.5, 6, 10.5, 11, 300)  # as R@1, R@5 and R@10 count: two, six and eight of ten

TABLE = (("direction", "R@1", "source"), (("text to video", "20.0", "here"), ("video to text", "-", "here")))


def write(
    destination: Path,
    queries: Iterable[ShownQuery],
    *,
    title: str = "Retrieval",
    facts: Sequence[tuple[str, str]] = (("Model", "tiny"), ("Date", "2026-01-31")),
    table: tuple[Sequence[str], Sequence[Sequence[str]]] = TABLE,
    pictures: Mapping[str, bytes] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a page with a small table; return its path."""
    write_page(
        destination,
        title=title,
        facts=facts,
        table=table,
        queries=queries,
        pictures={"loop": loop()} if pictures is None else pictures,
        overwrite=overwrite,
    )
    return destination
