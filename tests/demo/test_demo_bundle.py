"""The committed demo bundle: it finds what it was never trained on, and the answers of `make demo` are right."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import milnce
from milnce.bundle import Bundle
from milnce.errors import InputError
from milnce.tokenizer import Tokenizer
from milnce_convert.demo.clips import CAPTIONS_FILE, SAMPLING, write_set
from milnce_convert.demo.concepts import combinations, vocabulary
from milnce_convert.demo.samples import CLIPS, QUESTIONS, SCENES, SCENES_FILE, name_of, write_samples
from milnce_convert.half import add_half_precision

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "engines" / "demo"
RECALLS = ("r1", "r5", "r10")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo bundle with FP16 graphs beside its FP32 ones."""
    return add_half_precision(Bundle.open(DEMO), tmp_path_factory.mktemp("bundles") / "both")


@pytest.fixture(scope="module")
def evaluate(both: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], dict[str, Any]]:
    """Return what measures text to video of unseen combinations, on clips that nothing was trained or chosen on."""
    folder = tmp_path_factory.mktemp("clips")
    write_set(folder, combinations(), seed=77)
    done: dict[tuple[str, str], dict[str, Any]] = {}

    def run(backend: str, precision: str) -> dict[str, Any]:
        if (backend, precision) not in done:
            command = [sys.executable, "-m", "milnce.cli", "eval", "--bundle", str(both.path), "--json"]
            command += ["--captions", str(folder / CAPTIONS_FILE), "--videos", str(folder), "--queries", "split=unseen"]
            command += ["--backend", backend, "--precision", precision]
            answer = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300).stdout)
            assert (answer["model"]["backend"], answer["model"]["precision"]) == (backend, precision)
            done[backend, precision] = next(row for row in answer["metrics"] if row["direction"] == "t2v")
        return done[backend, precision]

    return run


def test_it_is_whole_small_and_of_these_concepts() -> None:
    bundle = Bundle.open(DEMO)
    bundle.verify()
    files = [DEMO / "manifest.json", DEMO / "vocabulary.txt", *(DEMO / graph.file for graph in bundle.manifest.graphs)]
    assert sum(path.stat().st_size for path in files) <= 4_000_000
    assert (DEMO / "vocabulary.txt").read_text(encoding="utf-8").split() == vocabulary()
    assert bundle.manifest.sampling == {"preset": "milnce-eval", "frames": SAMPLING.frames, "size": SAMPLING.size}


def test_it_finds_what_it_was_never_trained_on(evaluate: Callable[[str, str], dict[str, Any]]) -> None:
    row = evaluate("onnxruntime", "fp32")
    assert (row["queries"], row["candidates"]) == (87 * 3, 432)
    assert row["r1"] >= 85
    assert row["r5"] >= 99
    assert row["median_rank"] == 1


@pytest.mark.parametrize(
    ("backend", "precision"), [("openvino", "fp32"), ("onnxruntime", "fp16"), ("openvino", "fp16")]
)
def test_another_backend_or_precision_finds_the_same(
    backend: str, precision: str, evaluate: Callable[[str, str], dict[str, Any]]
) -> None:
    plain, other = evaluate("onnxruntime", "fp32"), evaluate(backend, precision)
    assert other["queries"] == plain["queries"]
    for recall in RECALLS:
        assert other[recall] == pytest.approx(plain[recall], abs=0.5), recall


def test_the_demo_finds_the_right_answer_to_every_sentence(tmp_path: Path) -> None:
    write_samples(tmp_path / "videos")
    command = [sys.executable, "-m", "milnce.cli", "search", "--bundle", str(DEMO), "--json", "--top", "3"]
    command += ["--index", str(tmp_path / "index.sqlite")]
    for sentence in QUESTIONS:
        command += ["--query", sentence]
    done = subprocess.run([*command, str(tmp_path / "videos")], stdout=subprocess.PIPE, check=True, timeout=300)
    answers = json.loads(done.stdout)["queries"]
    assert [answer["query"] for answer in answers] == list(QUESTIONS)
    for answer, right in zip(answers, QUESTIONS.values(), strict=True):
        best = answer["results"][0]
        if right in CLIPS:
            assert Path(best["path"]).name == name_of(right), answer["query"]
        else:
            assert Path(best["path"]).name == SCENES_FILE
            # Scenes last 3.3 to 3.5 seconds each; the moment must lie mostly in the right one.
            middle_s = (best["start_s"] + best["end_s"]) / 2
            assert SCENES.index(right) == int(middle_s / 3.4), best


def test_the_demo_asks_those_sentences() -> None:
    asked = re.findall(r'--query "([^"]+)"', (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert asked == list(QUESTIONS)
    tokenizer = Tokenizer(vocabulary(), 16)
    assert all(len(tokenizer.unknown(sentence)) <= 1 for sentence in asked)


def test_half_precision_is_added_once_and_says_what_it_was_compared_with(both: Bundle, tmp_path: Path) -> None:
    graphs = {(graph.module, graph.precision): graph for graph in both.manifest.graphs}
    assert set(graphs) == {(m, p) for m in ("text", "video") for p in ("fp32", "fp16")} | {("projection", "fp32")}
    assert graphs["video", "fp16"].bytes < 0.65 * graphs["video", "fp32"].bytes
    assert graphs["video", "fp16"].parity["reference"] == "FP32 graph, ONNX Runtime, CPU"
    assert graphs["video", "fp32"].parity["reference"] == "PyTorch tower, FP32, CPU"
    assert both.manifest.model_digest == Bundle.open(DEMO).manifest.model_digest
    with milnce.load(both.path, precision="fp16", backend="onnxruntime") as model:
        assert model.backend.precision == "fp16"
    with pytest.raises(InputError, match="has FP16 graphs already; use it as it is"):
        add_half_precision(both, tmp_path / "again")
