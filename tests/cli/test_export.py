"""`milnce export`: what it refuses, what it asks to be installed, and one small bundle made for real."""

from __future__ import annotations

import importlib.util
import json
from typing import TYPE_CHECKING, Any

import pytest

import milnce
from helpers.tiny_bundle import tiny_clips

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.commands import Ran

    Run = Callable[..., Ran]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no weights given; --weights and --vocab are needed together, or --seeded SEED instead"),
        (["--weights", "w.pth"], "--weights without --vocab given"),
        (["--vocab", "v.npy"], "--vocab without --weights given"),
        (["--seeded", "0", "--weights", "w.pth"], "--seeded given with --weights or --vocab"),
        (["--weights", "w.pth", "--vocab", "v.npy", "--width", "0.5"], "--width given without --seeded"),
        (["--seeded", "0", "--stem", "tight"], "--stem tight given; one of folded, space-to-depth expected"),
        (["--seeded", "0", "--precision", "int4"], "precisions int4 given; one or more of fp32, fp16 expected"),
        (["--seeded", "0", "--input-form", "yuv"], "input forms yuv given"),
        (["--seeded", "0", "--preset", "fast"], "no preset 'fast'"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], message: str, tmp_path: Path, run: Run) -> None:
    result = run("export", "--out", tmp_path / "bundle", *arguments)
    assert result.code == 2
    assert message in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_without_the_converter_it_says_what_to_install(
    tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec

    def without_torch(name: str, package: str | None = None) -> Any:  # noqa: ANN401 - as the original
        return None if name in {"torch", "onnxscript"} else find_spec(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", without_torch)
    result = run("export", "--seeded", "0", "--out", tmp_path / "bundle", "--json")
    assert result.code == 1
    assert 'export needs torch, onnxscript; run: pip install "milnce[convert]"' in result.stderr
    assert json.loads(result.stdout)["error"]["type"] == "MissingDependencyError"


def test_wrong_weights_leave_no_bundle(tmp_path: Path, run: Run) -> None:
    (tmp_path / "w.pth").write_bytes(b"no weights")
    (tmp_path / "v.npy").write_bytes(b"no words")
    result = run("export", "--weights", tmp_path / "w.pth", "--vocab", tmp_path / "v.npy", "--out", tmp_path / "bundle")
    assert result.code == 1
    assert result.stderr.count("Error: ") == 1
    assert "w.pth" in result.stderr or "v.npy" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["v.npy", "w.pth"]


def test_an_existing_bundle_is_not_replaced(tmp_path: Path, run: Run) -> None:
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "mine.txt").write_text("keep", encoding="utf-8")
    result = run("export", "--seeded", "0", "--width", "0.125", "--out", tmp_path / "bundle")
    assert result.code == 1
    assert "overwrite" in result.stderr
    assert (tmp_path / "bundle" / "mine.txt").read_text(encoding="utf-8") == "keep"


def test_a_seeded_bundle_is_made_and_runs(exported: tuple[Path, Ran]) -> None:
    folder, result = exported
    assert result.code == 0, result.stderr
    stages = [line for line in result.stderr.splitlines() if " s  " in line]
    assert stages[-1].endswith("write the bundle")
    assert len(stages) >= 4
    assert "parity with PyTorch" in result.stdout
    assert f"{folder / 'bundle'}: 4 graphs" in result.stdout
    with milnce.load(folder / "bundle", backend="onnxruntime") as model:
        assert model.encode_video(tiny_clips(1, frames=16, size=64)).embedding.shape == (1, 512)
        assert model.tokenizer("open").shape == (1, 20)
        (spec,) = model.bundle.graph("video").inputs
        assert [axis.size for axis in spec.shape] == [None, 16, 64, 64, 3]
        assert dict(model.bundle.manifest.sampling) == {"preset": "milnce-native", "frames": 16, "size": 64}
    assert sorted(path.name for path in folder.iterdir()) == ["bundle", "ds", "triton"]
