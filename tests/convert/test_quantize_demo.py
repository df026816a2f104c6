"""The demo bundle in INT8 finds the demo's clips by their captions as FP32 does; one that does not is refused.

Covers NNCF, the INT8 kernels of OpenVINO and the refusal, on 144 clips of trained and unseen combinations of the demo's
432: 28 for calibration, the others and their captions for the figures, so that one query is no more than a point.
benchmarks/quantization.py measures all of the 432.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from helpers.quantizing import require_nncf
from milnce.bundle import Bundle
from milnce.captions import read_captions
from milnce.errors import QuantizationError
from milnce_convert import quantize, quantize_nncf
from milnce_convert.demo.clips import CAPTIONS_FILE, write_set
from milnce_convert.demo.concepts import combinations
from milnce_convert.parity import INT8_GATE
from milnce_convert.quantize import QuantizeOptions, quantize_bundle

if TYPE_CHECKING:
    from collections.abc import Callable

DEMO = Path(__file__).parents[2] / "engines" / "demo"
CAPTION_SEARCHES = ("captions find their clips", "clips find their captions")


@pytest.fixture(scope="module")
def demo_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with every third combination of the demo, and captions."""
    require_nncf()
    folder = tmp_path_factory.mktemp("demo-set")
    write_set(folder, combinations()[::3], seed=1000, captions=1)
    return folder


@pytest.fixture(scope="module")
def options(demo_set: Path) -> QuantizeOptions:
    """Return what `milnce quantize --captions` asks for, of fewer clips."""
    return QuantizeOptions(clips=24, held_out=100, captions=read_captions(demo_set / CAPTIONS_FILE))


@pytest.fixture(scope="module")
def quantizer() -> Callable[..., bytes]:
    """Return NNCF, run once: what it gave in one test is changed in the other."""
    kept: list[bytes] = []

    def run(model: bytes, clips: list[np.ndarray]) -> bytes:
        if not kept:
            kept.append(quantize_nncf.quantize_graph(model, clips))
        return kept[0]

    return run


def test_recall_on_the_demo_falls_by_at_most_a_point(
    demo_set: Path,
    options: QuantizeOptions,
    quantizer: Callable[..., bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(quantize, "quantize_graph", quantizer)
    made = quantize_bundle(Bundle.open(DEMO), tmp_path / "int8", [demo_set], options)
    searches = [recall for recall in made.recalls if recall.kind in CAPTION_SEARCHES]
    assert [recall.kind for recall in searches] == list(CAPTION_SEARCHES)
    for recall in searches:
        print(recall)  # noqa: T201 - what a person wants to know
        assert (recall.queries, recall.candidates) == (116, 116)
        assert min(recall.fp32.values()) > 80  # a model that finds nothing could not fall
        assert recall.int8["r1"] >= recall.fp32["r1"] - 1
        assert recall.int8["r5"] >= recall.fp32["r5"] - 1


def test_a_graph_that_finds_fewer_of_the_demos_clips_is_refused(
    demo_set: Path,
    options: QuantizeOptions,
    quantizer: Callable[..., bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bad(model: bytes, clips: list[np.ndarray]) -> bytes:
        """Return the graph with the ranges of its activations a third of what they are."""
        proto = onnx.load_from_string(quantizer(model, clips))
        tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        for name in {node.input[1] for node in proto.graph.node if node.op_type == "QuantizeLinear"}:
            array = numpy_helper.to_array(tensors[name]) * np.float32(1 / 3)
            tensors[name].CopyFrom(numpy_helper.from_array(np.asarray(array, np.float32), name))
        return bytes(proto.SerializeToString())

    # A gate that lets everything pass, so that recall alone decides.
    lenient = {"cosine": -1.0, "centred_cosine": -1.0, "relative_error": 99.0, "spread_error": 99.0}
    monkeypatch.setattr(
        quantize, "INT8_GATE", type(INT8_GATE)("int8", **lenient, scale_error=99.0, may_be_identical=False)
    )
    monkeypatch.setattr(quantize, "quantize_graph", bad)
    few = replace(options, clips=100, held_out=24)
    with pytest.raises(QuantizationError, match="worse by more than 1 point, so it is not written") as caught:
        quantize_bundle(Bundle.open(DEMO), tmp_path / "int8", [demo_set], few)
    print(caught.value)  # noqa: T201 - as above
    assert f"{CAPTION_SEARCHES[0]}: R@1" in str(caught.value)
    assert not (tmp_path / "int8").exists()
