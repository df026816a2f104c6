"""Bundles with INT8 graphs: made by NNCF, or by hand where it must not be needed; and videos to calibrate on."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from milnce.bundle import Bundle
from milnce.bundle_writer import BundleWriter
from milnce_convert.demo.clips import encode
from milnce_convert.derived import commit_derived, copy_graph
from milnce_convert.sample_inputs import moving_clips

if TYPE_CHECKING:
    from pathlib import Path

REQUIRE = "MILNCE_REQUIRE_INT8"
_RATE = 10


def require_nncf() -> None:
    """Skip the test where NNCF is not installed; with MILNCE_REQUIRE_INT8=1 it fails instead."""
    try:
        import_module("nncf")
    except ImportError as error:
        if os.environ.get(REQUIRE) == "1":
            pytest.fail(f"{REQUIRE}=1, but nncf does not load: {error}")
        pytest.skip(f"nncf does not load: {error}")


def write_videos(folder: Path, count: int = 8, *, frames: int = 20, seed: int = 1) -> Path:
    """Write videos of moving shapes, 64 x 96 pixels and 10 frames a second, no two alike; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, pictures in enumerate(moving_clips(count, frames, 64, 96, seed=seed)):
        encode(folder / f"{number}.mp4", pictures, _RATE)
    return folder


def quantized_by_hand(model: bytes) -> bytes:
    """Return the tiny video graph with its one convolution between QuantizeLinear and DequantizeLinear."""
    proto = onnx.load_from_string(model)
    graph = proto.graph
    conv = next(node for node in graph.node if node.op_type == "Conv")
    weight = next(tensor for tensor in graph.initializer if tensor.name == conv.input[1])
    values = numpy_helper.to_array(weight)
    scale = (np.abs(values).max(axis=(1, 2, 3, 4)) / 127).astype(np.float32)
    rounded = np.round(values / scale.reshape(-1, 1, 1, 1, 1)).astype(np.int8)
    graph.initializer.remove(weight)
    tensors = {
        "pixel_scale": np.float32(1 / 255),
        "pixel_zero": np.uint8(0),
        "weight_int8": rounded,
        "weight_scale": scale,
        "weight_zero": np.zeros(len(scale), np.int8),
    }
    graph.initializer.extend(numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items())
    at = list(graph.node).index(conv)
    pixels = ["pixel_scale", "pixel_zero"]
    new = [
        helper.make_node("QuantizeLinear", [conv.input[0], *pixels], ["pixels_uint8"], name="quantize_pixels"),
        helper.make_node("DequantizeLinear", ["pixels_uint8", *pixels], ["pixels_back"], name="dequantize_pixels"),
        helper.make_node(
            "DequantizeLinear", ["weight_int8", "weight_scale", "weight_zero"], ["weight"], name="weights", axis=0
        ),
    ]
    for offset, node in enumerate(new):
        graph.node.insert(at + offset, node)
    conv.input[0], conv.input[1] = "pixels_back", "weight"
    assert {output.type.tensor_type.elem_type for output in graph.output} == {TensorProto.FLOAT}
    return bytes(proto.SerializeToString())


def add_int8_by_hand(source: Path, destination: Path, *, model: bytes | None = None) -> Bundle:
    """Write the bundle with an INT8 video graph: `model`, or the FP32 one quantised by hand."""
    bundle = Bundle.open(source)
    plain = bundle.graph("video", input_form="uint8")
    with BundleWriter(destination) as writer:
        for graph in bundle.manifest.graphs:
            copy_graph(writer, bundle, graph)
        writer.add_graph(
            module="video",
            input_form="uint8",
            precision="int8",
            model=quantized_by_hand(bundle.read(plain)) if model is None else model,
            opset=plain.opset,
            inputs=plain.inputs,
            outputs=plain.outputs,
            parity={},
        )
        commit_derived(writer, bundle)
    return Bundle.open(destination)
