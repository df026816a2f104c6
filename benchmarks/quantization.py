"""What bfloat16 and INT8 do to retrieval: the demo bundle in FP32, bf16 and INT8, in OpenVINO.

    python benchmarks/quantization.py [--bundle engines/demo] [--clips 128] [--clips 16]

INT8 is made as `milnce quantize` makes it, of clips of combinations that the model was trained on; all precisions are
then measured on clips of another seed: the queries are the captions of combinations that were never trained on, the
candidates the clips of all of them. The gate of each precision is held on the clips' embeddings against FP32's. The
report is written in any case; it exits with 1 if R@1 or R@5 of any precision falls by more than a point.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import milnce
from harness import RESULTS, Target, write
from milnce.bundle import Bundle
from milnce.captions import CaptionColumns, read_captions
from milnce.evaluation import embed_clips, evaluate
from milnce.pipeline import resolve_preset
from milnce.video import find_videos
from milnce_convert.demo.clips import CAPTIONS_FILE, write_set
from milnce_convert.demo.concepts import combinations
from milnce_convert.parity import BF16_GATE, INT8_GATE, Gate, compare
from milnce_convert.quantize import QuantizeOptions, quantize_bundle

if TYPE_CHECKING:
    from milnce.evaluation import Evaluation

CALIBRATION_SEED, MEASURED_SEED = 2000, 1000
LARGEST_FALL_POINTS = 1.0
_MEASURES = ("r1", "r5", "r10", "median_rank", "mean_rank")


def main() -> None:
    """Draw clips, quantise, evaluate every precision, write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("engines/demo"))
    parser.add_argument("--clips", type=int, action="append", help="to calibrate on; once for each row; 128")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the report")
    options = parser.parse_args()
    counts = options.clips or [128]
    bundle = Bundle.open(options.bundle)
    with tempfile.TemporaryDirectory() as name:
        calibration, measured = Path(name, "calibration"), Path(name, "measured")
        write_set(calibration, [item for item in combinations() if not item.held_out], seed=CALIBRATION_SEED)
        write_set(measured, combinations(), seed=MEASURED_SEED)
        plain = _evaluate(bundle.path, "fp32", measured)
        rows = [
            _row("fp32", plain, plain, None),
            _row("bf16", _evaluate(bundle.path, "bf16", measured), plain, BF16_GATE),
        ]
        for count in counts:
            # The fall is what is measured here, so none is refused.
            settings = QuantizeOptions(clips=count, largest_fall_points=100.0)
            print(f"quantise on {count} clips")
            made = quantize_bundle(bundle, Path(name, f"int8-{count}"), [calibration], settings)
            found = _evaluate(made.bundle.path, "int8", measured)
            rows.append({**_row("int8", found, plain, INT8_GATE), "name": f"int8, {count} clips", "clips": count})
    settings_json = {
        "bundle": str(options.bundle),
        "calibration_seed": CALIBRATION_SEED,
        "measured_seed": MEASURED_SEED,
        "method": dict(made.bundle.manifest.made["quantized"]["method"]),
    }
    targets = falls(rows)
    report = {"settings": settings_json, "rows": rows, "targets": [target.to_json() for target in targets]}
    write("quantization", report, results=options.results)
    require_reached(targets)


def _evaluate(bundle: Path, precision: str, folder: Path) -> Evaluation:
    """Evaluate as `milnce eval --queries split=unseen` does."""
    captions = read_captions(folder / CAPTIONS_FILE, CaptionColumns(queries=(("split", "unseen"),)))
    with milnce.load(bundle, backend="openvino", precision=precision, modules=("video",)) as model:
        clips = embed_clips(model, captions, preset=resolve_preset(model, None), videos=find_videos(folder))
        return evaluate(model, captions, clips)


def _row(precision: str, found: Evaluation, plain: Evaluation, gate: Gate | None) -> dict[str, Any]:
    agreement = compare(plain.clips.embedding, found.clips.embedding)
    return {
        "name": precision,
        "gate": None if gate is None else gate.name,
        "parity": agreement.to_json(),
        "failures": [] if gate is None else gate.failures(agreement),
        "queries": len(found.asked),
        "candidates": len(found.candidates),
        "recall": {row.direction: {name: getattr(row, name) for name in _MEASURES} for row in found.metrics},
    }


def falls(rows: list[dict[str, Any]]) -> list[Target]:
    """Return how many points R@1 and R@5 fall from the first row, for each of the others and each direction."""
    plain, *others = rows
    names = {"t2v": "text to video", "v2t": "video to text"}
    return [
        Target(
            f"{row['name']}: points that {measure.replace('r', 'R@')} falls, {names[direction]}",
            wanted=LARGEST_FALL_POINTS,
            measured=plain["recall"][direction][measure] - figures[measure],
            better="lower",
        )
        for row in others
        for direction, figures in row["recall"].items()
        for measure in ("r1", "r5")
    ]


def require_reached(targets: list[Target]) -> None:
    """Exit with 1, and say which, if any recall falls by more than a point."""
    fallen = [target for target in targets if not target.reached]
    if fallen:
        listed = "".join(f"\n  - {target.name}: {target.measured:.2f}" for target in fallen)
        raise SystemExit(f"recall falls by more than {LARGEST_FALL_POINTS:g} point:{listed}")


if __name__ == "__main__":
    main()
