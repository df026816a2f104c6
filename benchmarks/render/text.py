"""The page of benchmarks/text.py: a sentence, many sentences, and the way to the first one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from render import common

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

_TITLES = {
    "one sentence": "One sentence on one core, tokenising included",
    "one sentence, already words": "One sentence on one core, already tokenised",
    "many, zipf": "{sentences:,} sentences, words drawn by Zipf's law ({different:,} different words)",
    "many, different": "{sentences:,} sentences of 16 words, all equally likely ({different:,} different words)",
    "start to first sentence": "From `import milnce` to the first embedding, a process each, one core",
}


def markdown(report: dict[str, Any]) -> str:
    """Return a table a case."""
    settings = report["settings"]
    parts = [f"The text tower of {settings['bundle']}. Backends take turns, round by round."]
    for case, rows in _cases(report["rows"]):
        different = next((row["different_words"] for row in rows if "different_words" in row), 0)
        title = _TITLES.get(case, case).format(sentences=settings["sentences"], different=different)
        many = case.startswith("many")
        columns = ["", "median ms", "p95 ms", "p99 ms", *(["sentences a second"] if many else []), "error"]
        table = common.table(columns, [_cells(row, many=many) for row in rows])
        cores = f", {settings['cores']} cores" if many else ""
        parts.append(f"**{title}{cores}**\n\n{table}")
    parts.append(
        f"error: largest difference from ONNX Runtime over the largest value; at most {settings['largest_error']:g}."
    )
    return "\n\n".join(parts)


def figure(report: dict[str, Any]) -> Figure | None:
    """Draw sentences a second of each backend, for both kinds of sentences."""
    cases = [(case, rows) for case, rows in _cases(report["rows"]) if case.startswith("many")]
    if not any(common.is_number(row.get("sentences_per_s")) for _, rows in cases for row in rows):
        return None
    drawn, axes = common.new_figure(1, len(cases), height=2.4)
    for plot, (case, rows) in zip(axes, cases, strict=True):
        shown = [row for row in rows if common.is_number(row.get("sentences_per_s"))]
        common.bars(plot, [row["backend"] for row in shown], [row["sentences_per_s"] for row in shown], form=",.0f")
        plot.set_xlabel("sentences a second", fontsize=9)
        plot.set_title({"many, zipf": "as captions are", "many, different": "worst case"}.get(case, case), fontsize=10)
    return drawn


def _cases(rows: Sequence[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    cases = dict.fromkeys(row["case"] for row in rows)
    return [(case, [row for row in rows if row["case"] == case]) for case in cases]


def _cells(row: dict[str, Any], *, many: bool) -> list[str]:
    name = row["backend"] if not row.get("failures") else f"{row['backend']}: {row['failures'][0]}"
    times = [common.number(row.get(key), ".3f", scale=1e3) for key in ("median_s", "p95_s", "p99_s")]
    speed = [common.number(row.get("sentences_per_s"), ",.0f")] if many else []
    return [name, *times, *speed, common.number((row.get("parity") or {}).get("relative_error"), ".1e")]
