"""How near FP32 and FP16 graphs come to the PyTorch tower, over seeds and clip sizes: the honest side of the gates.

    python benchmarks/parity.py [--seeds 3]

The other side, what planted defects cost, is measured by tests/convert/test_mutants.py (`pytest -s` prints it).
"""

from __future__ import annotations

import argparse
from dataclasses import fields

import harness
from milnce_convert.export import export_video, half_precision
from milnce_convert.fixtures import seeded_towers
from milnce_convert.measure import measure_video
from milnce_convert.parity import Agreement

SIZES = ((4, 32, 200), (10, 72, 88), (16, 64, 64), (16, 112, 112), (32, 224, 224))
_FIGURES = [field.name for field in fields(Agreement) if field.type == "float"]


def main() -> None:
    """Measure, write the report. A graph that fails its gate ends the run with the gate's message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    worst = {precision: dict.fromkeys(_FIGURES, 0.0) for precision in ("fp32", "fp16")}
    for seed in range(seeds):
        towers = seeded_towers(seed)
        plain = export_video(towers.video)["uint8"]
        graphs = [plain, half_precision(plain)]
        for graph, record in zip(graphs, measure_video(towers, graphs, SIZES), strict=True):
            for cases in record["outputs"].values():
                for agreement in cases.values():
                    for figure in _FIGURES:
                        error = 1 - agreement[figure] if "cosine" in figure else agreement[figure]
                        worst[graph.precision][figure] = max(worst[graph.precision][figure], error)
        print(f"  seed {seed} done")
    harness.write("parity-cpu", {"seeds": seeds, "sizes": SIZES, "worst": worst})


if __name__ == "__main__":
    main()
