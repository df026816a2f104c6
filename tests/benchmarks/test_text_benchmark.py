"""The benchmark of the text tower: its sentences, its gate, its targets, its page, and one measurement of each kind."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import harness
import text
from helpers.tiny_bundle import write_tiny_bundle
from render import text as renderer

if TYPE_CHECKING:
    from pathlib import Path

WORDS = [f"word{index}" for index in range(300)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return a report on a tiny bundle, measured in this process."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    write_tiny_bundle(path, words=WORDS)
    options = argparse.Namespace(bundle=path, rounds=3, single_rounds=3, sentences=300)
    measured = [text._MEASUREMENTS[name](options) for name in ("single", *text.CASES)]  # noqa: SLF001 - the children's
    rows = [row for found in measured for row in found["rows"]]
    settings = {"sentences": 300, "cores": 1, "bundle": measured[0]["bundle"], "largest_error": text.TOLERANCE}
    return {"settings": settings, "rows": rows, "targets": text.targets(rows)}


def test_sentences_as_captions_are_and_the_worst_case() -> None:
    captions = text.make_sentences(WORDS, "zipf", 2000)
    lengths = [len(sentence.split()) for sentence in captions]
    assert min(lengths) >= 1
    assert max(lengths) <= 16
    assert 7 < np.mean(lengths) < 9
    words, counts = np.unique([word for sentence in captions for word in sentence.split()], return_counts=True)
    assert counts.max() > 10 * np.median(counts)
    worst = text.make_sentences(WORDS, "different", 2000)
    assert {len(sentence.split()) for sentence in worst} == {16}
    words, counts = np.unique([word for sentence in worst for word in sentence.split()], return_counts=True)
    assert len(words) == 300
    assert counts.max() < 2 * np.median(counts)
    assert worst == text.make_sentences(WORDS, "different", 2000)


def test_the_report_has_every_backend_with_its_error_and_each_target(report: dict[str, Any]) -> None:
    found = {(row["case"], row["backend"]) for row in report["rows"]}
    cases = ("one sentence", "one sentence, already words", "many, zipf", "many, different")
    assert {(case, name) for case in cases for name in text.BACKENDS} <= found
    for row in report["rows"]:
        assert row["failures"] == []
        assert row["median_s"] > 0
        assert row.get("parity", {}).get("relative_error", 0) < text.TOLERANCE
    targets = {target["name"]: target for target in report["targets"]}
    assert len(targets) == 5
    assert all(target["measured"] > 0 for target in targets.values())
    fast = next(row for row in report["rows"] if (row["case"], row["backend"]) == ("many, zipf", "numpy"))
    assert fast["times_as_fast_as"]["numpy"] == 1
    assert (
        targets["many sentences, drawn by Zipf's law: times as fast as openvino"]["measured"]
        == (fast["times_as_fast_as"]["openvino"])
    )


def test_numbers_that_differ_get_no_speed(report: dict[str, Any], tmp_path: Path) -> None:
    row = text._row("many, zipf", "numpy", {"relative_error": 1e-4}, None)  # noqa: SLF001 - the gate
    assert row["failures"] == ["relative error 1.0e-04, at most 1e-05 expected"]
    assert text._row("many, zipf", "numpy", {"relative_error": float("nan")}, None)["failures"]  # noqa: SLF001
    assert text._row("many, zipf", "numpy", {}, "OSError: no")["failures"] == ["OSError: no"]  # noqa: SLF001
    with pytest.raises(ValueError, match="fails its gate"):
        harness.write("text-x", {**report, "rows": [row | {"median_s": 1.0}]}, results=tmp_path)
    unmeasured = text.targets([row])
    assert all(target["measured"] is None and not target["reached"] for target in unmeasured)


def test_the_page_says_what_was_measured(report: dict[str, Any], tmp_path: Path) -> None:
    harness.write("text-cpu", report, results=tmp_path)
    page = (tmp_path / "text-cpu.md").read_text()
    assert "300 sentences, words drawn by Zipf's law (" in page
    assert "300 sentences of 16 words, all equally likely (300 different words), 1 cores" in page
    assert page.count("| numpy |") == 4
    assert "one sentence on one core, median ms" in page
    assert (tmp_path / "text-cpu.png").stat().st_size > 1000
    failed = text._row("many, zipf", "numpy", {"relative_error": 1.0}, None)  # noqa: SLF001
    assert "numpy: relative error 1.0e+00" in renderer.markdown({**report, "rows": [failed]})
    assert renderer.figure({**report, "rows": [failed]}) is None
