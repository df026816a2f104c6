"""Captions of clips, from a CSV or Parquet file with whatever column names its publisher chose."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from numbers import Number
from typing import TYPE_CHECKING, Any

from milnce.caption_files import CaptionFile
from milnce.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from milnce.caption_files import Row

_COLUMN_IN_BRACES = re.compile(r"\{([^{}]+)\}")
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class Clip:
    """A stretch of a video.

    Attributes:
        video: The video's name as the captions give it: a path or its end, with or without suffix.
        start_s: Where it starts, in seconds; None is the video's start, and what `read_captions` makes of 0.
        end_s: Where it ends, in seconds; None is the video's end.
    """

    video: str
    start_s: float | None
    end_s: float | None

    def __str__(self) -> str:
        if self.start_s is None and self.end_s is None:
            return self.video
        end = "the end" if self.end_s is None else f"{self.end_s:g} s"
        return f"{self.video} [{self.start_s or 0:g} s to {end}]"


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence about one clip.

    Attributes:
        row: The file's row it is from, 1 for the first under the header; blank lines count.
        text: The sentence.
        clip: Number of its clip in `Captions.clips`.
        query: Whether it is asked; if not, it only adds its clip to the candidates.
    """

    row: int
    text: str
    clip: int
    query: bool


@dataclass(frozen=True, slots=True)
class ExcludedRow:
    """A row that is left out, 1 for the first under the header, and why."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class Captions:
    """What a captions file says. Several captions may share a clip.

    Attributes:
        path: The file.
        clips: The clips, each once, in the order of their first captions.
        captions: The captions, in the file's order.
        excluded: Rows that are left out because something is wrong with them.
        times: The columns that the clips' times are from; empty when the clips are whole videos.
    """

    path: Path
    clips: tuple[Clip, ...]
    captions: tuple[Caption, ...]
    excluded: tuple[ExcludedRow, ...]
    times: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CaptionColumns:
    """Which columns of a captions file hold what, and which of its rows count.

    The published lists, with these and the other fields left alone:

    - YouCook2, `validation_youcook.csv`: video="validation/{task}/{video_id}", caption="text"
    - MSR-VTT, `msrvtt_test.csv`: video="video_id", caption="sentence"
    - MSVD, the corpus' CSV: video="{VideoID}_{Start}_{End}", caption="Description", where=(("Language", "English"),).
      Its clips are files of their own, so its Start and End are part of the name, and no times.

    Attributes:
        video: The column with the video's name; or, with columns in braces, a pattern for it.
        caption: The column with the sentence.
        start: The column with the start in seconds. None takes "start" if there is such a column, else whole videos.
        end: The column with the end in seconds; None as for `start`. One of the two alone must be named.
        where: (column, value) pairs: rows that differ in one of them are not read.
        queries: (column, value) pairs: only captions of rows with all of them are asked; the clips of the others are
            candidates all the same.
    """

    video: str = "video"
    caption: str = "caption"
    start: str | None = None
    end: str | None = None
    where: tuple[tuple[str, str], ...] = ()
    queries: tuple[tuple[str, str], ...] = ()


def read_captions(
    path: Path,
    columns: CaptionColumns | None = None,
    *,
    skip_bad_rows: bool = False,
    keep_duplicates: bool = False,
) -> Captions:
    """Read a captions file.

    A row is bad if it lacks cells, its video or caption is empty, a time is no number of seconds of at least 0, its
    start is not before its end, or clip and caption are those of an earlier row. An empty cell for a time leaves that
    side open.

    Args:
        path: The file: .csv (commas), .tsv (tabs), both UTF-8 with a header; or .parquet.
        columns: Which columns hold what; None for "video", "caption" and, if there, "start" and "end".
        skip_bad_rows: Leave bad rows out and list them in `excluded`, instead of refusing the file.
        keep_duplicates: A row that repeats clip and caption of another is a caption of its own, and no bad row.

    Raises:
        InputError: if the file cannot be read, lacks a column, has bad rows that are not to be skipped, or no row or
            no query is left.
        MissingDependencyError: if it is Parquet and pyarrow is not installed.
    """
    reader = _Reader(CaptionFile(path), columns or CaptionColumns(), keep_duplicates=keep_duplicates)
    for row in reader.file.rows(reader.needed):
        reader.add(row)
    if reader.excluded and not skip_bad_rows:
        raise InputError(_refusal(path, reader.excluded))
    reader.check_filters()
    if not any(caption.query for caption in reader.captions):
        raise InputError(f"{path}: no caption is left to ask; {len(reader.excluded)} bad rows are left out")
    return Captions(path, tuple(reader.clips), tuple(reader.captions), tuple(reader.excluded), reader.times)


def _refusal(path: Path, excluded: Sequence[ExcludedRow]) -> str:
    lines = [f"  row {item.row}: {item.reason}" for item in excluded[:_SHOWN]]
    if len(excluded) > _SHOWN:
        lines.append(f"  and {len(excluded) - _SHOWN} more")
    many = f"{len(excluded)} row{'s' if len(excluded) > 1 else ''}"
    cure = "Correct them, or leave them out with --skip-bad-rows (skip_bad_rows=True), which lists them"
    if any("same clip and caption" in item.reason for item in excluded):
        cure += "; --keep-duplicates (keep_duplicates=True) counts repeated rows as captions of their own"
    return "\n".join([f"{path}: {many} cannot be used (the first row under the header is row 1):", *lines, cure])


@dataclass(slots=True)
class _Reader:
    """Turns rows into clips and captions."""

    file: CaptionFile
    names: CaptionColumns
    keep_duplicates: bool = field(kw_only=True)
    clips: dict[Clip, int] = field(default_factory=dict)
    captions: list[Caption] = field(default_factory=list)
    excluded: list[ExcludedRow] = field(default_factory=list)
    needed: set[str] = field(init=False)
    times: tuple[str, ...] = field(init=False)
    _start: str | None = field(init=False)
    _end: str | None = field(init=False)
    _video_columns: list[str] = field(init=False)
    _first_row: dict[tuple[Clip, str], int] = field(default_factory=dict)
    _values: dict[str, dict[str, None]] = field(default_factory=dict)
    _read: int = 0

    def __post_init__(self) -> None:
        names, there = self.names, self.file.columns
        self._start = names.start or ("start" if "start" in there else None)
        self._end = names.end or ("end" if "end" in there else None)
        self.times = tuple(filter(None, (self._start, self._end)))
        self._video_columns = _COLUMN_IN_BRACES.findall(names.video) or [names.video]
        self.needed = {*self._video_columns, names.caption, *self.times}
        options = "with --video-column, --caption-column, --start-column and --end-column"
        filters = {column for column, _ in (*names.where, *names.queries)}
        if self.needed <= set(there):
            options = "in --where and --queries"
        self.needed |= filters
        missing = sorted(self.needed - set(there))
        if missing:
            names_there = f"there are {', '.join(there)}" if len(there) > 1 else f"there is only {there[0]!r}"
            raise InputError(
                f"{self.file.path}: no column {', '.join(missing)}; {names_there}. "
                f"{self.file.delimiter_hint or f'Name the right ones {options}'}"
            )
        if len(self.times) == 1 and names.start is None and names.end is None:
            other = "end" if self._start else "start"
            raise InputError(
                f"{self.file.path}: there is a column {self.times[0]} and none named {other}. Name the one with "
                f"--{other}-column; or name --{self.times[0]}-column {self.times[0]}, if {other}s are left open"
            )

    def add(self, row: Row) -> None:
        if row.fault is None and not self._matches(row.cells, self.names.where):
            return
        self._read += 1
        reason = row.fault or self._add(row)
        if reason is not None:
            self.excluded.append(ExcludedRow(row.number, reason))

    def _add(self, row: Row) -> str | None:
        """Take a row, or return why it cannot be taken."""
        for name in (*self._video_columns, self.names.caption):
            cell = row.cells[name]
            if cell is not None and not isinstance(cell, (str, Number)):
                return f"{name} is a {type(cell).__name__}; text expected"
        video, text = self._video(row.cells), _text(row.cells[self.names.caption])
        if video is None or not text:
            return f"its {'video' if video is None else 'caption'} is empty"
        times: list[float | None] = []
        for column in (self._start, self._end):
            value = None if column is None else row.cells[column]
            seconds = _seconds(value)
            if seconds is not None and not 0 <= seconds < math.inf:  # also for NaN, which stands for no number
                return f"{column} is {value!r}; a number of seconds of at least 0 expected"
            times.append(seconds)
        clip = Clip(video, times[0] or None, times[1])  # a start of 0 is the video's start, so that they are one clip
        if clip.end_s is not None and clip.end_s <= (clip.start_s or 0):
            return f"its start {clip.start_s or 0:g} s is not before its end {clip.end_s:g} s"
        first = self._first_row.setdefault((clip, text), row.number)
        if first != row.number and not self.keep_duplicates:
            return f"the same clip and caption as row {first}"
        query = self._matches(row.cells, self.names.queries)
        self.captions.append(Caption(row.number, text, self.clips.setdefault(clip, len(self.clips)), query))
        return None

    def _video(self, cells: Mapping[str, Any]) -> str | None:
        parts = {column: _text(cells[column]) for column in self._video_columns}
        if not all(parts.values()):
            return None
        if self._video_columns == [self.names.video]:
            return parts[self.names.video]
        return _COLUMN_IN_BRACES.sub(lambda match: parts[match[1]], self.names.video)

    def _matches(self, cells: Mapping[str, Any], wanted: Sequence[tuple[str, str]]) -> bool:
        for column, _ in wanted:
            seen = self._values.setdefault(column, {})
            if len(seen) <= _SHOWN:
                seen[_text(cells[column])] = None
        return all(_text(cells[column]) == value for column, value in wanted)

    def check_filters(self) -> None:
        """Refuse filters that leave nothing, and say which values there are."""
        asked = any(caption.query for caption in self.captions)
        for option, wanted, left in (
            ("--where", self.names.where, self._read),
            ("--queries", self.names.queries, asked),
        ):
            if wanted and not left:
                pairs = " and ".join(f"{column}={value}" for column, value in wanted)
                known = "; ".join(f"{column} has {self._shown(column)}" for column, _ in wanted)
                raise InputError(f"{self.file.path}: no row with {pairs}, as {option} asks for; {known}")
        if not self._read:
            raise InputError(f"{self.file.path}: no rows under the header")

    def _shown(self, column: str) -> str:
        values = [*self._values.get(column, {})]
        return ", ".join(map(repr, values[:_SHOWN])) + (", ..." if len(values) > _SHOWN else "")


def _text(value: object) -> str:
    # NaN is how a table without a cell's text reaches Parquet; it must not become the word "nan".
    return "" if value is None or value != value else str(value).strip()  # noqa: PLR0124  # only NaN differs from itself


def _seconds(value: object) -> float | None:
    """Return a cell's number, None for an empty cell, and NaN for what is no number."""
    text = "" if value is None else str(value).strip()
    if not text:
        return None
    try:
        return math.nan if "_" in text else float(text)  # Python's 1_0 is nobody's 10
    except ValueError:
        return math.nan
