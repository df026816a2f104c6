"""What `milnce eval` prints and writes: the table as text, Markdown and JSON, what was lost, and the page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from milnce.cli.common import describe_preset, print_table, printable, say
from milnce.errors import MilnceError
from milnce.published import PUBLISHED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from milnce.clip_sources import StoredFeatures
    from milnce.evaluation import Evaluation
    from milnce.metrics import RetrievalMetrics
    from milnce.published import PublishedRow
    from milnce.video import Preset

_COLUMNS = ("result", "metrics", "direction", "R@1", "R@5", "R@10", "R@50", "MdR", "MnR", "Geom")
_LISTED = 10


@dataclass(frozen=True, slots=True)
class Run:
    """An evaluation and what it was made with; `model` is `describe_model`'s."""

    result: Evaluation
    model: dict[str, Any]
    preset: Preset
    stored: StoredFeatures | None


def report_losses(result: Evaluation) -> None:
    """Say on stderr which rows and clips are left out, what that cost, and which captions have no known word."""
    captions = result.captions
    _list("Left out", [f"row {item.row}: {item.reason}" for item in captions.excluded])
    if captions.excluded:
        say(printable(f"{_many(len(captions.excluded), 'row')} of {captions.path} left out."))
    failures = []
    for item in result.failed:
        message = str(item.error) if str(item.error).startswith(f"{item.clip}:") else f"{item.clip}: {item.error}"
        failures.append(f"{message} (costs {_many(item.queries, 'query', 'queries')})")
    _list("Failed", failures)
    if result.failed:
        total = len(captions.clips)
        asked = len(result.asked) + result.queries_lost
        say(f"{len(failures)} of {total} clips failed, so {result.queries_lost} of {asked} queries were not asked.")
    sentences = [f"row {captions.captions[n].row}: {captions.captions[n].text}" for n in result.unknown]
    _list("Warning: no known word, asked as padding only", sentences)


def _list(label: str, lines: Sequence[str]) -> None:
    for line in lines[:_LISTED]:
        say(printable(f"{label}: {line}"))
    if len(lines) > _LISTED:
        say(f"{label}: and {len(lines) - _LISTED} more; --json lists all.")


def print_evaluation(run: Run, *, published: bool, markdown: bool) -> None:
    """Print the table, what it is of, and where published rows are from."""
    if not run.result.metrics:
        typer.echo("No table: no query is left to ask.")
        return
    rows = PUBLISHED if published else ()
    table = [*_own_rows(run.result), *map(_published_cells, rows)]
    if markdown:
        typer.echo(_markdown(table))
    else:
        print_table([(name, "left" if number < 3 else "right") for number, name in enumerate(_COLUMNS)], table)  # noqa: PLR2004  # names, then numbers
    bullet = "- " if markdown else ""
    for name, value in facts(run):
        typer.echo(printable(f"{bullet}{name}: {value}"))
    for source in dict.fromkeys(row.source for row in rows):
        typer.echo(f"{bullet}source: {source}")


def facts(run: Run) -> list[tuple[str, str]]:
    """Return what the table is of, as names and values."""
    result, model = run.result, run.model
    captions = result.captions
    rows = [("model", f"{model['name']}, {model['precision']} on {model['backend']} {model['device']}")]
    rows.append(("preset", str(run.preset)))
    rows.append(("captions", str(captions.path)))
    rows.append(("columns of times", " and ".join(captions.times) or "none, every clip is a whole video"))
    rows += [(f"{_short(row)} {row.direction}", _counts(row)) for row in result.metrics]
    rows.append(("clips", f"{len(captions.clips)}, of which {len(result.failed)} failed"))
    if any(result.clips.stored):
        makers = {f"{made.precision} on {made.backend}" for made in run.stored.metadata.values()} if run.stored else ()
        rows.append(("stored features", f"{_many(sum(result.clips.stored), 'clip')}, {', '.join(sorted(makers))}"))
    rows.append(("queries lost", f"{result.queries_lost} to failed clips"))
    rows.append(("rows left out", str(len(captions.excluded))))
    rows.append(("captions without a known word", str(len(result.unknown))))
    return rows


def _counts(row: RetrievalMetrics) -> str:
    samples = f", {row.samples} samples" if row.samples != row.queries else ""
    queries = _many(row.queries, "query", "queries")
    return f"{queries}, {_many(row.candidates, 'candidate')}, {_many(row.ties, 'tie')}{samples}"


def _many(count: int, one: str, several: str | None = None) -> str:
    return f"{count} {one if count == 1 else several or f'{one}s'}"


def _short(row: RetrievalMetrics | PublishedRow) -> str:
    return "ce" if row.definition == "collaborative-experts" else "milnce"


def _own_rows(result: Evaluation) -> list[list[str]]:
    return [["this run", _short(row), row.direction, *_cells(row)] for row in result.metrics]


def _published_cells(row: PublishedRow) -> list[str]:
    return [f"{row.data}: {row.result}", _short(row), row.direction, *_cells(row)]


def _cells(row: RetrievalMetrics | PublishedRow) -> list[str]:
    recalls = (row.r1, row.r5, row.r10, row.r50)
    ranks = (row.median_rank, row.mean_rank)
    return ["-" if value is None else f"{value:.1f}" for value in (*recalls, *ranks, row.geometric_mean)]


def _markdown(table: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * 3 + ["---:"] * (len(_COLUMNS) - 3)
    lines = [_COLUMNS, rule, *table]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def document(run: Run, *, published: bool, html: Path | None, html_failure: MilnceError | None) -> dict[str, Any]:
    """Return the one JSON document."""
    stored = run.stored.metadata if run.stored else {}
    made = [
        {"path": str(path), "backend": item.backend, "precision": item.precision, "preset": item.preset_name}
        for path, item in stored.items()
    ]
    return {
        **run.result.to_json(),
        "features": made,
        "published": [row.to_json() for row in PUBLISHED] if published else None,
        "html": str(html) if html is not None and html_failure is None else None,
        "html_error": None if html_failure is None else str(html_failure),
        "model": run.model,
        "preset": describe_preset(run.preset),
    }


def write_html(run: Run, destination: Path, most: tuple[int, int], *, overwrite: bool) -> MilnceError | None:
    """Write the page of at most so many queries, and clips under each; return why it is not there, or None."""
    from milnce.evaluation_page import page_content  # noqa: PLC0415  # commands import what they need when they run
    from milnce.page import write_page  # noqa: PLC0415
    from milnce.page_pictures import video_loop  # noqa: PLC0415

    try:
        queries, pictures, missing = page_content(run.result, video_loop, queries=most[0], top=most[1])
        for error in missing[:1]:
            say(printable(f"No picture of {_many(len(missing), 'clip')} on the page; the first: {error}"))
        table = (_COLUMNS, _own_rows(run.result))
        lines = [*facts(run), ("queries on this page", f"{len(queries)} of {len(run.result.asked)}, evenly chosen")]
        title = f"Retrieval with {run.model['name']}"
        write_page(
            destination, title=title, facts=lines, table=table, queries=queries, pictures=pictures, overwrite=overwrite
        )
    except MilnceError as error:
        say(printable(f"Failed: {error}"))
        return error
    say(printable(f"{destination}: {len(queries)} of {len(run.result.asked)} queries, {len(pictures)} pictures"))
    return None
