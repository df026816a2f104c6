"""The file of a search index: embeddings of whole videos by the hash of their bytes, in one SQLite database.

Tables: `meta` says what made the embeddings, and all of a file have the same makers; `files` says which bytes lay at
which path, with the size and time that they were seen with; `contents` and `windows` hold what those bytes gave, a
thousand windows a row: times as float64 pairs and embeddings as float32, little-endian, under a CRC-32. Bytes that
move keep their embeddings. Every change is one transaction: a process that is killed leaves the last whole state.
"""

from __future__ import annotations

import os
import sqlite3
import zlib
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import InputError, OutputError, SearchIndexError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from numpy.typing import NDArray

APPLICATION_ID = int.from_bytes(b"mnce", "big")  # in the header of the database, where `file` and others look
FORMAT_VERSION = 1

# Windows of a row: 2 MiB at full width, which is what reading takes, however long a video is.
CHUNK_WINDOWS = 1024
# How long another process may take over one video's commit before it is an error.
BUSY_S = 30.0

_SCHEMA = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
    path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, sha256 TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX files_sha256 ON files (sha256);
CREATE TABLE contents (id INTEGER PRIMARY KEY, sha256 TEXT NOT NULL UNIQUE, windows INTEGER NOT NULL);
CREATE TABLE windows (
    content INTEGER NOT NULL, chunk INTEGER NOT NULL, spans_s BLOB NOT NULL, embedding BLOB NOT NULL,
    crc32 INTEGER NOT NULL, PRIMARY KEY (content, chunk)
)
"""
_SPANS, _EMBEDDING = np.dtype("<f8"), np.dtype("<f4")
_ANEW = "delete it and search again, which embeds the videos anew"


@dataclass(frozen=True, slots=True)
class IndexMakers:
    """What makes the embeddings of an index: two that differ in any of these are never mixed.

    Another backend in the same precision is no difference.

    Attributes:
        model_digest: The bundle's digest of weights and vocabulary.
        preset_digest: Digest of everything in the preset that changes pixels or times.
        preset: The preset for people.
        precision: Precision the model ran in, such as "fp32".
        width: Width of an embedding.
    """

    model_digest: str
    preset_digest: str
    preset: str
    precision: str
    width: int

    def to_rows(self) -> dict[str, str]:
        """Return what the table `meta` holds."""
        return {name: str(value) for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What a file was when it was last looked at.

    Attributes:
        size: Bytes.
        mtime_ns: Time of the last change, in nanoseconds.
        sha256: Hex digest of its bytes.
    """

    size: int
    mtime_ns: int
    sha256: str


class IndexFile:
    """Opens an index, or makes an empty one, and reads and writes its records. Use it in a `with` block.

    Args:
        path: The file; its folder must be there.
        makers: What makes the embeddings.

    Raises:
        SearchIndexError: if the file is damaged, no index, newer than this release, or has other makers.
        OutputError: if it cannot be written.
    """

    def __init__(self, path: Path, makers: IndexMakers) -> None:
        self.path = path
        self.width = makers.width
        # Methods of Path raise where they may not look, or a name is too long; SQLite says that it cannot open those.
        if os.path.exists(path) and not os.path.isfile(path):  # noqa: PTH110, PTH113
            raise OutputError(f"{path}: is no file; name a file for the search index")
        if not os.path.isdir(path.parent):  # noqa: PTH112
            raise OutputError(f"{path.parent}: no such folder; make it first")
        with self._errors():
            self._database = sqlite3.connect(path, timeout=BUSY_S, isolation_level=None)
        try:
            with self._errors():
                self._open(makers)
        except BaseException:
            self._database.close()
            raise

    def __enter__(self) -> IndexFile:  # noqa: PYI034  # typing.Self is not in Python 3.10
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def paths(self) -> list[tuple[bytes, str]]:
        """Return absolute path and sha256 of every file."""
        with self._errors():
            rows = self._database.execute("SELECT path, sha256 FROM files ORDER BY path").fetchall()
        if not all(isinstance(path, bytes) for path, _ in rows):
            raise self._damaged("a path is of the wrong kind")
        return rows

    def record(self, path: bytes) -> FileRecord | None:
        """Return what is known of the file at an absolute path, or None."""
        with self._errors():
            row = self._one("SELECT size, mtime_ns, sha256 FROM files WHERE path = ?", path)
        return None if row is None else FileRecord(*row)

    def holds(self, sha256: str) -> bool:
        """Whether the embeddings of these bytes are there."""
        with self._errors():
            return self._one("SELECT id FROM contents WHERE sha256 = ?", sha256) is not None

    def put(self, path: bytes, record: FileRecord) -> None:
        """Remember what lies at an absolute path."""
        with self.transaction():
            row = (path, record.size, record.mtime_ns, record.sha256)
            self._database.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", row)

    def put_windows(self, sha256: str, spans_s: NDArray[np.float64], embedding: NDArray[np.float32]) -> None:
        """Keep what a video's bytes gave, unless it is there: another process may be reading that.

        Args:
            sha256: Hex digest of the bytes.
            spans_s: float64 (windows, 2), start and end of each window in seconds.
            embedding: float32 (windows, width).

        Raises:
            InputError: if there are no windows, shapes do not fit, or a value is NaN or infinite.
        """
        if not len(embedding):
            raise InputError("no windows given; at least one of each video is kept")
        if spans_s.shape != (len(embedding), 2) or embedding.shape != (len(spans_s), self.width):
            expected = f"(windows, 2) and (windows, {self.width}) expected"
            raise InputError(f"spans_s {spans_s.shape} and embedding {embedding.shape} given; {expected}")
        if not (np.isfinite(spans_s).all() and np.isfinite(embedding).all()):
            raise InputError("windows to be kept hold NaN or infinity; embed the video again")
        with self.transaction():
            if self.holds(sha256):
                return
            content = self._database.execute(
                "INSERT INTO contents (sha256, windows) VALUES (?, ?)", (sha256, len(embedding))
            ).lastrowid
            for chunk, start in enumerate(range(0, len(embedding), CHUNK_WINDOWS)):
                part = slice(start, start + CHUNK_WINDOWS)
                blobs = (spans_s[part].astype(_SPANS).tobytes(), embedding[part].astype(_EMBEDDING).tobytes())
                row = (content, chunk, *blobs, _checksum(sha256, len(embedding), chunk, *blobs))
                self._database.execute("INSERT INTO windows VALUES (?, ?, ?, ?, ?)", row)

    def windows(self, sha256: str) -> Iterator[tuple[NDArray[np.float64], NDArray[np.float32]]]:
        """Yield the windows of a video's bytes, some at a time: float64 (n, 2) spans in seconds, float32 (n, width).

        Raises:
            SearchIndexError: if they are not there, not all there, or not what was written.
        """
        with self._errors():
            content = self._one("SELECT id, windows FROM contents WHERE sha256 = ?", sha256)
        if content is None:
            raise self._gone()
        number, total = content
        # A damaged row may hold values of any kind. Of a wrong number above 0 the first checksum tells.
        if not isinstance(total, int) or total < 1:
            raise self._damaged(f"{total!r} is the number of a video's windows")
        read = chunk = 0
        while read < total:
            with self._errors():
                row = self._one(
                    "SELECT spans_s, embedding, crc32 FROM windows WHERE content = ? AND chunk = ?", number, chunk
                )
                whole = row is not None and isinstance(row[0], bytes) and isinstance(row[1], bytes)
                if not whole or _checksum(sha256, total, chunk, row[0], row[1]) != row[2]:
                    if self._one("SELECT id FROM contents WHERE sha256 = ?", sha256) != (number,):
                        raise self._gone()
                    raise self._damaged("the checksum of some embeddings does not fit")
            spans_s = np.frombuffer(row[0], _SPANS).reshape(-1, 2)
            embedding = np.frombuffer(row[1], _EMBEDDING).reshape(-1, self.width)
            yield spans_s.astype(np.float64), embedding.astype(np.float32, copy=False)
            read, chunk = read + len(spans_s), chunk + 1

    def drop(self, paths: Iterable[bytes]) -> None:
        """Forget files, and the embeddings that no file has any more."""
        with self.transaction():
            self._database.executemany("DELETE FROM files WHERE path = ?", [(path,) for path in paths])
            unused = "SELECT sha256 FROM contents WHERE sha256 NOT IN (SELECT sha256 FROM files)"
            for (sha256,) in self._database.execute(unused).fetchall():
                self._forget(sha256)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all changes inside one: done together, or, when anything is raised, not at all. They may nest."""
        with self._errors():
            nested = self._database.in_transaction
            if not nested:
                self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                if not nested:
                    self._database.execute("COMMIT")
            except BaseException:
                if not nested and self._database.in_transaction:  # some errors have rolled it back already
                    self._database.execute("ROLLBACK")
                raise

    def _forget(self, sha256: str) -> None:
        self._database.execute(
            "DELETE FROM windows WHERE content = (SELECT id FROM contents WHERE sha256 = ?)", (sha256,)
        )
        self._database.execute("DELETE FROM contents WHERE sha256 = ?", (sha256,))

    def _open(self, makers: IndexMakers) -> None:
        if self._pragma("application_id") == 0 and self._one("SELECT 1 FROM sqlite_master") is None:
            self._create(makers)
        if self._pragma("application_id") != APPLICATION_ID:
            raise SearchIndexError(f"{self.path}: an SQLite database, but no search index; name another file")
        version = self._pragma("user_version")
        if version > FORMAT_VERSION:
            raise SearchIndexError(
                f"{self.path}: a search index of format {version}, from a newer release; this one reads format "
                f"{FORMAT_VERSION}. Upgrade milnce, or name another file"
            )
        if version != FORMAT_VERSION:
            raise self._damaged(f"its format is {version}")
        found: dict[str, str] = dict(self._database.execute("SELECT name, value FROM meta").fetchall())
        expected = makers.to_rows()
        if found.keys() != expected.keys():
            raise self._damaged("it does not say what made it")
        other = [
            f"{name.replace('_', ' ')} {_brief(found[name])}, not {_brief(value)}"
            for name, value in expected.items()
            if name != "preset" and found[name] != value
        ]
        if other:
            sampling = f" (its preset: {found['preset']})" if found["preset_digest"] != makers.preset_digest else ""
            raise SearchIndexError(
                f"{self.path}: made with {'; '.join(other)}{sampling}. Embeddings of different makers are not mixed: "
                "name another file (--index) for this search, or delete this one"
            )

    def _create(self, makers: IndexMakers) -> None:
        with self.transaction():
            if self._one("SELECT 1 FROM sqlite_master") is not None:
                return  # another process was faster
            self._database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._database.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
            for statement in _SCHEMA.split(";"):
                self._database.execute(statement)
            self._database.executemany("INSERT INTO meta VALUES (?, ?)", makers.to_rows().items())

    def _pragma(self, name: str) -> int:
        value: int = self._database.execute(f"PRAGMA {name}").fetchone()[0]
        return value

    def _one(self, statement: str, *values: object) -> Any:  # noqa: ANN401 - a row of whatever was selected
        return self._database.execute(statement, values).fetchone()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into ours, which name the file and what to do."""
        try:
            yield
        except (sqlite3.Error, UnicodeDecodeError) as error:  # the latter: a damaged schema in the error's own text
            # Python 3.10 has the code of an error in its text alone.
            text = str(error)
            if "locked" in text or "busy" in text:
                raise SearchIndexError(
                    f"{self.path}: another process has kept it busy for {BUSY_S:g} s; let it finish, or name another "
                    "file for this search"
                ) from error
            if any(word in text for word in ("readonly", "full", "unable to open", "I/O")):
                raise OutputError(
                    f"{self.path}: cannot be read or written ({text}); name another file (--index), or keep none "
                    "(--no-index)"
                ) from error
            raise SearchIndexError(
                f"{self.path}: damaged, or no search index ({text}). Name another file; or, if this is one, {_ANEW}"
            ) from error

    def _gone(self) -> SearchIndexError:
        what = "embeddings that were there are gone: another process has changed the index"
        return SearchIndexError(f"{self.path}: {what}; search again")

    def _damaged(self, what: str) -> SearchIndexError:
        return SearchIndexError(f"{self.path}: damaged, {what}; {_ANEW}")


def _checksum(sha256: str, windows: int, chunk: int, spans_s: bytes, embedding: bytes) -> int:
    """Return a CRC-32 that also binds the bytes to their place, so that a row cannot stand for another."""
    place = f"{sha256} {windows} {chunk} {len(spans_s)}"
    return zlib.crc32(embedding, zlib.crc32(spans_s, zlib.crc32(place.encode())))


def _brief(value: object) -> str:
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 else text  # noqa: PLR2004 - hex digits of a digest
