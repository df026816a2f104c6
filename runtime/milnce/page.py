"""A retrieval evaluation as one HTML file: facts, metrics, and every query with its top videos as small pictures.

The file needs nothing beside it and asks for nothing: it opens from a disk, offline. Titles, captions, file names and
whatever else comes in are anybody's text, so nothing of it is ever markup: outside of scripts it is escaped, inside it
is JSON without a `<`, and the page's script makes text nodes of it. The Content-Security-Policy allows this page's own
script and style by their hashes, pictures that are in the page, and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
import tempfile
import unicodedata
from dataclasses import asdict, dataclass
from importlib import resources
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from milnce.errors import InputError, MilnceError, OutputError
from milnce.files import check_absent, check_writable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import TextIO

SUFFIXES = (".html", ".htm")
_MARK = "$data"  # where in the template the queries and pictures go: written one by one, never held together
_NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?\s*%?|[-\N{EN DASH}\N{EM DASH}]?", re.IGNORECASE)
_SCORE_DIGITS = 7  # all that a float32 has


@dataclass(frozen=True, slots=True)
class ShownVideo:
    """One video under a query.

    Attributes:
        rank: Place in the list sorted by score, from 1.
        video: Its name.
        start_s: Start of the span in seconds, None for the video's start.
        end_s: End of the span in seconds, None for the video's end.
        score: The score, shown with three decimals.
        correct: Whether it is a right one.
        picture: Key into `write_page`'s pictures; None shows that there is none.
    """

    rank: int
    video: str
    start_s: float | None
    end_s: float | None
    score: float
    correct: bool
    picture: str | None


@dataclass(frozen=True, slots=True)
class ShownQuery:
    """One query with the videos to show.

    Attributes:
        caption: The query.
        rank: Rank of the right video, from 1; .5 where it is shared.
        shown: The top few, in order; the right one at the end if it is not among them.
    """

    caption: str
    rank: float
    shown: tuple[ShownVideo, ...]


def write_page(  # every part of the page by its name
    destination: Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    table: tuple[Sequence[str], Sequence[Sequence[str]]],
    queries: Iterable[ShownQuery],
    pictures: Mapping[str, bytes],
    overwrite: bool = False,
) -> None:
    """Write the page under a temporary name and rename it into place, so it is whole or not there.

    Queries are written as they come and pictures are asked for one by one, so memory does not depend on their number
    (but for the keys) if neither is a list.

    Args:
        destination: The file to make, ending in .html or .htm.
        title: Heading of the page.
        facts: Names and values, such as ("model", "s3d").
        table: Headings, and rows of as many cells; the first cell of a row names it.
        queries: In the order to show them.
        pictures: WebP, PNG or JPEG files by key. Only those that a query shows are embedded, each once.
        overwrite: Replace the file if it is there already.

    Raises:
        OutputError: if the suffix is another, the folder is missing or not writable, or the file exists and may not be
            replaced, or cannot be written.
        InputError: if a row is of the wrong length, a rank, score or time is no such thing, or a picture is missing or
            not WebP, PNG or JPEG.
    """
    check_page_destination(destination, overwrite=overwrite)
    before, after = _frame(title, facts, table)
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{destination.name}.", suffix=".tmp", dir=destination.parent
        ) as folder:
            finished = Path(folder, "page.html")
            with finished.open("w", encoding="utf-8", newline="\n") as file:
                file.write(before)
                keys = _write_queries(file, queries)
                _write_pictures(file, keys, pictures)
                file.write(after)
            finished.replace(destination)
    except OSError as error:
        if isinstance(error, MilnceError):  # of the caller's own iterable
            raise
        raise OutputError(f"{destination}: cannot write the page ({error})") from error


def check_page_destination(destination: Path, *, overwrite: bool = False) -> None:
    """Refuse, before any work, what could not be written at its end.

    Raises:
        OutputError: if the suffix is not .html or .htm (so that a slip replaces no other file), the folder is missing
            or not writable, or the destination exists and may not be replaced.
    """
    if destination.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{destination}: suffix {destination.suffix!r} given; {' or '.join(SUFFIXES)} expected")
    check_absent(destination, overwrite=overwrite)
    check_writable(destination)


def _frame(
    title: str, facts: Sequence[tuple[str, str]], table: tuple[Sequence[str], Sequence[Sequence[str]]]
) -> tuple[str, str]:
    """Return what comes before and after the data."""
    asset = resources.files("milnce")
    style, script = (asset.joinpath(f"page.{suffix}").read_text(encoding="utf-8") for suffix in ("css", "js"))
    policy = [
        "default-src 'none'",
        "img-src data:",
        f"style-src '{_digest(style)}'",
        f"script-src '{_digest(script)}'",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    ]
    fields = {
        "policy": "; ".join(policy),
        "title": _text(title),
        "facts": "\n".join(
            f'<div><dt>{_text(name)}</dt><dd dir="auto">{_text(value)}</dd></div>' for name, value in facts
        ),
        "table": _table(*table),
        "style": style,
        "script": script,
    }
    before, _, after = asset.joinpath("page.html").read_text(encoding="utf-8").partition(_MARK)
    return Template(before).substitute(fields), Template(after).substitute(fields)


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    for row in rows:
        if len(row) != len(headings):
            raise InputError(f"table row {list(row)} has {len(row)} cells; {len(headings)} expected: {list(headings)}")
    columns = [[row[number] for row in rows] for number in range(len(headings))]
    kinds = [' class="number"' if all(map(_NUMBER.fullmatch, column)) else "" for column in columns]
    head = "".join(
        f'<th scope="col"{kind}>{_text(heading)}</th>' for heading, kind in zip(headings, kinds, strict=True)
    )
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<th scope="row"{kind}>{_text(cell)}</th>' if number == 0 else f"<td{kind}>{_text(cell)}</td>"
            for number, (cell, kind) in enumerate(zip(row, kinds, strict=True))
        )
        + "</tr>"
        for row in rows
    )
    return f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>"


def _text(text: str) -> str:
    """Escape for HTML, in an element or a quoted attribute."""
    return html.escape(_visible(text))


def _visible(text: str) -> str:
    """Show control characters and undecodable bytes as escapes: HTML has none for them, and UTF-8 neither."""
    return "".join(
        char.encode("unicode_escape").decode() if unicodedata.category(char) in {"Cc", "Cs"} else char for char in text
    )


def _json(value: object) -> str:
    """Return JSON that is safe in a script element: without `<`, neither its end nor a comment can begin."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _write_queries(file: TextIO, queries: Iterable[ShownQuery]) -> dict[str, int]:
    """Write the queries, and return the pictures' keys with the number each goes by in the page."""
    keys: dict[str, int] = {}
    file.write('<script type="application/json" id="queries-data">[')
    for number, query in enumerate(queries):
        file.write(",\n" if number else "\n")
        file.write(_json(_query(query, keys)))
    file.write("\n]</script>\n")
    return keys


def _query(query: ShownQuery, keys: dict[str, int]) -> dict[str, Any]:
    if not math.isfinite(query.rank) or query.rank < 1:
        raise InputError(f"query {query.caption!r}: rank must be a finite number, at least 1; got {query.rank!r}")
    return {
        "caption": _visible(query.caption),
        "rank": float(query.rank),
        "shown": [_video(query.caption, video, keys) for video in query.shown],
    }


def _video(caption: str, shown: ShownVideo, keys: dict[str, int]) -> dict[str, Any]:
    for name, value in (
        ("rank", shown.rank),
        ("score", shown.score),
        ("start_s", shown.start_s),
        ("end_s", shown.end_s),
    ):
        if value is not None and not math.isfinite(value):
            raise InputError(f"query {caption!r}, video {shown.video!r}: {name} must be finite; got {value!r}")
    return {
        **asdict(shown),
        "rank": int(shown.rank),
        "video": _visible(shown.video),
        "score": float(f"{shown.score:.{_SCORE_DIGITS}g}"),
        "start_s": None if shown.start_s is None else float(shown.start_s),
        "end_s": None if shown.end_s is None else float(shown.end_s),
        "correct": bool(shown.correct),
        "picture": None if shown.picture is None else keys.setdefault(shown.picture, len(keys)),
    }


def _write_pictures(file: TextIO, keys: Mapping[str, int], pictures: Mapping[str, bytes]) -> None:
    for key, number in keys.items():
        if key not in pictures:
            raise InputError(f"picture {key!r} is shown by a query and not among the {len(pictures)} pictures given")
        data = pictures[key]
        uri = f"data:{_media_type(key, data)};base64,{base64.b64encode(data).decode()}"
        file.write(f'<script type="application/json" id="picture-{number}">{_json(uri)}</script>\n')


def _media_type(key: str, data: bytes) -> str:
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    raise InputError(f"picture {key!r} begins with {data[:12]!r}; the bytes of a WebP, PNG or JPEG file expected")
