"""The cost benchmark: fresh processes that say themselves what they took, sizes by pip's records, partial pages."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cost
import sizes
from helpers.tiny_bundle import write_tiny_bundle
from render import cost as renderer

DEMO = Path(__file__).parents[2] / "engines" / "demo"


def test_processes_say_when_their_first_clip_was_embedded_and_what_memory_it_took(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cost, "EMBEDS", (("onnxruntime", "fp32"), ("onnxruntime", "int8")))
    rows, errors = cost.first_embeddings(DEMO, 1)
    assert [row["name"] for row in rows] == ["PyTorch eager FP32", "onnxruntime fp32"]
    reference, found = rows
    assert (reference["failures"], found["failures"]) == ([], [])
    assert found["parity"]["rows"] == 3
    assert found["parity"]["identical"] is False
    for row in rows:
        assert 0 < row["import_s"] < row["median_s"] < cost._LIMIT_S  # noqa: SLF001
        assert 20 < row["peak_mib"] < 4000
    assert reference["speed"]["median"] == 1
    # PyTorch alone is larger than the whole of the other process.
    assert found["peak_mib"] < reference["peak_mib"]
    assert "int8" in errors["onnxruntime int8"]


def test_a_bundle_that_pytorch_cannot_be_made_of_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_bundle(tmp_path / "tiny", sampling={"preset": "milnce-native", "frames": 4, "size": 16})
    monkeypatch.setattr(cost, "EMBEDS", (("onnxruntime", "fp32"),))
    rows, errors = cost.first_embeddings(tmp_path / "tiny", 1)
    assert [row["name"] for row in rows] == ["onnxruntime fp32"]
    assert "no PyTorch tower can be made" in errors["PyTorch eager FP32"]


def answer(first_s: float, scale: float = 1.0) -> dict[str, Any]:
    rows = np.random.default_rng(0).standard_normal((3, 5)) * scale
    return {"first_s": first_s, "import_s": 0.1, "peak_mib": 50.0 * first_s, "rows": rows.tolist()}


def test_wrong_outputs_get_no_time() -> None:
    good = [answer(2.0), answer(4.0), answer(3.0)]
    rows = cost._rows({"PyTorch eager FP32": good, "b fp32": [answer(1.0, 1.1)] * 3, "c fp32": [answer(1.0)] * 3})  # noqa: SLF001
    assert ["median_s" in row for row in rows] == [True, False, True]
    assert rows[0]["median_s"] == 3.0
    assert rows[0]["peak_mib"] == 150
    assert rows[2]["speed"]["median"] == 3.0
    assert any("scale error" in failure for failure in rows[1]["failures"])


def test_imports_that_fail_are_told_and_the_others_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "IMPORTS", {"nothing": "pass", "none": "import no_such_module_at_all"})
    rows, errors = cost.import_times(1)
    assert [(row["name"], row["import_s"]) for row in rows] == [("nothing", 0)]
    assert rows[0]["rounds"] == 2
    assert "No module named 'no_such_module_at_all'" in errors["import none"]


def test_sizes_are_those_of_the_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def distribution(name: str, requires: tuple[str, ...], **files: int) -> None:
        info = tmp_path / f"{name}-1.dist-info"
        info.mkdir()
        needs = "".join(f"Requires-Dist: {line}\n" for line in requires)
        extras = "Provides-Extra: fast\n"
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n{extras}{needs}", "utf-8")
        lines = [f"{name}-1.dist-info/METADATA,,", f"{name}-1.dist-info/RECORD,,"]
        for file, size in files.items():
            path = tmp_path / name / file.replace("_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(b"x" * size)
            lines.append(f"{name}/{path.name},,{size}")
        (info / "RECORD").write_text("\n".join(lines), "utf-8")

    distribution("first_one", ('second.one ; extra == "fast"', "third", 'never ; python_version < "3"'), a_py=1000)
    distribution("second_one", ("first-one",), b_py=500, b_pyc=9999)  # a ring of requirements
    distribution("third", (), c_so=2_000_000)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert sizes.closure("First.One") == ["first-one", "third"]
    assert sizes.closure("first-one", ("fast",)) == ["first-one", "second-one", "third"]
    information = sum(path.stat().st_size for path in (tmp_path / "second_one-1.dist-info").iterdir())
    assert sizes.distribution_bytes("second-one") == 500 + information
    with pytest.raises(metadata.PackageNotFoundError):
        sizes.closure("no-such-package")
    monkeypatch.setattr(sizes, "INSTALLS", (("f", "first-one", ("fast",)), ("n", "no-such-package", ())))
    rows, left_out = sizes.installed_sizes()
    assert [(row["name"], row["packages"]) for row in rows] == [("f", 3)]
    assert rows[0]["mb"] == pytest.approx(2.0, abs=0.01)
    assert list(rows[0]["largest"]) == ["third", "first-one", "second-one"]
    assert left_out == {"size of n": "no-such-package is not installed"}


def test_a_wheel_that_cannot_be_built_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> Any:  # noqa: ANN401
        return SimpleNamespace(returncode=1, stderr="first\nno index\n", stdout="")

    monkeypatch.setattr("sizes.subprocess.run", fail)
    assert sizes.wheel_size() == (None, {"wheel": "no index"})


def test_pages_of_partial_reports() -> None:
    assert renderer.figure({}) is None
    assert "Fresh processes" in renderer.markdown({})
    rows = [
        {"name": "bad fp16", "gate": "fp16", "failures": ["x"], "peak_mib": 10.0, "parity": {"centred_cosine": "nan"}},
        {"name": "good fp32", "failures": [], "median_s": 1.5, "import_s": "nan", "peak_mib": 99.6, "speed": None},
    ]
    report = {"rows": rows, "installed": [{"name": "m", "packages": 2, "mb": 12.0, "largest": {"n": 11.5}}]}
    page = renderer.markdown(
        {**report, "wheel": {"packed_kb": 362.4, "unpacked_kb": 900.0}, "left_out": {"wheel": "no"}}
    )
    assert "| bad fp16 | fails the fp16 gate |  |  | 10 | not a number |" in page
    assert "| good fp32 | 1.50 | not a number |  | 100 |  |" in page
    assert "| m | 2 | 12 | n 12 |" in page
    assert "The wheel has 362 kB, 900 kB unpacked." in page
    figure = renderer.figure(report)
    assert figure is not None
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["good fp32"]
