"""The file of an index: whole or refused, whatever happened to it, and shared by processes without harm."""

from __future__ import annotations

import random
import sqlite3
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from milnce import index_file
from milnce.errors import InputError, MilnceError, OutputError, SearchIndexError
from milnce.index_file import CHUNK_WINDOWS, FileRecord, IndexFile, IndexMakers

if TYPE_CHECKING:
    from pathlib import Path

WIDTH = 8
MAKERS = IndexMakers("a" * 64, "b" * 64, "sliding (32 frames)", "fp32", WIDTH)
CONTENTS = {f"{number:064x}": 3 + number for number in range(4)}


def rows_of(sha256: str, count: int) -> Any:  # noqa: ANN401 - an array
    return np.random.default_rng(int(sha256, 16)).standard_normal((count, WIDTH), np.float32)


def spans_of(count: int) -> Any:  # noqa: ANN401 - an array
    return np.arange(2.0 * count).reshape(-1, 2)


def fill(path: Path) -> Path:
    with IndexFile(path, MAKERS) as index:
        for number, (sha256, count) in enumerate(CONTENTS.items()):
            index.put_windows(sha256, spans_of(count), rows_of(sha256, count))
            index.put(b"/videos/%d" % number, FileRecord(10, 20, sha256))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return fill(tmp_path / "index.sqlite")


def read_all(path: Path) -> dict[str, Any]:
    """Return path, record, times and embeddings of everything, as a search reads them."""
    found: dict[str, Any] = {}
    with IndexFile(path, MAKERS) as index:
        for name, _ in index.paths():
            record = index.record(name)
            if record is not None and index.holds(record.sha256):
                found[record.sha256] = [(spans_s.copy(), rows.copy()) for spans_s, rows in index.windows(record.sha256)]
    return found


def test_what_is_written_is_read_bit_by_bit(path: Path) -> None:
    found = read_all(path)
    assert list(found) == list(CONTENTS)
    for sha256, count in CONTENTS.items():
        ((spans_s, rows),) = found[sha256]
        assert (spans_s.dtype.name, rows.dtype.name) == ("float64", "float32")
        np.testing.assert_array_equal(spans_s, spans_of(count))
        np.testing.assert_array_equal(rows, rows_of(sha256, count))


@pytest.mark.parametrize("count", [1, CHUNK_WINDOWS - 1, CHUNK_WINDOWS, CHUNK_WINDOWS + 1, 3 * CHUNK_WINDOWS + 7])
def test_long_videos_are_read_a_part_at_a_time(count: int, tmp_path: Path) -> None:
    sha256 = "1" * 64
    with IndexFile(tmp_path / "i.sqlite", MAKERS) as index:
        index.put_windows(sha256, spans_of(count), rows_of(sha256, count))
        parts = list(index.windows(sha256))
        assert max(len(rows) for _, rows in parts) <= CHUNK_WINDOWS
        np.testing.assert_array_equal(np.concatenate([rows for _, rows in parts]), rows_of(sha256, count))
        np.testing.assert_array_equal(np.concatenate([spans_s for spans_s, _ in parts]), spans_of(count))


def test_what_is_there_is_not_replaced_under_a_reader(path: Path) -> None:
    sha256, count = next(iter(CONTENTS.items()))
    with IndexFile(path, MAKERS) as index, IndexFile(path, MAKERS) as other:
        reading = index.windows(sha256)
        other.put_windows(sha256, spans_of(1), rows_of(sha256, 1))
        np.testing.assert_array_equal(next(reading)[1], rows_of(sha256, count))


def test_a_reader_whose_rows_go_away_says_so(tmp_path: Path) -> None:
    count = 2 * CHUNK_WINDOWS
    with IndexFile(tmp_path / "i", MAKERS) as index, IndexFile(tmp_path / "i", MAKERS) as other:
        index.put_windows("1" * 64, spans_of(count), rows_of("1", count))
        reading = index.windows("1" * 64)
        next(reading)
        other.drop([])
        other.put_windows("2" * 64, spans_of(count), rows_of("2", count))  # takes the number that has become free
        with pytest.raises(SearchIndexError, match="are gone: another process has changed the index; search again"):
            next(reading)


def test_embeddings_that_are_not_there_are_an_error(path: Path) -> None:
    with (
        IndexFile(path, MAKERS) as index,
        pytest.raises(SearchIndexError, match="are gone: another process has changed the index; search again"),
    ):
        list(index.windows("f" * 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_digest": "c" * 64}, r"made with model digest a{12}\.\.\., not c{12}\.\.\.\. Embeddings of different"),
        (
            {"preset_digest": "c" * 64},
            r"made with preset digest b{12}\.\.\., not c{12}\.\.\. \(its preset: sliding \(32 frames\)\)",
        ),
        ({"precision": "bf16"}, "made with precision fp32, not bf16. Embeddings of different makers are not mixed"),
        ({"width": 512}, "made with width 8, not 512"),
    ],
)
def test_embeddings_of_other_makers_are_refused(change: Any, message: str, path: Path) -> None:  # noqa: ANN401
    with pytest.raises(SearchIndexError, match=message) as refused:
        IndexFile(path, replace(MAKERS, **change))
    assert "name another file (--index) for this search, or delete this one" in str(refused.value)
    assert list(read_all(path)) == list(CONTENTS)


def change(path: Path, *statements: str) -> None:
    database = sqlite3.connect(path)
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


def test_a_newer_format_is_refused_politely(path: Path) -> None:
    change(path, "PRAGMA user_version = 2")
    with pytest.raises(SearchIndexError, match=r"format 2, from a newer release; this one reads format 1\. Upgrade"):
        IndexFile(path, MAKERS)


def test_another_program_s_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    change(path, "CREATE TABLE mail (body TEXT)")
    before = path.read_bytes()
    with pytest.raises(SearchIndexError, match="an SQLite database, but no search index; name another file"):
        IndexFile(path, MAKERS)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"not a database at all\n" * 500, b"\0" * 4096, b"SQLite format 3\0" + b"\xff" * 999]
)
def test_garbage_is_refused_and_left_alone(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "video.mp4"
    path.write_bytes(content)
    with pytest.raises(
        SearchIndexError, match=r"damaged, or no search index \(.*\)\. Name another file; or, if"
    ) as bad:
        IndexFile(path, MAKERS)
    assert "delete it and search again" in str(bad.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_index_is_an_error(kept: float, path: Path) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * kept)])
    with pytest.raises(SearchIndexError, match="damaged"):
        read_all(path)


def test_a_flipped_bit_in_an_embedding_is_an_error(path: Path) -> None:
    data = bytearray(path.read_bytes())
    sha256, count = next(iter(CONTENTS.items()))
    at = data.index(rows_of(sha256, count).tobytes())
    data[at + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(SearchIndexError, match="damaged, the checksum of some embeddings does not fit; delete it"):
        read_all(path)


SHIFTED = """
    UPDATE windows SET spans_s = CAST(spans_s || substr(embedding, 1, 16) AS BLOB), embedding = substr(embedding, 17)
"""


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE windows SET spans_s = x'00'",
        "UPDATE windows SET embedding = 'text'",
        "UPDATE windows SET content = content + 9; UPDATE windows SET content = 14 - content",
        "UPDATE windows SET chunk = chunk + 9",
        "UPDATE windows SET chunk = chunk + 9 WHERE content = 5; UPDATE windows SET chunk = 10 - chunk WHERE chunk > 8",
        SHIFTED,
        "UPDATE contents SET windows = windows - 1",
        "UPDATE contents SET windows = windows + 1",
        "UPDATE contents SET windows = x'33'",
        "UPDATE contents SET windows = 0",
        "UPDATE contents SET windows = -5",
        "UPDATE contents SET sha256 = 'x' || sha256; UPDATE files SET sha256 = 'x' || sha256",
        "DELETE FROM windows",
        "DROP TABLE windows",
        "DELETE FROM meta WHERE name = 'precision'",
        "UPDATE files SET path = 'text' WHERE path = x'2f766964656f732f30'",
        "PRAGMA user_version = 0",
    ],
)
def test_rows_that_were_tampered_with_are_an_error(statement: str, path: Path) -> None:
    with IndexFile(path, MAKERS) as index:
        index.put(b"/long", FileRecord(1, 2, "d" * 64))
        index.put_windows("d" * 64, spans_of(2 * CHUNK_WINDOWS), rows_of("d", 2 * CHUNK_WINDOWS))
    change(path, *statement.split(";"))
    with pytest.raises(SearchIndexError, match="damaged"):
        read_all(path)


def test_a_video_without_windows_is_never_kept(path: Path) -> None:
    with IndexFile(path, MAKERS) as index:
        with pytest.raises(InputError, match="no windows given; at least one of each video is kept"):
            index.put_windows("e" * 64, spans_of(0), rows_of("e", 0))
        assert not index.holds("e" * 64)


def test_a_database_that_fails_while_damage_is_looked_into_is_an_error(path: Path) -> None:
    # Found with the contents gone between two readings: the second look must not let SQLite's own error out.
    with IndexFile(path, MAKERS) as index:
        sha256 = "d" * 64
        index.put_windows(sha256, spans_of(2 * CHUNK_WINDOWS), rows_of("d", 2 * CHUNK_WINDOWS))
        reading = index.windows(sha256)
        next(reading)
        change(path, "UPDATE windows SET crc32 = 0", "DROP TABLE contents")
        with pytest.raises(SearchIndexError, match=r"damaged, or no search index \(no such table: contents"):
            next(reading)


def test_a_schema_that_is_no_text_is_an_error(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[data.index(b"(name TEXT PRIMARY KEY")] = 0xE3
    path.write_bytes(data)
    with pytest.raises(SearchIndexError, match="damaged, or no search index"):
        read_all(path)


def test_a_flipped_byte_anywhere_never_gives_another_number(path: Path, tmp_path: Path) -> None:
    whole = path.read_bytes()
    copy = tmp_path / "copy.sqlite"
    refused = 0
    rng = random.Random(0)  # noqa: S311 - no secret
    for _ in range(1000):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        copy.write_bytes(data)
        try:
            found = read_all(copy)
        except MilnceError:
            refused += 1
            continue
        # Files that are not found any more are embedded again; those that are found have their own numbers.
        for sha256, ((spans_s, rows),) in found.items():
            np.testing.assert_array_equal(rows, rows_of(sha256, CONTENTS[sha256]))
            np.testing.assert_array_equal(spans_s, spans_of(CONTENTS[sha256]))
    assert refused > 10


def test_an_empty_file_becomes_an_index(tmp_path: Path) -> None:
    path = tmp_path / "empty.sqlite"
    path.touch()
    assert list(read_all(fill(path))) == list(CONTENTS)


def test_places_where_no_index_can_be_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no file; name a file for the search index"):
        IndexFile(tmp_path, MAKERS)
    with pytest.raises(OutputError, match="none: no such folder; make it first"):
        IndexFile(tmp_path / "none" / "i.sqlite", MAKERS)
    too_long = "i" * 300
    with pytest.raises(OutputError, match=r"cannot be read or written \(unable to open database file\); name another"):
        IndexFile(tmp_path / too_long, MAKERS)
    with pytest.raises(OutputError, match="i: no such folder; make it first"):
        IndexFile(tmp_path / too_long / "i.sqlite", MAKERS)


def test_an_index_that_may_only_be_read_can_be_searched(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda path, **options: connect(f"file:{path}?mode=ro", uri=True, **options)
    )
    assert list(read_all(path)) == list(CONTENTS)
    with IndexFile(path, MAKERS) as index, pytest.raises(OutputError, match=r"cannot be read or written .*readonly"):
        index.put(b"/new", FileRecord(1, 2, "3" * 64))


def test_a_change_is_whole_or_not_there(path: Path) -> None:
    def fail(index: IndexFile) -> None:
        with index.transaction():
            index.put(b"/new", FileRecord(1, 2, "e" * 64))
            index.put_windows("e" * 64, spans_of(1), rows_of("e", 1))
            raise KeyboardInterrupt

    with IndexFile(path, MAKERS) as index:
        with pytest.raises(KeyboardInterrupt):
            fail(index)
        assert index.record(b"/new") is None
        assert not index.holds("e" * 64)
        index.put(b"/new", FileRecord(1, 2, "e" * 64))
    with IndexFile(path, MAKERS) as index:
        assert index.record(b"/new") == FileRecord(1, 2, "e" * 64)


def test_what_no_file_has_any_more_goes_with_it(path: Path) -> None:
    first, second, *_ = CONTENTS
    with IndexFile(path, MAKERS) as index:
        index.put(b"/videos/copy", FileRecord(1, 2, first))
        index.drop([b"/videos/0", b"/videos/1", b"/never/there"])
        assert (index.holds(first), index.holds(second)) == (True, False)
    database = sqlite3.connect(path)
    assert database.execute("SELECT count(*) FROM windows").fetchone() == (len(CONTENTS) - 1,)
    database.close()


def test_another_process_is_waited_for(path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN EXCLUSIVE")
    thread = threading.Timer(0.5, lambda: other.execute("COMMIT"))
    thread.start()
    began = time.monotonic()
    with IndexFile(path, MAKERS) as index:
        index.put(b"/new", FileRecord(1, 2, "3" * 64))
    assert time.monotonic() - began > 0.4
    thread.join()
    other.close()


def test_a_process_that_keeps_it_busy_is_named_in_the_error(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_file, "BUSY_S", 0.1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with IndexFile(path, MAKERS) as index:
        assert index.record(b"/videos/0") is not None  # reading goes on
        with pytest.raises(SearchIndexError, match=r"another process has kept it busy for 0\.1 s; let it finish"):
            index.put(b"/new", FileRecord(1, 2, "3" * 64))
    other.close()


def test_a_transaction_holds_others_off_from_its_start(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # One that only began to write after reading could meet another that does the same, and both would wait for ever.
    monkeypatch.setattr(index_file, "BUSY_S", 0.1)
    with IndexFile(path, MAKERS) as index, IndexFile(path, MAKERS) as other:
        with index.transaction(), pytest.raises(SearchIndexError, match="another process has kept it busy"):
            other.put(b"/new", FileRecord(1, 2, "3" * 64))
        other.put(b"/new", FileRecord(1, 2, "3" * 64))


def test_an_index_that_another_process_makes_first_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "i.sqlite"
    create = IndexFile._create  # noqa: SLF001 - the moment between looking and making cannot be met otherwise

    def be_slower(index: IndexFile, makers: IndexMakers) -> None:
        monkeypatch.setattr(IndexFile, "_create", create)
        fill(path)
        create(index, makers)

    monkeypatch.setattr(IndexFile, "_create", be_slower)
    with IndexFile(path, MAKERS) as index:
        assert len(index.paths()) == len(CONTENTS)


def test_two_processes_may_make_it_at_once(tmp_path: Path) -> None:
    path = tmp_path / "i.sqlite"
    errors: list[BaseException] = []

    def make() -> None:
        try:
            fill(path)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test must see it
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert list(read_all(path)) == list(CONTENTS)
