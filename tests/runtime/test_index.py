"""The index brought up to date: what is embedded again, found and forgotten, and what an accident costs."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from milnce.errors import InputError, OutputError, VideoError
from milnce.index import IndexUpdate, default_index_path, update_index
from milnce.index_file import IndexFile, IndexMakers
from milnce.pipeline import FileEmbeddings, WindowSpan
from milnce.video import get_preset

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

WIDTH = 8
MAKERS = IndexMakers("a" * 64, "b" * 64, "sliding", "fp32", WIDTH)


def expected_rows(data: bytes) -> NDArray[np.float32]:
    """Return what stands for a model here: numbers that only these bytes give, as many windows as their last digit."""
    seed = int.from_bytes(hashlib.sha256(data).digest()[:4], "big")
    return np.random.default_rng(seed).standard_normal((int(data[-1:]), WIDTH), np.float32)


class Embedder:
    """Stands for the pipeline: embeds files by their bytes, and keeps account of which."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.before_each: Callable[[Path], object] = lambda _: None

    def __call__(self, paths: list[Path]) -> Iterator[FileEmbeddings]:
        """Embed as `milnce.pipeline.embed_files` does."""
        preset = get_preset("sliding")
        for path in paths:
            self.done.append(path.name)
            data = path.read_bytes() if path.is_file() else b""
            if data[:3] == b"bad" or not data:
                nothing = np.empty((0, WIDTH), np.float32)
                yield FileEmbeddings(path, (), nothing, nothing, VideoError(f"{path}: damaged"), preset)
            else:
                rows = expected_rows(data)
                windows = tuple(WindowSpan(index, index * 1.6, index * 1.6 + 3.2) for index in range(len(rows)))
                self.before_each(path)
                yield FileEmbeddings(path, windows, rows, rows, None, preset)

    def take(self) -> list[str]:
        """Return the names of the files embedded since the last call."""
        done, self.done = self.done, []
        return done


@pytest.fixture
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with three files and no index in it."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, data in (("a.mp4", b"first 3"), ("b.mp4", b"second 2"), ("c.mp4", b"third 4")):
        (folder / name).write_bytes(data)
    return folder


@pytest.fixture
def index(tmp_path: Path) -> Iterator[IndexFile]:
    with IndexFile(tmp_path / "index.sqlite", MAKERS) as opened:
        yield opened


def update(index: IndexFile, folder: Path, embedder: Embedder) -> IndexUpdate:
    return update_index(index, sorted(folder.iterdir()), [folder], embedder)


def counts(found: IndexUpdate) -> tuple[int, int, int, int, int]:
    """Return new, changed, unchanged, removed and embedded."""
    return found.new, found.changed, found.unchanged, found.removed, found.embedded


def check_found(index: IndexFile, found: IndexUpdate) -> None:
    """Hold what the index gives for each file against what its bytes give."""
    for path, sha256 in found.current.items():
        parts = list(index.windows(sha256))
        rows = np.concatenate([embedding for _, embedding in parts])
        np.testing.assert_array_equal(rows, expected_rows(path.read_bytes()))
        starts = np.concatenate([spans_s[:, 0] for spans_s, _ in parts])
        np.testing.assert_allclose(starts, 1.6 * np.arange(len(rows)), rtol=1e-12)


def test_only_what_is_new_is_embedded(index: IndexFile, folder: Path, embedder: Embedder) -> None:
    found = update(index, folder, embedder)
    assert counts(found) == (3, 0, 0, 0, 3)
    assert embedder.take() == ["a.mp4", "b.mp4", "c.mp4"]
    assert [path.name for path in found.current] == ["a.mp4", "b.mp4", "c.mp4"]
    check_found(index, found)
    (folder / "aa.mp4").write_bytes(b"fourth 1")
    found = update(index, folder, embedder)
    assert counts(found) == (1, 0, 3, 0, 1)
    assert embedder.take() == ["aa.mp4"]
    assert [path.name for path in found.current] == ["a.mp4", "aa.mp4", "b.mp4", "c.mp4"]
    check_found(index, found)


def test_another_run_opens_what_this_one_wrote(tmp_path: Path, folder: Path, embedder: Embedder) -> None:
    for embedded in (3, 0):
        with IndexFile(tmp_path / "i.sqlite", MAKERS) as index:
            found = update(index, folder, embedder)
            assert found.embedded == embedded
            check_found(index, found)


def test_a_changed_file_is_embedded_and_its_old_rows_go(index: IndexFile, folder: Path, embedder: Embedder) -> None:
    old = update(index, folder, embedder).current[folder / "b.mp4"]
    embedder.take()
    (folder / "b.mp4").write_bytes(b"other! 5")
    found = update(index, folder, embedder)
    assert counts(found) == (0, 1, 2, 0, 1)
    assert embedder.take() == ["b.mp4"]
    check_found(index, found)
    assert not index.holds(old)


def test_a_touched_file_is_read_once_and_not_embedded(
    index: IndexFile, folder: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    update(index, folder, embedder)
    embedder.take()
    read: list[str] = []
    original = Path.open

    def open_noted(path: Path, mode: str = "r") -> object:
        read.append(path.name)
        return original(path, mode)

    monkeypatch.setattr(Path, "open", open_noted)
    os.utime(folder / "a.mp4", ns=(1, 2))
    assert counts(update(index, folder, embedder)) == (0, 0, 3, 0, 0)
    assert read == ["a.mp4"]
    assert counts(update(index, folder, embedder)) == (0, 0, 3, 0, 0)
    assert read == ["a.mp4"]
    assert embedder.take() == []


def test_a_file_whose_rows_are_lost_is_embedded_again(index: IndexFile, folder: Path, embedder: Embedder) -> None:
    lost = update(index, folder, embedder).current[folder / "b.mp4"]
    embedder.take()
    database = sqlite3.connect(index.path)
    database.execute("DELETE FROM contents WHERE sha256 = ?", (lost,))
    database.commit()
    database.close()
    found = update(index, folder, embedder)
    assert embedder.take() == ["b.mp4"]
    check_found(index, found)


def test_renamed_and_moved_files_are_not_embedded_again(index: IndexFile, folder: Path, embedder: Embedder) -> None:
    update(index, folder, embedder)
    embedder.take()
    (folder / "a.mp4").rename(folder / "z.mp4")
    found = update(index, folder, embedder)
    assert counts(found) == (1, 0, 2, 1, 0)
    check_found(index, found)
    moved = folder.rename(folder.with_name("elsewhere"))
    found = update(index, moved, embedder)
    assert counts(found) == (3, 0, 0, 0, 0)
    check_found(index, found)
    assert embedder.take() == []
    # The old places are forgotten with the move, and nothing is kept twice.
    assert [Path(os.fsdecode(path)) for path, _ in index.paths()] == sorted(moved.iterdir())


def test_two_files_that_swap_names_swap_their_rows(index: IndexFile, folder: Path, embedder: Embedder) -> None:
    update(index, folder, embedder)
    embedder.take()
    (folder / "a.mp4").rename(folder / "t")
    (folder / "b.mp4").rename(folder / "a.mp4")
    (folder / "t").rename(folder / "b.mp4")
    found = update(index, folder, embedder)
    assert counts(found) == (0, 2, 1, 0, 0)
    check_found(index, found)


def test_the_same_bytes_are_embedded_once_and_found_in_each_file(
    index: IndexFile, folder: Path, embedder: Embedder
) -> None:
    shutil.copy(folder / "a.mp4", folder / "copy.mp4")
    found = update(index, folder, embedder)
    assert counts(found) == (4, 0, 0, 0, 3)
    assert len(found.current) == 4
    check_found(index, found)
    (folder / "a.mp4").unlink()
    found = update(index, folder, embedder)
    assert counts(found) == (0, 0, 3, 1, 0)
    check_found(index, found)


def test_many_files_are_done_some_at_a_time(
    index: IndexFile, tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milnce.index._FILES_AT_ONCE", 16)
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(50):
        # Every tenth has the same bytes; some of those are hashed when the first one is done already.
        (folder / f"{number:02}.mp4").write_bytes(b"video %d 2" % (number % 10))
    groups: list[int] = []

    def embed(paths: list[Path]) -> Iterator[FileEmbeddings]:
        groups.append(len(paths))
        return embedder(paths)

    found = update_index(index, sorted(folder.iterdir()), [folder], embed)
    assert counts(found) == (50, 0, 0, 0, 10)
    assert groups == [10]
    assert len(found.current) == 50
    check_found(index, found)
    for path in folder.iterdir():
        path.write_bytes(b"now %s 3" % path.name.encode())
    groups.clear()
    found = update_index(index, sorted(folder.iterdir()), [folder], embed)
    assert (counts(found), groups) == ((0, 50, 0, 0, 50), [16, 16, 16, 2])
    check_found(index, found)


def test_vanished_files_are_forgotten_in_the_folders_searched_and_nowhere_else(
    index: IndexFile, folder: Path, embedder: Embedder
) -> None:
    other = folder.with_name("videos2")  # a name that begins as the first folder's
    shutil.copytree(folder, other)
    (other / "a.mp4").write_bytes(b"only here 1")
    update_index(index, [*sorted(folder.iterdir()), *sorted(other.iterdir())], [folder, other], embedder)
    embedder.take()
    shutil.rmtree(other)  # as a disk that is not mounted
    (folder / "c.mp4").unlink()
    found = update(index, folder, embedder)
    assert counts(found) == (0, 0, 2, 1, 0)
    assert [path.name for path in found.current] == ["a.mp4", "b.mp4"]
    assert len(index.paths()) == 2 + 3
    other.mkdir()
    (other / "again.mp4").write_bytes(b"only here 1")
    assert counts(update(index, other, embedder)) == (1, 0, 0, 3, 0)


@pytest.mark.parametrize("left", [True, False], ids=["empty", "gone"])
def test_a_disk_that_is_not_mounted_keeps_its_index(
    left: bool, index: IndexFile, folder: Path, embedder: Embedder
) -> None:
    disk, away = folder / "disk", folder.with_name("away")
    (disk / "deep").mkdir(parents=True)
    (disk / "d.mp4").write_bytes(b"on the disk 2")
    (disk / "deep" / "e.mp4").write_bytes(b"deeper 3")

    def search() -> IndexUpdate:
        listed = sorted(path for path in folder.rglob("*") if path.is_file())
        # A file that is named need not be there: it says nothing about its folder.
        return update_index(index, [*listed, disk / "never.mp4"], [folder, disk], embedder)

    assert counts(search()) == (5, 0, 0, 0, 5)
    disk.rename(away)
    if left:
        disk.mkdir()
    found = search()
    assert counts(found) == (0, 0, 3, 0, 0)
    assert [path.name for path in found.current] == ["a.mp4", "b.mp4", "c.mp4"]
    if left:
        disk.rmdir()
    away.rename(disk)
    assert counts(search()) == (0, 0, 5, 0, 0)
    (disk / "deep" / "e.mp4").rename(disk / "deep" / "f.mp4")  # of what has moved the old place is forgotten
    assert counts(search()) == (1, 0, 4, 1, 0)
    assert len(index.paths()) == 5


def test_a_file_in_the_folder_that_was_not_listed_is_kept(index: IndexFile, folder: Path, embedder: Embedder) -> None:
    (folder / "no_suffix").write_bytes(b"by name 1")
    update(index, folder, embedder)
    listed = [path for path in sorted(folder.iterdir()) if path.suffix]
    found = update_index(index, listed, [folder], embedder)
    assert (found.removed, len(found.current), len(index.paths())) == (0, 3, 4)


def test_a_failing_file_is_listed_each_time_and_never_done(index: IndexFile, folder: Path, embedder: Embedder) -> None:
    bad = folder / "bad.mp4"
    bad.write_bytes(b"bad 1")
    for _ in range(2):
        found = update(index, folder, embedder)
        assert [(path, str(error)) for path, error in found.failed] == [(bad, f"{bad}: damaged")]
        assert bad not in found.current
        assert "bad.mp4" in embedder.take()
    bad.write_bytes(b"mended 2")
    found = update(index, folder, embedder)
    assert (found.failed, found.embedded) == ([], 1)
    check_found(index, found)


def test_a_file_that_goes_bad_is_not_found_any_more(index: IndexFile, folder: Path, embedder: Embedder) -> None:
    sha256 = update(index, folder, embedder).current[folder / "a.mp4"]
    (folder / "a.mp4").write_bytes(b"bad now 3")
    found = update(index, folder, embedder)
    assert [path.name for path, _ in found.failed] == ["a.mp4"]
    assert [path.name for path in found.current] == ["b.mp4", "c.mp4"]
    assert not index.holds(sha256)
    assert len(index.paths()) == 2


def test_a_file_that_cannot_be_opened_fails_and_is_remembered(
    index: IndexFile, folder: Path, embedder: Embedder
) -> None:
    update(index, folder, embedder)
    (folder / "a.mp4").rename(folder / "away")
    found = update_index(index, [folder / "a.mp4", folder / "b.mp4"], [], embedder)
    assert [path.name for path, _ in found.failed] == ["a.mp4"]
    assert [path.name for path in found.current] == ["b.mp4"]
    (folder / "away").rename(folder / "a.mp4")
    assert counts(update(index, folder, embedder)) == (0, 0, 3, 0, 0)


def test_a_pipe_is_never_read(index: IndexFile, folder: Path, embedder: Embedder) -> None:
    os.mkfifo(folder / "pipe.mp4")  # reading it would wait for ever
    found = update(index, folder, embedder)
    assert [path.name for path, _ in found.failed] == ["pipe.mp4"]


def test_a_file_that_changes_while_it_is_read_is_not_kept(index: IndexFile, folder: Path, embedder: Embedder) -> None:
    sha256 = hashlib.sha256(b"second 2").hexdigest()
    embedder.before_each = lambda path: path.name == "b.mp4" and path.write_bytes(b"longer than before 2")
    found = update(index, folder, embedder)
    ((path, error),) = found.failed
    assert (path.name, path in found.current, index.holds(sha256)) == ("b.mp4", False, False)
    assert str(error) == f"{path}: changed while it was read; search again when it is complete"
    embedder.before_each = lambda _: None
    found = update(index, folder, embedder)
    assert (found.failed, found.embedded) == ([], 1)
    check_found(index, found)


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_a_run_that_is_stopped_keeps_what_was_done(
    stop: type[BaseException], tmp_path: Path, folder: Path, embedder: Embedder
) -> None:
    def interrupt(path: Path) -> None:
        if path.name == "c.mp4":
            raise stop

    embedder.before_each = interrupt
    with IndexFile(tmp_path / "i.sqlite", MAKERS) as index, pytest.raises(stop):
        update(index, folder, embedder)
    embedder.before_each = lambda _: None
    embedder.take()
    with IndexFile(tmp_path / "i.sqlite", MAKERS) as index:
        assert counts(update(index, folder, embedder)) == (1, 0, 2, 0, 1)
    assert embedder.take() == ["c.mp4"]


def test_a_file_and_its_rows_are_written_together_or_not_at_all(
    index: IndexFile, folder: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for method in ("put", "put_windows"):
        with monkeypatch.context() as patch:
            patch.setattr(index, method, stop)
            with pytest.raises(KeyboardInterrupt):
                update(index, folder, embedder)
        assert not index.holds(hashlib.sha256(b"first 3").hexdigest())
        assert index.paths() == []


def test_names_that_are_not_text_and_times_beyond_2262(index: IndexFile, folder: Path, embedder: Embedder) -> None:
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.mp4"))
    odd.write_bytes(b"odd 2")
    os.utime(odd, ns=(0, 2**63 + 5))
    assert counts(update(index, folder, embedder)) == (4, 0, 0, 0, 4)
    found = update(index, folder, embedder)
    assert counts(found) == (0, 0, 4, 0, 0)
    check_found(index, found)


def test_progress_hears_of_every_file_once(index: IndexFile, folder: Path, embedder: Embedder) -> None:
    (folder / "bad.mp4").write_bytes(b"bad 1")
    shutil.copy(folder / "a.mp4", folder / "copy.mp4")
    heard: list[int] = []
    files = [*sorted(folder.iterdir()), folder / "missing.mp4"]
    for calls in (6, 12):
        update_index(index, files, [folder], embedder, on_file=lambda: heard.append(1))
        assert len(heard) == calls


def test_windows_with_the_same_times_are_kept_once(index: IndexFile, folder: Path) -> None:
    def repeated(paths: list[Path]) -> Iterator[FileEmbeddings]:
        for path in paths:
            rows = np.ones((10, WIDTH), np.float32)
            windows = tuple(WindowSpan(number, 0.0, 3.2) for number in range(10))
            yield FileEmbeddings(path, windows, rows, rows, None, get_preset("sliding"))

    found = update_index(index, [folder / "a.mp4"], [], repeated)
    ((spans_s, embedding),) = index.windows(found.current[folder / "a.mp4"])
    assert (spans_s.tolist(), embedding.shape) == ([[0.0, 3.2]], (1, WIDTH))


def test_a_batch_that_is_not_finite_is_never_kept(index: IndexFile) -> None:
    spans_s, rows = np.array([[0.0, 3.2]]), np.full((1, WIDTH), np.nan, np.float32)
    with pytest.raises(InputError, match="hold NaN or infinity; embed the video again"):
        index.put_windows("c" * 64, spans_s, rows)
    with pytest.raises(InputError, match=r"embedding \(1, 3\) given; \(windows, 2\) and \(windows, 8\) expected"):
        index.put_windows("c" * 64, spans_s, np.ones((1, 3), np.float32))
    assert not index.holds("c" * 64)


def test_the_usual_place_is_the_cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = default_index_path(MAKERS)
    assert path.parent == tmp_path / "cache" / "milnce"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert default_index_path(MAKERS) == path
    others = [
        IndexMakers("c" * 64, "b" * 64, "sliding", "fp32", WIDTH),
        IndexMakers("a" * 64, "c" * 64, "sliding", "fp32", WIDTH),
        IndexMakers("a" * 64, "b" * 64, "sliding", "bf16", WIDTH),
        IndexMakers("a" * 64, "b" * 64, "sliding", "fp32", 9),
    ]
    assert len({path, *map(default_index_path, others)}) == 5
    assert default_index_path(IndexMakers("a" * 64, "b" * 64, "for people", "fp32", WIDTH)) == path
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for unusable in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert default_index_path(MAKERS).parent == tmp_path / "home" / ".cache" / "milnce"


def test_a_cache_folder_that_cannot_be_made_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError, match=r"no folder for the search index .*; name a file for it \(--index\), or"):
        default_index_path(MAKERS)
