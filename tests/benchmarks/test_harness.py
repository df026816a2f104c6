"""Reports of the benchmarks: written once, rendered again from their JSON, and never with a speed for wrong outputs."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import harness
import report as reporting
from harness import Target
from render import common
from render import plain as plain_renderer

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def read(path: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return document


@pytest.mark.parametrize(
    ("wanted", "measured", "better", "reached"),
    [
        (2.4, 2.4, "higher", True),
        (2.4, 2.39, "higher", False),
        (2.4, None, "higher", False),
        (2.4, math.nan, "higher", False),
        (1.1, 1.1, "lower", True),
        (1.1, 1.11, "lower", False),
        (1.1, math.nan, "lower", False),
        (1.1, None, "lower", False),
    ],
)
def test_a_target_is_reached_by_what_was_measured_alone(
    wanted: float, measured: float | None, better: Literal["higher", "lower"], reached: bool
) -> None:
    target = Target("speed", wanted, measured, better, bound="memory")
    assert target.reached is reached
    assert target.to_json()["reached"] is reached
    assert target.to_json()["bound"] == "memory"


def test_a_report_is_written_with_its_machine_page_and_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"name": "a|b", "value": 1.5, "wrong": math.nan, "count": np.int64(3), "path": tmp_path}]
    found = [Target("x", 2, 3.0).to_json(), Target("y", 2, 1.0, bound="memory | bandwidth").to_json()]
    harness.write("something-new", {"settings": {"rounds": 3}, "rows": rows, "targets": found}, results=tmp_path)
    document = read(tmp_path / "something-new.json")
    assert list(document) == ["report", "format_version", "machine", "settings", "rows", "targets"]
    assert (document["report"], document["format_version"]) == ("something-new", 1)
    assert {"date", "command", "commit", "cpu", "cores", "versions", "threads", "gpu"} <= set(document["machine"])
    assert document["rows"] == [{"name": "a|b", "value": 1.5, "wrong": "nan", "count": 3, "path": str(tmp_path)}]
    page = (tmp_path / "something-new.md").read_text("utf-8")
    assert capsys.readouterr().out == page + "\n"
    assert "| a\\|b | 1.5 | not a number | 3 |" in page
    assert "| x | >= 2 | 3 | yes |  |" in page
    assert "| y | >= 2 | 1 | no | memory \\| bandwidth |" in page
    assert document["machine"]["cpu"] in page
    index = (tmp_path / "README.md").read_text("utf-8")
    assert "[something-new](something-new.md)" in index
    assert "1 of 2 are reached." in index
    assert "| y | [something-new](something-new.md) | >= 2 | 1 | no | memory \\| bandwidth |" in index


@pytest.mark.parametrize(
    "key",
    [
        *("median_s", "speed", "clips_per_s", "seconds", "sentences_per_s", "timing", "ms_an_item", "mean_ms", "share"),
        *("latency", "first_s", "times_as_fast_as"),
    ],
)
def test_a_row_that_fails_its_gate_gets_no_speed(tmp_path: Path, key: str) -> None:
    row = {"name": "broken", "failures": ["cosine 0.5, at least 0.99 needed"], key: 1.0}
    with pytest.raises(ValueError, match=rf"broken fails its gate \(cosine 0.5.*\) and has {key}"):
        harness.write("x", {"rows": [{"name": "good", "parity": {"cosine": 1.0}, key: 1.0}, row]}, results=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("about", "accepted"),
    [
        ({}, False),
        ({"parity": {}}, False),
        ({"parity": None, "failures": []}, False),
        ({"gate": None}, False),
        ({"gate": "fp32", "why": "no time"}, False),
        ({"why": "it decodes"}, False),
        ({"gate": None, "why": "it decodes"}, True),
        ({"parity": {"cosine": 1.0}}, True),
    ],
)
def test_a_speed_comes_with_parity_or_says_why_there_is_none(
    tmp_path: Path, about: dict[str, Any], accepted: bool
) -> None:
    report = {"rows": [{"name": "fast", "clips_per_s": 1.0, **about}]}
    if accepted:
        harness.write("x", report, results=tmp_path)
        assert read(tmp_path / "x.json")["rows"] == report["rows"]
        return
    with pytest.raises(ValueError, match='fast has clips_per_s and no "parity", nor "gate": None and "why"'):
        harness.write("x", report, results=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_pages_are_made_of_the_json_alone_and_again_the_same(tmp_path: Path) -> None:
    for path in RESULTS.glob("*.json"):
        shutil.copy(path, tmp_path)
    assert any(tmp_path.iterdir())
    assert reporting.main(["--results", str(tmp_path)]) == 0
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    for path in RESULTS.glob("*.json"):
        assert (tmp_path / f"{path.stem}.md").is_file(), path.name
    assert reporting.main(["--results", str(tmp_path)]) == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_a_broken_report_is_named_and_the_others_are_rendered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text("{", "utf-8")
    (tmp_path / "search-x.json").write_text("{}", "utf-8")
    (tmp_path / "z.json").write_text('{"rows": [{"name": "n"}]}', "utf-8")
    assert reporting.main(["--results", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert "a.json: JSONDecodeError" in said.err
    assert "search-x.json: KeyError" in said.err
    assert said.out == f"{tmp_path / 'z.md'}\n"
    index = (tmp_path / "README.md").read_text("utf-8")
    assert "a.json, which cannot be read" in index
    assert "[z](z.md)" in index


def test_the_renderer_is_found_by_the_first_part_of_the_name() -> None:
    assert reporting.renderer_of("retrieval-demo-seed-1").__name__ == "render.retrieval"  # type: ignore[attr-defined]
    assert reporting.renderer_of("nothing-like-it") is plain_renderer


def test_figures_that_are_missing_or_no_numbers_are_shown_as_such() -> None:
    shown = [common.number(value, ".1f") for value in (None, "", "nan", "inf", math.nan, 1.25, 3)]
    assert shown == ["", "", "not a number", "inf", "not a number", "1.2", "3.0"]
    assert common.number(0.5, ".0f", scale=1000) == "500"
    assert common.parity({"parity": {"centred_cosine": 0.99}}) == "1.0e-02"
    assert common.parity({"parity": {"centred_cosine": "nan"}}) == "not a number"
    assert common.parity({}) == common.parity({"parity": None}) == ""
    assert [common.is_number(value) for value in (1, 1.5, True, "nan", math.inf, None)] == [
        *(True, True),
        *(False, False, False, False),
    ]


def test_the_footer_says_limits_gpus_and_threads() -> None:
    machine = {"cpu": "C", "cores": 2, "cpu_limit": 1.5, "memory_bytes": 2**33, "python": "3.11", "commit": None}
    machine |= {"date": "d", "command": "python x.py", "versions": {"torch": None, "numpy": "2"}}
    machine |= {"gpu": [{"name": "H200", "driver": "580"}], "threads": {"OMP_NUM_THREADS": "1"}}
    assert common.footer(machine) == (
        "C, 2 cores (1.5 by its control group), 8 GiB, H200, driver 580, OMP_NUM_THREADS=1, Python 3.11, numpy 2; "
        "commit None, d, `python x.py`"
    )
    assert common.footer({}) == ""
    assert "2 cores" in common.footer({"cpu": "C", "cores": 2})  # of an older report


def test_a_figure_can_be_drawn_and_has_every_bar(tmp_path: Path) -> None:
    figure, (plot,) = common.new_figure()
    common.bars(plot, ["one", "two"], [1.0, 2.5], unit="x")
    assert [label.get_text() for label in plot.get_yticklabels()] == ["one", "two"]
    assert {text.get_text() for text in plot.texts} == {"1.00x", "2.50x"}
    figure.savefig(tmp_path / "f.png")
    assert (tmp_path / "f.png").read_bytes().startswith(b"\x89PNG")


def test_children_get_no_bound_of_some_libraries_threads_and_the_parent_s_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("KEPT", "2")
    assert "OMP_NUM_THREADS" not in harness.environment()
    assert harness.environment()["KEPT"] == "2"
    harness.write("x", {"rows": []}, results=tmp_path)
    assert "OMP_NUM_THREADS=1 bounds some libraries' threads and not others'" in capsys.readouterr().err
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    harness.write("x", {"rows": []}, results=tmp_path)
    assert "bounds" not in capsys.readouterr().err
