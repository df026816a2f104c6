r"""Writes unicode_tables.hpp: what Python's `str.lower` and `\w` know of Unicode, for the C++ tokenizer.

    python examples/cpp/make_unicode_tables.py > examples/cpp/unicode_tables.hpp

Nothing is read from Unicode's files: every table is asked of this very Python, code point by code point, so it holds
for the version of Unicode that this Python has, which is written into the file.
"""

# ruff: noqa: INP001 - a script beside the file that it writes, and no package
from __future__ import annotations

import re
import sys
import unicodedata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_WORD = re.compile(r"\w")
_SIGMA, _FINAL_SIGMA = "\u03a3", "\u03c2"
_SPECIAL = {0x130: "i\u0307", ord(_SIGMA): "\u03c3"}  # in the header's code, not in its tables
_WIDTH = 118

Run = tuple[int, int, int, int]  # first, last, step, what to add


def main() -> None:
    """Write the header to stdout."""
    lines = [
        "// Written by make_unicode_tables.py: do not edit. What Python's str.lower() and re's \\w know of Unicode.",
        "#pragma once",
        "",
        "namespace milnce::unicode {",
        "",
        f'constexpr char version[] = "{unicodedata.unidata_version}";',
        "",
        "struct Range {",
        "    char32_t first, last;",
        "};",
        "",
        "// Every `step`-th code point from `first` to `last` becomes lower case by adding `delta`.",
        "struct Lower {",
        "    char32_t first, last;",
        "    int step, delta;",
        "};",
        "",
        *_table("Range", "word", "a letter or a number, or the underscore: \\w", ranges(is_word)),
        *_table("Range", "ignorable", "Case_Ignorable: skipped around a capital sigma", ranges(is_ignorable)),
        *_table("Range", "cased", "Cased and not Case_Ignorable: decides about a capital sigma", ranges(is_cased)),
        *_table("Lower", "lower", "lower case, U+0130 and U+03A3 aside", lower_runs()),
        "}  // namespace milnce::unicode",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def is_word(code: int) -> bool:
    r"""Whether the code point is one of \w."""
    return _WORD.match(chr(code)) is not None


def is_ignorable(code: int) -> bool:
    """Whether a capital sigma looks past the code point for what is before it."""
    return _is_final(f"a{chr(code)}{_SIGMA}") and not _is_final(f"1{chr(code)}{_SIGMA}")


def is_cased(code: int) -> bool:
    """Whether a capital sigma after the code point is the last letter of a word."""
    return _is_final(f"1{chr(code)}{_SIGMA}")


def _is_final(text: str) -> bool:
    return text.lower()[-1] == _FINAL_SIGMA


def ranges(test: Callable[[int], bool]) -> list[tuple[int, int]]:
    """Return the ranges of code points that pass."""
    found: list[tuple[int, int]] = []
    for code in range(sys.maxunicode + 1):
        if test(code):
            joins = bool(found) and found[-1][1] == code - 1
            found[-1:] = [(found[-1][0], code)] if joins else [*found[-1:], (code, code)]
    return found


def lower_runs() -> list[Run]:
    """Return the lower-case mappings of one code point to one, those with the same difference joined.

    Raises:
        ValueError: if this Python maps another code point to several; the header's code would have to know it.
    """
    runs: list[Run] = []
    for code in range(sys.maxunicode + 1):
        small = chr(code).lower()
        if small == chr(code) or _SPECIAL.get(code) == small:
            continue
        if len(small) != 1:
            raise ValueError(f"U+{code:04X} becomes {small!a} in lower case, which the header does not know")
        delta = ord(small) - code
        first, last, step, before = runs[-1] if runs else (0, 0, 0, 0)
        gap = code - last
        if runs and delta == before and (gap == step or (first == last and gap in (1, 2))):
            runs[-1] = (first, code, gap, delta)
        else:
            runs.append((code, code, 1, delta))
    return runs


def _table(kind: str, name: str, meaning: str, rows: list[tuple[int, int]] | list[Run]) -> Iterator[str]:
    yield f"// {meaning}"
    yield f"constexpr {kind} {name}[] = {{"
    line = "   "
    for row in rows:
        cell = f" {{0x{row[0]:X}, 0x{row[1]:X}{''.join(f', {number}' for number in row[2:])}}},"
        if len(line) + len(cell) > _WIDTH:
            yield line
            line = "   "
        line += cell
    yield line
    yield "};"
    yield ""


if __name__ == "__main__":
    main()
