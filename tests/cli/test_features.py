"""Features on disk: both formats, what is refused, and that nothing is ever written by halves."""

from __future__ import annotations

import gc
import json
import re
import resource
import sys
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from milnce import feature_files
from milnce.errors import InputError, MissingDependencyError, OutputError
from milnce.features import Features, FeaturesMetadata, FeatureWriter, read_features
from milnce.pipeline import WindowSpan

if TYPE_CHECKING:
    from collections.abc import Iterator

METADATA = FeaturesMetadata("ab" * 32, "sliding", "cd" * 32, {"fps": 10.0}, "onnxruntime cpu", "fp32", "0.1.0")
FORMATS = ("features.npz", "features.parquet")


def rows(count: int, seed: int = 0, widths: tuple[int, int] = (8, 12)) -> tuple[list[WindowSpan], Any, Any]:
    rng = np.random.default_rng(seed)
    spans = [WindowSpan(index, index * 1.6, index * 1.6 + 3.2) for index in range(count)]
    embedding, mixed_5c = (rng.standard_normal((count, width), np.float32) for width in widths)
    return spans, embedding, mixed_5c


def write(destination: Path, counts: dict[str, int], *, overwrite: bool = False) -> tuple[Any, Any]:
    parts = [rows(count, seed) for seed, count in enumerate(counts.values())]
    with FeatureWriter(destination, METADATA, overwrite=overwrite) as writer:
        for path, part in zip(counts, parts, strict=True):
            writer.append(path, *part)
        writer.commit()
    return np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts])


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_written_is_read_back(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_files, "_ROW_GROUP", 4)
    embedding, mixed_5c = write(tmp_path / name, {"a.mp4": 3, "none.mp4": 0, "videos/é.mkv": 11})
    features = read_features(tmp_path / name)
    assert features.path == ("a.mp4",) * 3 + ("videos/é.mkv",) * 11
    np.testing.assert_array_equal(features.embedding, embedding)
    np.testing.assert_array_equal(features.mixed_5c, mixed_5c)
    assert features.start_s.tolist() == [index * 1.6 for index in (*range(3), *range(11))]
    assert features.end_s.tolist() == [index * 1.6 + 3.2 for index in (*range(3), *range(11))]
    assert features.metadata == METADATA
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_an_npz_opens_with_numpy_alone(tmp_path: Path) -> None:
    embedding, _ = write(tmp_path / "f.npz", {"a.mp4": 2, "longer.mp4": 1})
    with np.load(tmp_path / "f.npz", allow_pickle=False) as archive:
        assert sorted(archive.files) == ["embedding", "end_s", "metadata", "mixed_5c", "path", "start_s"]
        assert archive["path"].tolist() == ["a.mp4", "a.mp4", "longer.mp4"]
        assert archive["embedding"].dtype == np.float32
        np.testing.assert_array_equal(archive["embedding"], embedding)
        metadata = json.loads(str(archive["metadata"]))
    assert metadata["preset_name"] == "sliding"
    assert metadata["model_digest"] == "ab" * 32


def test_a_parquet_file_has_fixed_size_lists_and_the_metadata_in_its_schema(tmp_path: Path) -> None:
    write(tmp_path / "f.parquet", {"a.mp4": 2})
    table = parquet.read_table(tmp_path / "f.parquet")
    assert table.column_names == ["path", "start_s", "end_s", "embedding", "mixed_5c"]
    assert table.schema.field("embedding").type == pa.list_(pa.float32(), 8)
    assert table.schema.field("mixed_5c").type == pa.list_(pa.float32(), 12)
    assert json.loads(table.schema.metadata[b"milnce"])["precision"] == "fp32"


def test_parquet_row_groups_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_files, "_ROW_GROUP", 10)
    write(tmp_path / "f.parquet", {"a.mp4": 3, "b.mp4": 35, "c.mp4": 1})
    groups = parquet.ParquetFile(tmp_path / "f.parquet").metadata
    sizes = [groups.row_group(index).num_rows for index in range(groups.num_row_groups)]
    assert sum(sizes) == 39
    assert max(sizes) < 20


@pytest.mark.parametrize("name", FORMATS)
def test_memory_while_writing_does_not_grow_with_the_rows(name: str, tmp_path: Path) -> None:
    part = rows(64, widths=(512, 1024))
    tracemalloc.start()
    try:
        with FeatureWriter(tmp_path / name, METADATA) as writer:
            for number in range(100):
                writer.append(f"{number}.mp4", *part)
            writer.commit()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    total = 100 * 64 * (512 + 1024) * 4
    assert total > 35e6
    # Python's share: Arrow has buffers of its own, bounded by the row groups.
    assert peak < 8e6


def test_a_path_that_is_not_utf8_is_stored_escaped(tmp_path: Path) -> None:
    name = b"caf\xe9.mp4".decode("utf-8", "surrogateescape")
    for file in FORMATS:
        write(tmp_path / file, {name: 1})
        assert read_features(tmp_path / file).path == ("caf\\xe9.mp4",)


@pytest.mark.parametrize("name", FORMATS)
def test_leaving_without_commit_leaves_nothing(name: str, tmp_path: Path) -> None:
    def fail() -> None:
        with FeatureWriter(tmp_path / name, METADATA) as writer:
            writer.append("a.mp4", *rows(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", FORMATS)
def test_the_old_file_stays_until_the_new_one_is_whole(name: str, tmp_path: Path) -> None:
    write(tmp_path / name, {"old.mp4": 1})
    with pytest.raises(OutputError, match=rf"{name}: exists already; pass --overwrite"):
        FeatureWriter(tmp_path / name, METADATA)
    with FeatureWriter(tmp_path / name, METADATA, overwrite=True) as writer:
        writer.append("new.mp4", *rows(2))
        assert read_features(tmp_path / name).path == ("old.mp4",)
    assert read_features(tmp_path / name).path == ("old.mp4",)
    write(tmp_path / name, {"new.mp4": 2}, overwrite=True)
    assert read_features(tmp_path / name).path == ("new.mp4",) * 2
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_destination_that_cannot_be_is_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "file").touch()
    cases = {
        "f.csv": r"suffix '.csv' given; .npz or .parquet expected",
        "missing/f.npz": "no such folder; make it first",
        "file/f.npz": "no such folder; make it first",
        "folder.npz": "is a folder; name a file in it",
    }
    for name, message in cases.items():
        with pytest.raises(OutputError, match=message):
            FeatureWriter(tmp_path / name, METADATA)
    with pytest.raises(OutputError, match=r"/proc: cannot write here .*; choose another"):
        FeatureWriter(Path("/proc/f.npz"), METADATA)


def test_a_full_disk_is_an_output_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_files.NpzSink, "append", full)
    with FeatureWriter(tmp_path / "f.npz", METADATA) as writer, pytest.raises(OutputError, match="No space left"):
        writer.append("a.mp4", *rows(1))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Let no file grow over 20 kB, as on a disk that is full: the kernel refuses, at whatever write comes to it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.filterwarnings("error")  # also of files that are closed too late
@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("parts", "count"), [(1, 10), (40, 1), (3, 400), (4, 1000)])
def test_a_disk_that_fills_at_any_write_is_an_output_error(name: str, parts: int, count: int, tmp_path: Path) -> None:
    def store() -> None:
        with FeatureWriter(tmp_path / name, METADATA) as writer:
            for number in range(parts):
                writer.append(f"{number}.mp4", *rows(count, number, (200, 300)))
            writer.commit()

    with pytest.raises(OutputError, match=rf"{name}: cannot write .*is the disk full\?"):
        store()
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def test_rows_that_do_not_fit_their_windows_are_refused(tmp_path: Path) -> None:
    spans, embedding, mixed_5c = rows(3)
    with FeatureWriter(tmp_path / "f.npz", METADATA) as writer:
        with pytest.raises(InputError, match=r"embedding: float32 \(2, 8\) given; float32 \(3, width\) expected"):
            writer.append("a.mp4", spans, embedding[:2], mixed_5c)
        with pytest.raises(InputError, match="mixed_5c: float64"):
            writer.append("a.mp4", spans, embedding, mixed_5c.astype(np.float64))
        with pytest.raises(OutputError, match="no window to write"):
            writer.commit()


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "f.parquet", {"a.mp4": 1})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "milnce\[parquet\]"'):
        FeatureWriter(tmp_path / "g.parquet", METADATA)
    with pytest.raises(MissingDependencyError, match=r'pip install "milnce\[parquet\]"'):
        read_features(tmp_path / "f.parquet")


@pytest.mark.parametrize("name", FORMATS)
def test_damaged_files_are_refused_by_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write(path, {"a.mp4": 50})
    whole = path.read_bytes()
    for kept in (0, 10, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:kept])
        with pytest.raises(InputError, match=rf"{name}: damaged, or not"):
            read_features(path)


def test_a_flipped_byte_in_an_npz_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "f.npz"
    write(path, {"a.mp4": 50})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"damaged, or not an NPZ .*CRC"):
        read_features(path)


def test_other_files_are_not_features(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(InputError, match=r"not a features file, \['path', .*'metadata'\] missing; `milnce embed`"):
        read_features(tmp_path / "other.npz")
    parquet.write_table(pa.table({"path": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(InputError, match=r"not a features file, \['start_s', .*\] missing"):
        read_features(tmp_path / "other.parquet")
    with pytest.raises(InputError, match=r"suffix '.mp4' given"):
        read_features(tmp_path / "a.mp4")
    with pytest.raises(InputError, match="no such features file"):
        read_features(tmp_path / "missing.npz")


def test_columns_of_the_wrong_kind_are_refused(tmp_path: Path) -> None:
    good: dict[str, Any] = {
        "path": np.array(["a"]),
        "start_s": np.zeros(1),
        "end_s": np.ones(1),
        "embedding": np.zeros((1, 8), np.float32),
        "mixed_5c": np.zeros((1, 12), np.float32),
        "metadata": np.array(METADATA.to_json()),
    }
    cases: list[tuple[str, Any, str]] = [
        ("embedding", np.zeros((2, 8), np.float32), r"embedding is float32 \(2, 8\); float32 \(1, width\) expected"),
        ("embedding", np.zeros((1, 8)), "embedding is float64"),
        ("start_s", np.zeros((1, 1)), r"start_s is float64 \(1, 1\)"),
        ("path", np.zeros(1), "path and metadata must be text"),
        ("metadata", np.array("{}"), "metadata must be an object with"),
        ("metadata", np.array("{"), "metadata is not JSON"),
        ("path", np.array(["a", None], object), "damaged, or not an NPZ .*Object arrays"),
    ]
    for name, value, message in cases:
        np.savez(tmp_path / "f.npz", **{**good, name: value})
        with pytest.raises(InputError, match=message):
            read_features(tmp_path / "f.npz")
    np.savez(tmp_path / "f.npz", **good)
    assert isinstance(read_features(tmp_path / "f.npz"), Features)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_digest": 12}, "f.npz: metadata: model_digest is 12; text expected; embed the videos again"),
        ({"preset": None}, "metadata: preset is None; an object expected"),
        ({"precision": True}, "metadata: precision is True; text expected"),
        ({"start_s": "0"}, "metadata: start_s is '0'; seconds or null expected"),
        ({"end_s": True}, "metadata: end_s is True; seconds or null expected"),
    ],
)
def test_metadata_of_the_wrong_type_is_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    write(tmp_path / "f.npz", {"a.mp4": 1})
    columns = dict(np.load(tmp_path / "f.npz"))
    np.savez(tmp_path / "f.npz", **{**columns, "metadata": json.dumps({**json.loads(METADATA.to_json()), **changes})})
    with pytest.raises(InputError, match=message):
        read_features(tmp_path / "f.npz")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("start_s", np.nan, "the window of b from nan s to 4.8 s has impossible times"),
        ("start_s", -1, "from -1 s to 4.8 s has impossible times"),
        ("start_s", 5, "from 5 s to 4.8 s has impossible times"),
        ("end_s", np.inf, "from 1.6 s to inf s has impossible times"),
        ("embedding", np.nan, "the window of b from 1.6 s to 4.8 s holds NaN or infinity in embedding; embed that"),
        ("mixed_5c", -np.inf, "the window of b from 1.6 s to 4.8 s holds NaN or infinity in mixed_5c"),
    ],
)
def test_a_window_that_is_no_number_is_named(
    column: str, value: float, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("milnce.features._ROWS_AT_ONCE", 2)
    write(tmp_path / "f.npz", {"a": 3, "b": 2})
    columns = dict(np.load(tmp_path / "f.npz"))
    columns[column][4] = value
    np.savez(tmp_path / "f.npz", **columns)
    with pytest.raises(InputError, match=re.escape(message)) as refused:
        read_features(tmp_path / "f.npz")
    assert str(refused.value).startswith(str(tmp_path / "f.npz"))


def test_paths_in_parquet_must_be_text(tmp_path: Path) -> None:
    write(tmp_path / "f.parquet", {"a.mp4": 1})
    stored = parquet.read_table(tmp_path / "f.parquet")
    buffers = [None, pa.py_buffer(np.array([0, 4], np.int32)), pa.py_buffer(b"caf\xe9")]
    for column, message in (
        (pa.Array.from_buffers(pa.string(), 1, buffers), "damaged, its paths are not UTF-8 .*; embed the videos again"),
        (pa.array([3]), "path must be text; embed the videos again"),
        (pa.array([None], pa.string()), "path must be text"),
    ):
        number = stored.schema.get_field_index("path")
        parquet.write_table(stored.set_column(number, "path", column), tmp_path / "g.parquet")
        with pytest.raises(InputError, match=rf"g\.parquet: {message}"):
            read_features(tmp_path / "g.parquet")


def test_metadata_of_older_files_and_of_newer_ones_is_read() -> None:
    older = json.loads(METADATA.to_json())
    del older["start_s"], older["end_s"]
    assert FeaturesMetadata.from_json(json.dumps({**older, "newer": 1})) == METADATA
    part = replace(METADATA, start_s=0.5, end_s=2)
    assert FeaturesMetadata.from_json(part.to_json()) == part


def test_embeddings_are_stored_so_that_tools_can_map_them(tmp_path: Path) -> None:
    write(tmp_path / "f.npz", {"a.mp4": 5})
    with zipfile.ZipFile(tmp_path / "f.npz") as archive:
        kinds = {entry.filename: entry.compress_type for entry in archive.infolist()}
    assert kinds["embedding.npy"] == zipfile.ZIP_STORED
    assert kinds["path.npy"] == zipfile.ZIP_DEFLATED


def test_a_writer_that_cannot_close_does_not_hide_why_it_stopped(tmp_path: Path) -> None:
    class Full:
        def close(self) -> None:
            raise OSError(28, "No space left on device")

    sink = feature_files.ParquetSink(tmp_path, (2, 3), "{}")
    sink._writer.close()  # noqa: SLF001  the real one, so that its file is closed
    sink._writer = Full()  # noqa: SLF001
    sink.close()
