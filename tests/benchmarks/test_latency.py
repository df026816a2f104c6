"""The latency benchmark: its targets, what bounds them, pages of partial reports, compiling with a limit."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import bundles
import latency
from helpers.tiny_bundle import write_tiny_bundle
from milnce.bench import Source
from milnce.errors import MissingDependencyError
from milnce_convert.bench_bundle import video_rows
from render import latency as renderer

if TYPE_CHECKING:
    from collections.abc import Iterator

DEMO = Path(__file__).parents[2] / "engines" / "demo"


def row(name: str, seconds: list[float], **changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a row of the main case."""
    found: dict[str, Any] = {"name": name, "batch": 1, "frames": 32, "size": 224, "gate": "fp32", "failures": []}
    found |= {"error": None, "parity": {"centred_cosine": 1 - 1e-9}, "seconds": seconds, "median_s": seconds[1]}
    found |= {"p95_s": max(seconds), "spread": 0.1, "ms_an_item": 1e3 * seconds[1], "items_per_s": 1 / seconds[1]}
    return {**found, "speed": {"median": 1.0, "minimum": 1.0, "maximum": 1.0}, **changes}


def without_times(**changes: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return a row of INT8 that has no speed."""
    found = row("openvino int8", [1.0, 1.0, 1.0], **changes)
    return {key: found[key] for key in ("name", "batch", "frames", "size", "gate", "failures", "error", "parity")}


REFERENCE = row("PyTorch eager FP32", [1.0, 1.0, 2.0])


def target(rows: list[dict[str, Any]], name: str, *, full: bool = True, **left_out: str) -> dict[str, Any]:
    (found,) = [item for item in latency.targets(rows, left_out, full=full) if item["name"].startswith(name)]
    return found


def test_targets_are_ratios_of_rounds_to_pytorch_on_the_cpu() -> None:
    # The first source may be another, such as PyTorch on a GPU: the row's own speed does not count.
    rows = [row("PyTorch eager FP32 on cuda", [0.1, 0.1, 0.1]), REFERENCE, row("openvino fp32", [0.25, 0.2, 0.1])]
    found = target(rows, "openvino fp32")
    assert (found["wanted"], found["measured"], found["reached"]) == (3.0, 5.0, True)
    assert target([REFERENCE, row("onnxruntime fp32", [0.5, 0.5, 1.0])], "onnxruntime")["reached"] is False
    small = row("openvino fp32", [0.1, 0.1, 0.1], size=64)
    assert target([REFERENCE, small], "openvino fp32")["measured"] is None


@pytest.mark.parametrize(
    ("rows", "full", "left_out", "bound"),
    [
        ([REFERENCE, row("openvino int8", [0.5, 0.5, 0.5])], True, {}, "148 GFLOP/s here"),
        ([REFERENCE, row("openvino int8", [0.5, 0.5, 0.5])], False, {}, "not of the published width"),
        ([row("openvino int8", [0.5, 0.5, 0.5])], True, {}, "PyTorch eager FP32 was not measured"),
        ([REFERENCE], True, {"int8": "no graph of it"}, "no graph of it"),
        ([REFERENCE], True, {"openvino int8 on cpu": "no such CPU"}, "no such CPU"),
        ([REFERENCE], True, {"openvino bf16, int8": "it computes in fp32"}, "it computes in fp32"),
        ([REFERENCE], True, {"openvino": "not installed"}, "not installed"),
        ([REFERENCE], True, {"openvino fp32": "no", "openvino on cuda": "no"}, "it was not measured"),
        ([REFERENCE], True, {}, "it was not measured"),
        ([REFERENCE, without_times(failures=["cosine 0.5"])], True, {}, "cosine 0.5"),
        ([REFERENCE, without_times(error="no memory")], True, {}, "no memory"),
    ],
)
def test_what_is_not_reached_says_what_bounds_it(
    rows: list[dict[str, Any]], full: bool, left_out: dict[str, str], bound: str
) -> None:
    found = target(rows, "openvino int8", full=full, **left_out)
    assert found["reached"] is False
    assert bound in found["bound"]


def test_a_report_is_measured_rendered_and_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(latency, "USUAL", ((1, 4, 16), (2, 4, 16)))
    write_tiny_bundle(tmp_path / "tiny")
    arguments = ["--bundle", str(tmp_path / "tiny"), "--rounds", "1", "--no-compile", "--results", str(tmp_path / "r")]
    latency.main(arguments)
    document = json.loads((tmp_path / "r" / "latency.json").read_text("utf-8"))
    assert {(found["batch"], found["size"]) for found in document["rows"]} == {(1, 16), (2, 16)}
    assert [found["measured"] for found in document["targets"]] == [None] * 4
    assert "tensorrt" in document["left_out"]
    assert document["left_out"]["PyTorch compiled"] == "--no-compile was given"
    assert "measured on a GPU" in document["left_out"]["PyTorch eager TF32, FP16"]
    assert "no PyTorch tower can be made" in document["left_out"]["PyTorch"]
    page = (tmp_path / "r" / "latency.md").read_text("utf-8")
    assert "| 4x16x16 | 2 | onnxruntime fp32 |" in page
    assert "- not measured: tensorrt: " in page
    assert (tmp_path / "r" / "latency.png").read_bytes().startswith(b"\x89PNG")
    assert "2 x 4x16x16" in capsys.readouterr().err


def test_the_heap_is_kept_unless_the_default_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency, "USUAL", ((1, 4, 16),))
    kept: list[bool] = []

    @contextmanager
    def kept_heap() -> Iterator[bool]:
        kept.append(True)
        yield True

    def rows(*arguments: Any, **options: Any) -> list[dict[str, Any]]:  # noqa: ANN401
        kept.append(False)
        return video_rows(*arguments, **options)

    monkeypatch.setattr(latency, "kept_heap", kept_heap)
    monkeypatch.setattr(latency, "video_rows", rows)
    write_tiny_bundle(tmp_path / "tiny")
    arguments = ["--bundle", str(tmp_path / "tiny"), "--rounds", "1", "--no-compile", "--results", str(tmp_path)]
    latency.main(arguments)
    assert kept == [True, False]
    document = json.loads((tmp_path / "latency.json").read_text("utf-8"))
    assert document["settings"]["heap_kept"] is True
    assert "What is freed between rounds is kept" in (tmp_path / "latency.md").read_text("utf-8")
    (tmp_path / "latency.json").unlink()
    latency.main([*arguments, "--default-heap"])
    assert kept == [True, False, False]
    document = json.loads((tmp_path / "latency-default-heap.json").read_text("utf-8"))
    # Its speeds flatter, so nothing is held to them.
    assert (document["settings"]["heap_kept"], document["targets"]) == (False, [])
    assert "gives back what is freed" in (tmp_path / "latency-default-heap.md").read_text("utf-8")
    assert not (tmp_path / "latency.json").exists()


def test_compiled_rows_are_of_the_main_case_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_bundle(tmp_path / "tiny")
    monkeypatch.setattr(latency, "MAIN", (1, 4, 16))
    monkeypatch.setattr(latency, "USUAL", ((1, 4, 16), (1, 4, 32)))
    asked: list[bool] = []

    def rows(*_: object, compiled: bool, **__: object) -> Any:  # noqa: ANN401
        asked.append(compiled)
        made = [Source(f"PyTorch {kind} FP32", "fp32", colours) for kind in ("eager", "compiled")]
        return SimpleNamespace(video=made, reference=colours, text=None)

    def colours(clips: Any) -> Any:  # noqa: ANN401
        return np.asarray(clips.mean(axis=(1, 2, 3)), np.float32)

    monkeypatch.setattr(latency, "pytorch_rows", rows)
    monkeypatch.setattr(latency, "_can_compile", lambda *_: True)
    latency.main(["--bundle", str(tmp_path / "tiny"), "--rounds", "1", "--results", str(tmp_path / "r")])
    document = json.loads((tmp_path / "r" / "latency.json").read_text("utf-8"))
    sizes: dict[str, list[int]] = {name: [] for name in ("PyTorch eager FP32", "PyTorch compiled FP32")}
    for found in document["rows"]:
        sizes.get(found["name"], []).append(found["size"])
    assert sizes == {"PyTorch eager FP32": [16, 32], "PyTorch compiled FP32": [16]}
    assert asked == [True]
    # What is no such embedding was refused: the backends are held to what PyTorch is said to give.
    others = [found for found in document["rows"] if not found["name"].startswith("PyTorch")]
    assert others
    assert all("median_s" not in found and (found["failures"] or found["error"]) for found in others)


def test_compiling_that_fails_or_does_not_end_costs_its_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: Any = SimpleNamespace(left_out={})
    script = tmp_path / "child.py"
    monkeypatch.setattr(latency, "__file__", str(script))
    script.write_text("import sys; sys.exit('no compiler')", "utf-8")
    assert latency._can_compile(tmp_path, opened) is False  # noqa: SLF001
    assert opened.left_out == {"PyTorch compiled": "no compiler"}
    script.write_text(f"open({str(tmp_path / 'argv')!r}, 'w').write(' '.join(__import__('sys').argv[1:]))", "utf-8")
    assert latency._can_compile(Path("b"), opened) is True  # noqa: SLF001
    assert (tmp_path / "argv").read_text("utf-8") == "--compile-only b"
    script.write_text(
        f"import subprocess, sys\nsubprocess.run([{sys.executable!r}, '-c', 'import time; time.sleep(600)'])", "utf-8"
    )
    monkeypatch.setattr(latency, "_COMPILE_S", 0.5)
    assert latency._can_compile(tmp_path, opened) is False  # noqa: SLF001  # with what it started, or this would hang
    assert opened.left_out["PyTorch compiled"] == "torch.compile did not end within 0 s"


def test_pages_of_partial_reports() -> None:
    assert renderer.figure({}) is None
    assert "Bundle None" in renderer.markdown({})
    broken = {"name": "bad", "failures": ["cosine nan"], "gate": "fp16", "parity": {"centred_cosine": "nan"}}
    silent = {"name": "dead", "error": "RuntimeError: x|y", "frames": 8, "size": 32, "batch": 2}
    page = renderer.markdown({"rows": [broken, silent, row("good", [1.0, 0.5, 0.5])], "left_out": {"t": "no GPU"}})
    assert "| fails the gate |  |  |  |  |  | not a number | fp16 |" in page
    assert "- no speed: 2 of 8x32x32, dead: RuntimeError: x|y" in page
    assert "- not measured: t: no GPU" in page
    figure = renderer.figure({"rows": [broken, silent, row("good", [1.0, 0.5, 0.5], speed=None)]})
    assert figure is not None
    (plot,) = figure.axes
    assert [text.get_text() for text in plot.texts] == ["2.00/s"]  # the one that was measured, and no ratio


def test_the_seeded_bundle_is_made_once_and_int8_only_where_it_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "seeded-full-width").mkdir()
    write_tiny_bundle(tmp_path / "seeded-full-width" / "x")
    (tmp_path / "seeded-full-width" / "x").rename(tmp_path / "kept")
    (tmp_path / "seeded-full-width").rmdir()
    (tmp_path / "kept").rename(tmp_path / "seeded-full-width")

    def refuse(*_: object) -> None:
        raise MissingDependencyError("nncf is not installed")

    monkeypatch.setattr(bundles, "add_int8", refuse)
    assert bundles.full_width_bundle(tmp_path) == tmp_path / "seeded-full-width"
    assert "no INT8: nncf is not installed" in capsys.readouterr().err
    (tmp_path / "seeded-full-width-int8").mkdir()
    assert bundles.full_width_bundle(tmp_path) == tmp_path / "seeded-full-width-int8"
