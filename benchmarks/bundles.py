"""The full-width bundle that benchmarks measure when none is given: seeded weights, made once and kept."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from milnce.bundle import Bundle
from milnce.errors import MilnceError
from milnce_convert.derived import commit_derived, copy_graph, derived_bundle
from milnce_convert.sample_inputs import moving_clips

if TYPE_CHECKING:
    from pathlib import Path

_SEED = 0
_CALIBRATION_CLIPS = 16


def full_width_bundle(work: Path) -> Path:
    """Return a folder with the published widths and seeded weights, in FP32, FP16, and INT8 where that can be made.

    Args:
        work: Where it is kept; what is there already is used.
    """
    plain, quantised = work / "seeded-full-width", work / "seeded-full-width-int8"
    if not plain.exists():
        from milnce_convert.convert import ExportOptions, export_seeded_bundle  # noqa: PLC0415 - needs PyTorch

        work.mkdir(parents=True, exist_ok=True)
        # Parity of the export is CI's business; here it is measured once, at a small size.
        options = ExportOptions(input_forms=("uint8",), parity_sizes=((16, 64, 64),))
        export_seeded_bundle(_SEED, plain, options, progress=_say)
    if not quantised.exists():
        try:
            add_int8(Bundle.open(plain), quantised)
        except (ImportError, MilnceError) as error:
            _say(f"no INT8: {error}")
            return plain
    return quantised


def add_int8(bundle: Bundle, destination: Path) -> None:
    """Write a bundle with one more graph: the video tower in INT8, calibrated on moving clips.

    Not through `milnce quantize`, which refuses what retrieves worse: random weights retrieve nothing.

    Raises:
        MilnceError: if NNCF is not installed or fails.
    """
    from milnce_convert.quantize_nncf import quantize_graph  # noqa: PLC0415 - needs NNCF

    plain = bundle.graph("video", input_form="uint8")
    frames, size = bundle.manifest.sampling["frames"], bundle.manifest.sampling["size"]
    clips = moving_clips(_CALIBRATION_CLIPS, frames, size, size, seed=100)
    _say(f"quantise on {len(clips)} clips of {frames}x{size}x{size}")
    model = quantize_graph(bundle.read(plain), list(clips))
    with derived_bundle(destination) as writer:
        for graph in bundle.manifest.graphs:
            copy_graph(writer, bundle, graph)
        writer.add_graph(
            module=plain.module,
            input_form=plain.input_form,
            precision="int8",
            model=model,
            opset=plain.opset,
            inputs=plain.inputs,
            outputs=plain.outputs,
            parity={},
        )
        commit_derived(writer, bundle, made={"quantized": f"on {len(clips)} moving clips, not measured"})


def _say(stage: str) -> None:
    print(f"  {stage}", file=sys.stderr)
