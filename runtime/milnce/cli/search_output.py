"""How `milnce search` shows what it found: tables, JSON and the contact sheet."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from milnce.cli.common import clock, make_console, print_table, printable, say
from milnce.errors import MilnceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from PIL.Image import Image

    from milnce.cli.search_query import Query
    from milnce.search import Moment

    Failures = list[tuple[Path | str, MilnceError]]

_BAR_CELLS = 12


@dataclass(frozen=True, slots=True)
class Answer:
    """What one query found.

    Attributes:
        query: The query.
        moments: The best moments, best first.
        lowest: The lowest score of all windows.
    """

    query: Query
    moments: list[Moment]
    lowest: float


def print_answers(answers: Sequence[Answer]) -> None:
    """Print a table a query, each under its sentence if there are several."""
    for number, answer in enumerate(answers):
        if len(answers) > 1:
            typer.echo(("\n" if number else "") + printable(answer.query.text))
        _print(answer)


def answers_json(answers: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return the answers for JSON output."""
    return [
        {
            "kind": answer.query.kind,
            "query": answer.query.text,
            "unknown_words": list(answer.query.unknown),
            "results": [asdict(moment) for moment in answer.moments],
        }
        for answer in answers
    ]


def draw_answers(answers: Sequence[Answer], destination: Path, failed: Failures, *, overwrite: bool) -> bool:
    """Draw the contact sheet from the middle frame of each moment's best window, a row of pictures a query.

    Adds what failed to `failed`, and returns whether the sheet was written.
    """
    from milnce.sheet import save_sheet, stack_sheets  # noqa: PLC0415  # commands import what they need when they run

    try:
        sheets = [_sheet(answer, failed) for answer in answers]
        save_sheet(stack_sheets(sheets), destination, overwrite=overwrite)
    except MilnceError as error:
        say(printable(f"Failed: {error}"))
        failed.append((destination, error))
        return False
    return True


def _sheet(answer: Answer, failed: Failures) -> Image:
    from milnce.sheet import FRAME_HEIGHT, Tile, contact_sheet  # noqa: PLC0415
    from milnce.video import read_frame  # noqa: PLC0415

    tiles = []
    for moment in answer.moments:
        path = Path(moment.path)
        try:
            frame = read_frame(path, (moment.best_start_s + moment.best_end_s) / 2, height=FRAME_HEIGHT)
        except MilnceError as error:
            say(printable(f"No picture for rank {moment.rank}: {error}"))
            if path not in {where for where, _ in failed}:
                failed.append((path, error))
            frame = None
        tiles.append(Tile(frame, moment.rank, moment.score, printable(path.name), _when(moment)))
    return contact_sheet(tiles, printable(answer.query.text))


def _print(answer: Answer) -> None:
    """Print one table; bars run from the lowest score of all windows (empty) to the best (full)."""
    moments, lowest = answer.moments, answer.lowest
    span = max(moments[0].score - lowest, 1e-12)
    rows = [
        [
            str(moment.rank),
            f"{moment.score:.3f}",
            _bar((moment.score - lowest) / span),
            _when(moment),
            moment.path,
        ]
        for moment in moments
    ]
    print_table([("rank", "right"), ("score", "right"), ("", "left"), ("time", "left"), ("file", "left")], rows)


def _bar(fraction: float) -> str:
    block = "█" if make_console().encoding.startswith("utf") else "#"
    return block * round(fraction * _BAR_CELLS)


def _when(moment: Moment) -> str:
    return f"{clock(moment.start_s)} - {clock(moment.end_s)}"
