"""`milnce search` over what is stored opens the text tower alone, and loads no library for it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from helpers.commands import environment

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from helpers.commands import Ran, Tiny

    Run = Callable[..., Ran]

# Runs a command in this process, and says which of these modules it loaded and which graphs it read.
SCRIPT = """
import json, sys
from milnce.bundle import Bundle
from milnce.cli import main
graphs = []
for name in ("read", "view"):
    def noted(self, graph, original=getattr(Bundle, name)):
        graphs.append(graph.file)
        return original(self, graph)
    setattr(Bundle, name, noted)
sys.argv = ["milnce", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
names = {"openvino", "onnxruntime", "tensorrt", "torch", "av", "pyarrow"}
print(json.dumps({"loaded": sorted(names & set(sys.modules)), "graphs": graphs}), file=sys.stderr)
"""


def loads(*arguments: object) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Return the command's JSON, what it loaded, and what it said."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *map(str, arguments), "--json"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), json.loads(done.stderr.splitlines()[-1]), done.stderr


@pytest.mark.parametrize(("suffix", "library"), [("npz", []), ("parquet", ["pyarrow"])])
def test_features_files_need_the_text_tower_alone(
    tiny: Tiny, videos: Path, tmp_path: Path, run: Run, suffix: str, library: list[str]
) -> None:
    features = tmp_path / f"features.{suffix}"
    assert run("embed", "--bundle", tiny.path, "--out", features, videos).code == 0
    document, loaded, said = loads("search", "--bundle", tiny.path, "cut the tomato", features)
    assert loaded == {"loaded": library, "graphs": ["text-fp32.onnx"]}
    assert said.startswith("numpy on cpu in fp32: version ")
    model = document["model"]
    assert (model["backend"], model["device"], model["precision"]) == ("numpy", "cpu", "fp32")
    assert model["modules"]["text"]["reason"] == model["reason"]
    assert document["queries"][0]["results"]


def test_an_index_with_every_video_needs_the_text_tower_alone(tiny: Tiny, videos: Path, run: Run) -> None:
    first = run("search", "--bundle", tiny.path, "cut the tomato", videos, "--json")
    assert first.code == 0
    video, text = first.stderr.index("openvino on cpu in fp32"), first.stderr.index("numpy on cpu in fp32")
    assert text < video  # the sentence first, and the videos' when there is one to embed
    assert json.loads(first.stdout)["model"]["modules"].keys() == {"text", "video"}
    document, loaded, said = loads("search", "--bundle", tiny.path, "cut the tomato", videos)
    assert loaded == {"loaded": [], "graphs": ["text-fp32.onnx"]}
    assert "openvino" not in said
    before = json.loads(first.stdout)
    assert document["queries"] == before["queries"]
    assert (document["model"]["backend"], before["model"]["backend"]) == ("numpy", "openvino")


def test_a_saved_vector_over_stored_features_needs_no_tower(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    features, vector = tmp_path / "features.npz", tmp_path / "v.npy"
    assert run("embed", "--bundle", tiny.path, "--out", features, videos).code == 0
    assert run("search", "--bundle", tiny.path, "run", features, "--save-vector", vector).code == 0
    document, loaded, said = loads("search", "--bundle", tiny.path, "--vector", vector, features)
    assert loaded == {"loaded": [], "graphs": []}
    assert " on cpu in " not in said
    assert (document["model"]["backend"], document["model"]["reason"]) == ("none", "nothing had to run")


def test_a_backend_asked_for_by_name_runs_the_sentence_too(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    features = tmp_path / "features.npz"
    assert run("embed", "--bundle", tiny.path, "--out", features, videos).code == 0
    options = ("search", "--bundle", tiny.path, "run", features, "--json", "--backend")
    result = run(*options, "onnxruntime")
    assert json.loads(result.stdout)["model"]["backend"] == "onnxruntime"
    assert "onnxruntime on cpu in fp32" in result.stderr
    assert "numpy" not in result.stderr
    result = run(*options, "numpy")
    assert json.loads(result.stdout)["model"]["reason"].endswith("asked for by name")
    result = run("search", "--bundle", tiny.path, "run", videos, "--backend", "numpy")
    assert result.code == 1
    assert "backend numpy asked for; it runs text and projection, not video" in result.stderr
