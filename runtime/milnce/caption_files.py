"""The rows of a captions file: CSV, TSV or Parquet by suffix, as columns by name."""

from __future__ import annotations

import csv
import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from milnce.errors import InputError
from milnce.feature_files import import_pyarrow

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping
    from pathlib import Path

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_SEPARATORS = {"commas": ",", "semicolons": ";", "tabs": "\t", "bars": "|"}
SUFFIXES = (*DELIMITERS, ".parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        number: 1 for the first row under the header; blank lines count.
        cells: Values by column: text, or from Parquet whatever it holds. None for an empty Parquet cell.
        fault: What is wrong with the row as such, or None.
    """

    number: int
    cells: Mapping[str, Any]
    fault: str | None = None


class CaptionFile:
    """A captions file whose columns are known and whose rows can be read.

    Args:
        path: The file, ending in .csv, .tsv (tabs) or .parquet. Text is UTF-8, with or without a byte order mark.

    Raises:
        InputError: if the suffix is unknown, or the file is missing, damaged, empty, or names a column twice.
        MissingDependencyError: if it is Parquet and pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise InputError(f"{path}: suffix {path.suffix!r} given; a captions file ends in {', '.join(SUFFIXES)}")
        if not os.path.isfile(path):  # noqa: PTH113 - Path.is_file raises where it may not look
            raise InputError(f"{path}: no such captions file")
        self._delimiter = DELIMITERS.get(suffix)
        self.columns = self._parquet_columns() if self._delimiter is None else self._csv_columns()
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if "" in twice:
            raise InputError(f"{path}: {self.columns.count('')} columns have no name; name or remove them")
        if twice:
            raise InputError(f"{path}: column {', '.join(twice)} is there twice; rename one")

    @property
    def delimiter_hint(self) -> str | None:
        """What to do if the columns look to be separated by something else than the suffix says; None if not."""
        if self._delimiter is None or len(self.columns) > 1:
            return None
        found = [name for name, sign in _SEPARATORS.items() if sign != self._delimiter and sign in self.columns[0]]
        wanted = {",": "commas in a .csv file", "\t": "tabs in a .tsv file"}[self._delimiter]
        return f"Its first line has {' and '.join(found)}; {wanted} expected, so save it with these" if found else None

    def rows(self, columns: Collection[str]) -> Iterator[Row]:
        """Read the rows with at least `columns`, which must be there.

        Raises:
            InputError: if the file is damaged.
        """
        return self._csv_rows() if self._delimiter is not None else self._parquet_rows(columns)

    def _csv_columns(self) -> list[str]:
        with self._reading() as reader:
            header: list[str] | None = next(reader, None)
        if not header:
            what = "empty" if header is None else "its first line is blank"
            raise InputError(f"{self.path}: {what}; a first line with the names of the columns expected")
        return [name.strip() for name in header]

    def _csv_rows(self) -> Iterator[Row]:
        with self._reading() as reader:
            next(reader)
            expected = len(self.columns)
            for number, cells in enumerate(reader, 1):
                if not cells:  # as the csv module reads a blank line
                    continue
                fault = None if len(cells) == expected else f"has {len(cells)} cells, and the header {expected}"
                # Fewer cells than columns are a fault, and said to be one.
                yield Row(number, dict(zip(self.columns, cells, strict=False)), fault)

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        try:
            with self.path.open(encoding="utf-8-sig", newline="") as file:
                reader = csv.reader(file, delimiter=self._delimiter or ",", strict=True)
                try:
                    yield reader
                except csv.Error as error:
                    raise InputError(f"{self.path}: line {reader.line_num} is no CSV ({error})") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: not UTF-8 ({error}); save it as UTF-8") from error
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from error

    def _parquet_columns(self) -> list[str]:
        with self._open_parquet() as file:
            return list(file.schema_arrow.names)

    def _parquet_rows(self, columns: Collection[str]) -> Iterator[Row]:
        number = 0
        with self._open_parquet() as file:
            for batch in file.iter_batches(columns=sorted(columns)):
                for cells in batch.to_pylist():
                    number += 1
                    yield Row(number, cells)

    @contextmanager
    def _open_parquet(self) -> Iterator[Any]:
        pyarrow, parquet = import_pyarrow()
        try:
            with parquet.ParquetFile(self.path) as file:
                yield file
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: damaged, its text is not UTF-8 ({error})") from error
        except (pyarrow.ArrowException, OSError) as error:
            raise InputError(f"{self.path}: damaged, or not Parquet ({error})") from error
