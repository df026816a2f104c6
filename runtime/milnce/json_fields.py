"""Reads JSON strictly, and takes typed fields out of it, collecting all that is wrong, not stopping at the first."""

from __future__ import annotations

import json
import re
import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PLAIN_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")


_T = TypeVar("_T", bool, float, str)


class Fields:
    """The fields of one JSON object.

    Args:
        value: The object, or whatever is in its place.
        where: What to call it in messages.
        problems: The list that every problem is added to.
    """

    _EMPTY: Mapping[type, Callable[[], Any]] = {str: str, int: int, list: list, dict: dict}

    def __init__(self, value: object, where: str, problems: list[str]) -> None:
        self.where = where
        self.problems = problems
        self.left: dict[str, Any] = dict(value) if isinstance(value, dict) else {}
        self.sound = isinstance(value, dict)
        if not self.sound:
            problems.append(f"{where} must be an object, not {brief(value)}")

    def get(self, key: str, kind: type, test: Callable[[Any], object] | None = None, expected: str = "") -> Any:  # noqa: ANN401 - the caller names the type
        """Return field `key`, or an empty value of the same kind after noting the problem."""
        empty = self._EMPTY[kind]()
        if not self.sound:
            return empty
        if key not in self.left:
            self.problems.append(f"{self.where} lacks {key!r}")
            return empty
        value = self.left.pop(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            self.problems.append(f"{self.where}: {key!r} must be of type {kind.__name__}, not {brief(value)}")
            return empty
        if test is not None and not test(value):
            self.problems.append(f"{self.where}: {key!r} {expected}, not {brief(value)}")
        return value

    def sha256(self, key: str) -> str:
        """Return a hex digest."""
        value: str = self.get(key, str, _SHA256.fullmatch, "must be 64 hex digits")
        return value

    def file(self) -> str:
        """Return the field "file": one plain path component, without a leading dot or dash."""
        value: str = self.get("file", str, _is_plain_file, "must be a plain file name inside the folder")
        return value

    def positive(self, key: str) -> int:
        """Return a whole number of at least 1."""
        value: int = self.get(key, int, lambda number: number > 0, "must be at least 1")
        return value

    def flag(self, key: str) -> bool:
        """Return true or false."""
        return self._take(key, bool, lambda value: type(value) is bool, "true or false")

    def seconds(self, key: str) -> float:
        """Return a number of at least 0."""
        return self._take(key, float, _is_seconds, "a number of at least 0")

    def text_or_none(self, key: str) -> str | None:
        """Return a string that is not empty, or None for null."""
        value = self._take(key, str, lambda text: text is None or (isinstance(text, str) and text), "a text or null")
        return value or None

    def _take(self, key: str, kind: type[_T], test: Callable[[Any], object], expected: str) -> _T:
        """Return field `key` if it passes the test, or an empty value of `kind` after noting the problem."""
        if not self.sound:
            return kind()
        if key not in self.left:
            self.problems.append(f"{self.where} lacks {key!r}")
            return kind()
        value = self.left.pop(key)
        if not test(value):
            self.problems.append(f"{self.where}: {key!r} must be {expected}, not {brief(value)}")
            return kind()
        return kind() if value is None else kind(value)

    def close(self) -> None:
        """Note the fields that nobody asked for."""
        if self.left:
            self.problems.append(f"{self.where} has unknown fields: {', '.join(map(brief, sorted(self.left)))}")


def strict_json(data: bytes) -> Any:  # noqa: ANN401 - whatever the file holds
    """Decode UTF-8 JSON in which no object repeats a key and every number is one.

    Raises:
        ValueError: saying what is wrong.
        RecursionError: if it is nested too deep.
    """
    return json.loads(data.decode("utf-8"), object_pairs_hook=_no_repeated_keys, parse_constant=_no_constant)


def brief(value: object) -> str:
    """Return `value` as ASCII of at most a line, for messages."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."  # noqa: PLR2004 - a message line's worth


def repeated(items: Iterable[Any]) -> list[Any]:
    """Return the items that occur more than once, each once."""
    seen: set[Any] = set()
    twice: dict[Any, None] = {}
    for item in items:
        if item in seen:
            twice[item] = None
        seen.add(item)
    return list(twice)


def _is_plain_file(name: str) -> bool:
    return _PLAIN_FILE.fullmatch(name) is not None


def _is_seconds(value: object) -> bool:
    # Bounded rather than asked for finiteness, which fails on integers too large for a float.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= sys.float_info.max


def _no_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    for key in repeated(key for key, _ in pairs):
        raise ValueError(f"{brief(key)} occurs twice in one object")
    return dict(pairs)


def _no_constant(name: str) -> Any:  # noqa: ANN401 - never returns, but json wants a value
    raise ValueError(f"{name} is not JSON")
