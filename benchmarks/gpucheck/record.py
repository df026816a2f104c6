"""What a part of the GPU check writes down as it goes: one line of JSON as a check begins, one as it ends.

A crash or a hang of the process then loses nothing but the check under way, and says which that was.
"""

from __future__ import annotations

import json
import traceback
from typing import TYPE_CHECKING, Any

from harness import plain

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

# Outcomes of a check.
PASSED = "passed"
FAILED = "failed"
ERROR = "error"  # it raised, or its process died
MEASURED = "measured"  # a figure and no judgement
ABSENT = "absent"  # what it needs is not on this host
LEFT_OUT = "left out"  # something to compare with that cannot be compared with

BAD = (FAILED, ERROR)

Event = dict[str, Any]


class Recorder:
    """Appends checks to a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def start(self, check: str) -> None:
        """Say that a check begins: it is the one to blame if the process dies."""
        self._write({"event": "start", "check": check})

    def leave(self, check: str) -> None:
        """Say that a check is no longer under way; what came of it is written down by `add`."""
        self._write({"event": "leave", "check": check})

    def add(self, kind: str, check: str, outcome: str, detail: str = "", **data: Any) -> None:  # noqa: ANN401 - JSON
        """Write down how a check ended.

        Args:
            kind: What sort of check it is; the report has a table for each.
            check: Its name.
            outcome: One of this module's.
            detail: What went wrong, or was seen, in words.
            **data: Figures.
        """
        event = {"event": "end", "kind": kind, "check": check, "outcome": outcome, "detail": detail, "data": data}
        self._write(event)

    def guarded(self, kind: str, check: str, **data: Any) -> Guard:  # noqa: ANN401 - JSON
        """Begin a check; what its with block raises is written down, and does not end the part."""
        self.start(check)
        return Guard(self, kind, check, data)

    def _write(self, event: Event) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(plain(event), allow_nan=False) + "\n")


class Guard:
    """Writes down what its with block raises, as the error of a check."""

    def __init__(self, record: Recorder, kind: str, check: str, data: dict[str, Any]) -> None:
        self._record, self._kind, self._check, self._data = record, kind, check, data

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            self._record.leave(self._check)
        if not isinstance(error, Exception):  # one that must end the process
            return False
        where = "".join(traceback.format_tb(trace, limit=-3))
        words = f"{type(error).__name__}: {error}"
        self._record.add(self._kind, self._check, ERROR, words, **self._data, traceback=where)
        return True


def read_events(path: Path) -> tuple[list[Event], str | None]:
    """Return the checks that ended, and the name of the last that began, if it did not end."""
    ended: list[Event] = []
    under_way: str | None = None
    if path.exists():
        for line in path.read_text("utf-8").splitlines():
            try:
                event = json.loads(line)
            except json.JSONDecodeError:  # the line that was being written
                continue
            what = event.pop("event")
            if what == "start":
                under_way = event["check"]
            elif event["check"] == under_way:
                under_way = None
            if what == "end":
                ended.append(event)
    return ended, under_way
