"""The benchmark of the text tower: its sentences, its gate, its targets, its page, and one measurement of each kind."""

from __future__ import annotations

import argparse
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import bundles
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
    measured = [text._MEASUREMENTS[name](options) for name in ("single", *text.CASES, "load")]  # noqa: SLF001 - the children's
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
    cases = ("one sentence", "one sentence, already words", "many, zipf", "many, different", "start to first sentence")
    assert {(case, name) for case in cases for name in text.BACKENDS} <= found
    for row in report["rows"]:
        assert row["failures"] == []
        assert row["median_s"] > 0
        assert row["backend"] == "tokenizer" or row["parity"]["relative_error"] < text.TOLERANCE
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
    assert text._row("load", "numpy", {}, None)["failures"] == ["its outputs were compared with nothing"]  # noqa: SLF001
    with pytest.raises(ValueError, match="fails its gate"):
        harness.write("text-x", {**report, "rows": [row | {"median_s": 1.0}]}, results=tmp_path)
    unmeasured = text.targets([row])
    assert all(target["measured"] is None and not target["reached"] for target in unmeasured)


def test_the_page_says_what_was_measured(report: dict[str, Any], tmp_path: Path) -> None:
    harness.write("text-cpu", report, results=tmp_path)
    page = (tmp_path / "text-cpu.md").read_text()
    assert "300 sentences, words drawn by Zipf's law (" in page
    assert "300 sentences of 16 words, all equally likely (300 different words), 1 cores" in page
    assert page.count("| numpy |") == 5
    assert "one sentence on one core, median ms" in page
    assert (tmp_path / "text-cpu.png").stat().st_size > 1000
    failed = text._row("many, zipf", "numpy", {"relative_error": 1.0}, None)  # noqa: SLF001
    assert "numpy: relative error 1.0e+00" in renderer.markdown({**report, "rows": [failed]})
    assert renderer.figure({**report, "rows": [failed]}) is None


def test_a_backend_that_starts_with_other_numbers_or_not_at_all_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **_: object) -> Any:  # noqa: ANN401
        name = command[-1]
        embedding = [[1.0, 2.0]] if name != "numpy" else [[1.0, 2.1]]
        output = json.dumps({"seconds": 0.5, "embedding": embedding})
        return SimpleNamespace(returncode=int(name == "openvino"), stdout=output, stderr="")

    monkeypatch.setattr("subprocess.run", run)
    rows = text._load(argparse.Namespace(bundle="b", rounds=2))["rows"]  # noqa: SLF001 - the child's
    found = {row["backend"]: row for row in rows}
    assert found["numpy"]["failures"] == ["relative error 5.0e-02, at most 1e-05 expected"]
    assert found["openvino"]["failures"] == ["exit code 1"]
    assert found["onnxruntime"]["failures"] == []
    assert [name for name, row in found.items() if "median_s" in row] == ["onnxruntime"]


def test_a_backend_that_fails_its_gate_is_nothing_to_be_faster_than(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_bundle(tmp_path / "tiny", words=WORDS)
    exact = text._parity  # noqa: SLF001
    monkeypatch.setattr(text, "_parity", lambda found: {**exact(found), "openvino": {"relative_error": 1.0}})
    options = argparse.Namespace(bundle=tmp_path / "tiny", rounds=1, sentences=8)
    found = {row["backend"]: row for row in text._many("zipf")(options)["rows"]}  # noqa: SLF001
    assert "median_s" not in found["openvino"]
    assert set(found["numpy"]["times_as_fast_as"]) == {"numpy", "onnxruntime"}


def test_without_a_bundle_the_seeded_one_is_measured_and_the_children_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, report: dict[str, Any]
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> Any:  # noqa: ANN401
        commands.append(command)
        return SimpleNamespace(stdout=json.dumps({"bundle": "seeded", "rows": report["rows"][:1]}))

    written: list[str] = []
    monkeypatch.setattr("subprocess.run", run)
    monkeypatch.setattr(bundles, "full_width_bundle", lambda work: work / "seeded")
    monkeypatch.setattr(harness, "write", lambda name, _: written.append(name))
    monkeypatch.setattr("sys.argv", ["text.py", "--work", str(tmp_path)])
    text.main()
    assert written == ["text-cpu"]
    assert [command[-4:] for command in commands] == [
        ["--bundle", str(tmp_path / "seeded"), "--child", name] for name in ("single", "zipf", "different", "load")
    ]
