"""Keeping a search index up to date: only files that are new or changed are embedded again.

A file whose size and time of change are those it was indexed with is taken for unchanged. Any other is read and hashed:
bytes that are known, wherever they lay before, are not embedded again. So renamed and moved files and folders cost one
reading. A file that fails is not remembered, and is tried again each time.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from milnce.errors import MilnceError, OutputError, VideoError
from milnce.files import file_sha256
from milnce.index_file import FileRecord
from milnce.search import distinct

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from milnce.index_file import IndexFile, IndexMakers
    from milnce.pipeline import FileEmbeddings

    Embed = Callable[[list[Path]], Iterator[FileEmbeddings]]

# Files that are hashed before they are embedded: enough to fill batches across files, few enough that their bytes are
# still in the page cache when they are decoded. Decoding processes start anew for each lot, in a third of a second.
_FILES_AT_ONCE = 64


@dataclass(slots=True)
class IndexUpdate:
    """What bringing an index up to date found.

    Attributes:
        current: The files that can be searched, in the order given, with the sha256 that `IndexFile.windows` takes.
        failed: Those that cannot, and why.
        new: How many files the index did not know at their place.
        changed: How many have other bytes than before.
        unchanged: How many are as they were.
        removed: How many vanished from the folders and are forgotten.
        embedded: How many were embedded in this run.
    """

    current: dict[Path, str] = field(default_factory=dict)
    failed: list[tuple[Path, MilnceError]] = field(default_factory=list)
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    embedded: int = 0


def default_index_path(makers: IndexMakers) -> Path:
    """Return where an index lies when nobody says where: one file a model, preset and precision, in the user's cache.

    It is `$XDG_CACHE_HOME/milnce/`, or `~/.cache/milnce/`; the folder is made, readable by its owner only, since an
    index holds the names of files.

    Raises:
        OutputError: if there is no home folder, or the folder cannot be made.
    """
    set_one = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # The specification has relative paths ignored.
        cache = Path(set_one) if os.path.isabs(set_one) else Path.home() / ".cache"  # noqa: PTH117 - "" is no path
        folder = cache / "milnce"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise OutputError(
            f"no folder for the search index ({error}); name a file for it (--index), or keep none (--no-index)"
        ) from error
    fields = (makers.model_digest, makers.preset_digest, makers.precision, str(makers.width))
    return folder / f"index-{hashlib.sha256(' '.join(fields).encode()).hexdigest()[:16]}.sqlite"


def update_index(
    index: IndexFile,
    files: Sequence[Path],
    folders: Iterable[Path],
    embed: Embed,
    *,
    on_file: Callable[[], None] = lambda: None,
) -> IndexUpdate:
    """Bring the index up to date with files as they lie there now, each one committed when it is done.

    Args:
        index: The index.
        files: Video files, each once.
        folders: Folders that were searched for them: a file that the index knows in them and that is there no more is
            forgotten if another file beside it can be searched. Of a folder that is gone or has no such file nothing
            is forgotten, nor of other places: a disk that is not mounted now may be back. Nothing of them is found
            either, as only files that are given are searched.
        embed: Embeds files, as `milnce.pipeline.embed_files` does with the index's model, preset and precision.
        on_file: Called after each file, for progress.

    Returns:
        What can be searched and what was done.

    Raises:
        SearchIndexError: if the index is found to be damaged, or another process keeps it busy.
        OutputError: if it cannot be written.
    """
    updating = _Updating(index, embed, on_file)
    for start in range(0, len(files), _FILES_AT_ONCE):
        for path in files[start : start + _FILES_AT_ONCE]:
            updating.look(path)
        updating.embed_waiting()
    updating.forget_vanished(folders, files)
    update = updating.update
    update.current = {path: update.current[path] for path in files if path in update.current}
    return update


@dataclass(frozen=True, slots=True)
class _Seen:
    """A file whose bytes the index does not know."""

    path: Path
    record: FileRecord
    changed: bool  # whether it knew other bytes at this place


class _Updating:
    """One update under way."""

    def __init__(self, index: IndexFile, embed: Embed, on_file: Callable[[], None]) -> None:
        self.update = IndexUpdate()
        self._index = index
        self._embed = embed
        self._on_file = on_file
        # By hash: bytes that lie in several files are embedded once.
        self._waiting: dict[str, list[_Seen]] = {}
        self._unreadable: dict[Path, None] = {}
        self._outdated: list[bytes] = []
        self._placed: set[str] = set()

    def look(self, path: Path) -> None:
        """Tell what the index knows from what must be embedded."""
        known = self._index.record(_key(path))
        now = _stat(path)
        if known is not None and now == (known.size, known.mtime_ns) and self._index.holds(known.sha256):
            self.update.unchanged += 1
            self.update.current[path] = known.sha256
            self._on_file()
            return
        sha256 = None if now is None else _sha256(path)
        if now is None or sha256 is None:
            self._unreadable[path] = None
            return
        seen = _Seen(path, FileRecord(*now, sha256), changed=known is not None and known.sha256 != sha256)
        if not self._index.holds(sha256):
            self._waiting.setdefault(sha256, []).append(seen)
        else:
            self._place(seen, same=known is not None and not seen.changed)
            self._on_file()

    def embed_waiting(self) -> None:
        """Embed what must be, one file of those with the same bytes; a file that cannot be read says why there."""
        paths = [*(same[0].path for same in self._waiting.values()), *self._unreadable]
        if not paths:
            return
        hashes = {same[0].path: sha256 for sha256, same in self._waiting.items()}
        for item in self._embed(paths):
            same = self._waiting.get(hashes.get(item.path, ""), [])
            error = item.error or self._moved_on(item.path, same)
            if error is None:
                self._keep(item, same)
            else:
                self._fail(error, [seen.path for seen in same] or [item.path])
            for _ in range(max(1, len(same))):
                self._on_file()
        self._waiting.clear()
        self._unreadable.clear()

    def forget_vanished(self, folders: Iterable[Path], files: Sequence[Path]) -> None:
        """Forget what is there no more: in the folders, and at the places that bytes have moved from."""
        present = {_key(path) for path in files}
        searched = tuple(os.path.join(_key(folder), b"") for folder in folders)  # noqa: PTH118 - bytes
        # Where a disk is not mounted, its folder is empty or gone.
        there = {os.path.dirname(_key(path)) for path in self.update.current}  # noqa: PTH120 - bytes

        def inside(path: bytes) -> bool:
            return path.startswith(searched)

        vanished = [
            path
            for path, sha256 in self._index.paths()
            if path not in present
            and (sha256 in self._placed or (inside(path) and os.path.dirname(path) in there))  # noqa: PTH120 - bytes
            and not os.path.lexists(path)
        ]
        self.update.removed = sum(map(inside, vanished))
        if vanished or self._outdated or self.update.changed:
            self._index.drop([*vanished, *self._outdated])

    def _place(self, seen: _Seen, *, same: bool = False) -> None:
        self._index.put(_key(seen.path), seen.record)
        self._placed.add(seen.record.sha256)
        self.update.current[seen.path] = seen.record.sha256
        self.update.unchanged += same
        self.update.changed += seen.changed
        self.update.new += not (same or seen.changed)

    def _keep(self, item: FileEmbeddings, same: list[_Seen]) -> None:
        spans_s = np.array([(window.start_s, window.end_s) for window in item.windows], np.float64).reshape(-1, 2)
        rows = distinct(spans_s)
        with self._index.transaction():
            self._index.put_windows(same[0].record.sha256, spans_s[rows], item.embedding[rows])
            for seen in same:
                self._place(seen)
        self.update.embedded += 1

    def _moved_on(self, path: Path, same: list[_Seen]) -> MilnceError | None:
        """Whether a file is not the one that was hashed: its embeddings must not stand for those bytes."""
        if same and _stat(path) == (same[0].record.size, same[0].record.mtime_ns):
            return None
        return VideoError(f"{path}: changed while it was read; search again when it is complete")

    def _fail(self, error: MilnceError, paths: Iterable[Path]) -> None:
        for path in paths:
            self.update.failed.append((path, error))
            if self._index.record(_key(path)) is not None and path not in self._unreadable:
                self._outdated.append(_key(path))


def _key(path: Path) -> bytes:
    # Bytes, as file names are: not all of them are text.
    return os.fsencode(os.path.abspath(path))  # noqa: PTH100 - without following links


def _stat(path: Path) -> tuple[int, int] | None:
    """Return size and time of change; None where there is no regular file, which opening it will say."""
    try:
        status = path.stat()
    except OSError:
        return None
    # SQLite's integers have 63 bits and a sign: times end in 2262, and some files are stamped later.
    return (status.st_size, status.st_mtime_ns % 2**63) if stat.S_ISREG(status.st_mode) else None


def _sha256(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:
        return None
