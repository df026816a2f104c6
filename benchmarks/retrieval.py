"""Retrieval of a demo bundle, in every precision and on every CPU backend, as `milnce eval` measures it on files.

    python benchmarks/retrieval.py [--bundle engines/demo] [--name demo] [--sets 3]

Clips and captions are drawn anew (one clip of each combination a set, three captions a clip; no seed that anything was
trained or chosen on). The queries are the captions of combinations that were never trained on, the candidates the
clips of all combinations. FP16 graphs are cast from the FP32 ones where the bundle has none. Exits with 1 if FP32 and
FP16 runs differ by more than 0.5 points in R@1, R@5 or R@10, or if two runs give the very same scores.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import harness
import milnce
from milnce.bundle import Bundle
from milnce_convert.demo.clips import CAPTIONS_FILE, write_set
from milnce_convert.demo.concepts import combinations
from milnce_convert.half import add_half_precision
from render.retrieval import TOLERANCE_POINTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

RUNS = (
    ("onnxruntime", "fp32"),
    ("openvino", "fp32"),
    ("onnxruntime", "fp16"),
    ("openvino", "fp16"),
    ("openvino", "bf16"),
)
SAME = {"fp32", "fp16"}
FIRST_SEED = 1000
MEASURES = ("r1", "r5", "r10", "median_rank", "mean_rank")


def main() -> None:
    """Draw the sets, evaluate every run on every set, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("engines/demo"))
    parser.add_argument("--name", default="demo", help="of the report: results/retrieval-<name>.md")
    parser.add_argument("--sets", type=int, default=3)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        bundle = Bundle.open(options.bundle)
        if all(graph.precision == "fp32" for graph in bundle.manifest.graphs):
            bundle = add_half_precision(bundle, Path(name, "bundle"))
        folders = [Path(name, str(FIRST_SEED + number)) for number in range(options.sets)]
        for number, folder in enumerate(folders):
            write_set(folder, combinations(), seed=FIRST_SEED + number)
        scores = _scores(bundle.path, folders[0], *RUNS[0])
        for backend, precision in RUNS:
            results = [_evaluate(bundle.path, folder, backend, precision) for folder in folders]
            changed = _largest_change(scores, _scores(bundle.path, folders[0], backend, precision))
            if changed == 0 and (backend, precision) != RUNS[0]:
                sys.exit(f"{backend} {precision} gives the very numbers of {RUNS[0]}: it was compared with itself")
            rows += _rows(backend, precision, results, changed)
            print(f"  {rows[-2]}")
    spread = _spread(rows)
    harness.write(f"retrieval-{options.name}", {"rows": rows, "spread_points": spread})
    if max(spread.values()) > TOLERANCE_POINTS:
        sys.exit(f"FP32 and FP16 differ by more than {TOLERANCE_POINTS} points: {spread}")


def _evaluate(bundle: Path, folder: Path, backend: str, precision: str) -> dict[str, Any]:
    """Run `milnce eval` as a user would; return its document."""
    command = [sys.executable, "-m", "milnce.cli", "eval", "--bundle", str(bundle), "--json"]
    command += ["--captions", str(folder / CAPTIONS_FILE), "--videos", str(folder), "--queries", "split=unseen"]
    command += ["--backend", backend, "--precision", precision]
    document: dict[str, Any] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)  # noqa: S603
    used = document["model"]["backend"], document["model"]["precision"]
    if used != (backend, precision):
        sys.exit(f"{backend} {precision} asked for, {used} used: nothing would be compared")
    return document


def _scores(bundle: Path, folder: Path, backend: str, precision: str) -> NDArray[np.float32]:
    """Return (captions, clips) scores of a set, to see that another precision is another computation."""
    with (folder / CAPTIONS_FILE).open(encoding="utf-8", newline="") as file:
        captions = [row["caption"] for row in csv.DictReader(file)]
    videos = sorted(path for path in folder.iterdir() if path.name != CAPTIONS_FILE)
    with milnce.load(bundle, backend=backend, precision=precision) as model:
        clips = np.stack([item.embedding.mean(axis=0) for item in model.embed_files(videos)])
        return milnce.similarity(model.encode_text(captions), clips)


def _largest_change(scores: NDArray[np.float32], others: NDArray[np.float32]) -> float:
    return float(np.abs(scores - others).max())


def _rows(backend: str, precision: str, results: list[dict[str, Any]], changed: float) -> list[dict[str, Any]]:
    """Return a row a direction: the mean of each measure over the sets, and R@1 of each."""
    rows = []
    for direction in ("t2v", "v2t"):
        found = [row for result in results for row in result["metrics"] if row["direction"] == direction]
        means = {measure: float(np.mean([row[measure] for row in found])) for measure in MEASURES}
        rows.append(
            {
                "backend": backend,
                "precision": precision,
                "direction": direction,
                "queries": sum(row["queries"] for row in found),
                "candidates": found[0]["candidates"],
                **means,
                "largest_score_change": changed,
                "r1_of_each_set": [round(row["r1"], 2) for row in found],
            }
        )
    return rows


def _spread(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return how far the FP32 and FP16 runs are apart, in points, over both directions."""
    spread = {}
    for measure in ("r1", "r5", "r10"):
        apart = []
        for direction in ("t2v", "v2t"):
            values = [row[measure] for row in rows if row["direction"] == direction and row["precision"] in SAME]
            apart.append(max(values) - min(values))
        spread[measure] = max(apart)
    return spread


if __name__ == "__main__":
    main()
