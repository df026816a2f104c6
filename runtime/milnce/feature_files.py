"""The two formats of a features file: how rows reach the disk a video at a time, and how columns come back."""

from __future__ import annotations

import contextlib
import shutil
import zipfile
import zlib
from abc import ABC, abstractmethod
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from milnce.errors import InputError, MissingDependencyError
from milnce.files import NUMPY_HEADERS
from milnce.platforms import install

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

COLUMNS = ("path", "start_s", "end_s", "embedding", "mixed_5c")

# Rows of a Parquet row group: 6 MiB at full width, small enough to hold and large enough to skip well.
_ROW_GROUP = 1024
_COPY_BYTES = 1 << 20


class Sink(ABC):
    """Takes the columns of one video at a time and leaves one finished file.

    Args:
        folder: A temporary folder of its own; the caller removes it.
        widths: Widths of `embedding` and `mixed_5c`.
        metadata: JSON text to store beside the columns.
    """

    def __init__(self, folder: Path, widths: tuple[int, int], metadata: str) -> None:
        self.folder = folder
        self.widths = {"embedding": widths[0], "mixed_5c": widths[1]}
        self._metadata = metadata

    @abstractmethod
    def append(self, columns: Mapping[str, Any]) -> None:
        """Add one video: `path` is its text, the other columns have one entry a window."""

    @abstractmethod
    def finish(self) -> Path:
        """Write what is left and return the finished file, inside the folder."""

    @abstractmethod
    def close(self) -> None:
        """Close what is open; what `finish` returned stays. Never raises: unfinished rows are thrown away anyhow."""


class NpzSink(Sink):
    """Spools each numeric column to a raw file; an NPZ needs the number of rows before the first of them."""

    def __init__(self, folder: Path, widths: tuple[int, int], metadata: str) -> None:
        super().__init__(folder, widths, metadata)
        self._spools: dict[str, IO[bytes]] = {name: (folder / name).open("w+b") for name in COLUMNS[1:]}
        self._paths: list[tuple[str, int]] = []  # each path once, with its number of rows

    def append(self, columns: Mapping[str, Any]) -> None:  # noqa: D102  # as the base says
        for name, spool in self._spools.items():
            spool.write(np.ascontiguousarray(columns[name]).data)
        self._paths.append((columns["path"], len(columns["start_s"])))

    def finish(self) -> Path:  # noqa: D102  # as the base says
        rows = sum(count for _, count in self._paths)
        characters = max(len(path) for path, _ in self._paths)
        finished = self.folder / "features.npz"
        with zipfile.ZipFile(finished, "w", zipfile.ZIP_STORED) as archive:
            self._write(archive, "metadata", np.dtype(f"<U{len(self._metadata)}"), ())
            self._write(archive, "path", np.dtype(f"<U{characters}"), (rows,))
            for name, spool in self._spools.items():
                shape = (rows, self.widths[name]) if name in self.widths else (rows,)
                spool.seek(0)
                self._write(archive, name, np.dtype("<f4" if name in self.widths else "<f8"), shape)
        return finished

    def _write(self, archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        # Paths are padded to the longest, four bytes a character: deflate takes that back. Embeddings do not compress.
        entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
        entry.compress_type = zipfile.ZIP_DEFLATED if name == "path" else zipfile.ZIP_STORED
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        with archive.open(entry, "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            if name == "metadata":
                member.write(np.array(self._metadata, dtype).tobytes())
            elif name == "path":
                for path, count in self._paths:
                    member.write(np.full(count, path, dtype).tobytes())
            else:
                shutil.copyfileobj(self._spools[name], member, _COPY_BYTES)

    def close(self) -> None:  # noqa: D102  # as the base says
        for spool in self._spools.values():
            with contextlib.suppress(OSError):  # a full disk: `close` writes what is buffered
                spool.close()


class ParquetSink(Sink):
    """Gathers rows of several videos into row groups, and writes each as it is full."""

    def __init__(self, folder: Path, widths: tuple[int, int], metadata: str) -> None:
        super().__init__(folder, widths, metadata)
        pyarrow, parquet = import_pyarrow()
        self._pyarrow = pyarrow
        vector = {name: pyarrow.list_(pyarrow.float32(), width) for name, width in self.widths.items()}
        types = {"path": pyarrow.string(), "start_s": pyarrow.float64(), "end_s": pyarrow.float64(), **vector}
        columns = [pyarrow.field(name, types[name], nullable=False) for name in COLUMNS]
        self._schema = pyarrow.schema(columns, metadata={"milnce": metadata})
        self._file = folder / "features.parquet"
        # Exponents repeat where whole floats do not: splitting bytes saves about 15 %, a dictionary would add as much.
        self._writer = parquet.ParquetWriter(
            self._file,
            self._schema,
            compression="zstd",
            use_dictionary=["path"],
            use_byte_stream_split=[f"{name}.list.element" for name in self.widths],
        )
        self._tables: list[Any] = []
        self._rows = 0

    def append(self, columns: Mapping[str, Any]) -> None:  # noqa: D102  # as the base says
        total = len(columns["start_s"])
        for start in range(0, total, _ROW_GROUP):
            stop = min(start + _ROW_GROUP, total)
            self._tables.append(self._table(columns, start, stop))
            self._rows += stop - start
            if self._rows >= _ROW_GROUP:
                self._flush()

    def _table(self, columns: Mapping[str, Any], start: int, stop: int) -> Any:  # noqa: ANN401  # pyarrow has no types
        arrow = self._pyarrow
        arrays = [arrow.array([columns["path"]] * (stop - start), arrow.string())]
        for name in COLUMNS[1:]:
            values = arrow.array(np.ascontiguousarray(columns[name][start:stop]).reshape(-1))
            width = self.widths.get(name)
            arrays.append(values if width is None else arrow.FixedSizeListArray.from_arrays(values, width))
        return arrow.Table.from_arrays(arrays, schema=self._schema)

    def _flush(self) -> None:
        if self._tables:
            table = self._pyarrow.concat_tables(self._tables)
            self._writer.write_table(table, row_group_size=len(table))
            self._tables, self._rows = [], 0

    def finish(self) -> Path:  # noqa: D102  # as the base says
        self._flush()
        self._writer.close()
        return self._file

    def close(self) -> None:  # noqa: D102  # as the base says
        with contextlib.suppress(OSError):  # a full disk: `close` writes the footer
            self._writer.close()


def read_npz(path: Path) -> dict[str, Any]:
    """Read the columns of an NPZ and its `metadata` text.

    Raises:
        InputError: if it is damaged, or a member is missing.
    """
    try:
        with NUMPY_HEADERS, np.load(path, allow_pickle=False) as archive:
            missing = [name for name in (*COLUMNS, "metadata") if name not in archive.files]
            columns: dict[str, Any] = {} if missing else {name: archive[name] for name in (*COLUMNS, "metadata")}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise InputError(f"{path}: damaged, or not an NPZ ({error}); embed the videos again") from error
    if missing:
        raise InputError(f"{path}: not a features file, {missing} missing; `milnce embed` writes one")
    if columns["path"].dtype.kind != "U" or columns["metadata"].dtype.kind != "U":
        raise InputError(f"{path}: path and metadata must be text; embed the videos again")
    return {**columns, "path": columns["path"].tolist(), "metadata": str(columns["metadata"])}


def read_parquet(path: Path) -> dict[str, Any]:
    """Read the columns of a Parquet file and its `metadata` text.

    Raises:
        InputError: if it is damaged, or a column is missing.
        MissingDependencyError: if pyarrow is not installed.
    """
    pyarrow, parquet = import_pyarrow()
    try:
        # partitioning=None: folders named like `a=b` on the way are no columns.
        table = parquet.read_table(path, partitioning=None)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path}: damaged, or not Parquet ({error}); embed the videos again") from error
    metadata = (table.schema.metadata or {}).get(b"milnce")
    missing = [name for name in COLUMNS if name not in table.column_names]
    if missing or metadata is None:
        what = missing or "the schema's milnce metadata"
        raise InputError(f"{path}: not a features file, {what} missing; `milnce embed` writes one")
    try:
        paths = table["path"].to_pylist()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: damaged, its paths are not UTF-8 ({error}); embed the videos again") from error
    if not all(isinstance(item, str) for item in paths):
        raise InputError(f"{path}: path must be text; embed the videos again")
    columns: dict[str, Any] = {"path": paths, "metadata": metadata.decode("utf-8", "replace")}
    for name in COLUMNS[1:]:
        column = table[name].combine_chunks()
        if pyarrow.types.is_fixed_size_list(column.type):
            values = column.flatten().to_numpy(zero_copy_only=False)
            columns[name] = values.reshape(len(table), column.type.list_size)
        else:
            columns[name] = column.to_numpy(zero_copy_only=False)
    return columns


def import_pyarrow() -> tuple[Any, Any]:
    """Return `pyarrow` and `pyarrow.parquet`.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    try:
        import pyarrow as pa  # noqa: PLC0415  # optional
        from pyarrow import parquet  # noqa: PLC0415  # optional
    except ImportError as error:
        raise MissingDependencyError(f"Parquet needs pyarrow; run: {install('parquet')}") from error
    return pa, parquet
