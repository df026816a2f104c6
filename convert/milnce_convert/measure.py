"""Runs exported graphs beside the PyTorch towers and holds them to the parity gates."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, numpy_helper

from milnce.errors import ParityError
from milnce.platforms import arm_features
from milnce_convert.export import block_output
from milnce_convert.fixtures import as_video, moving_clips, random_tokens
from milnce_convert.parity import FP16_GATE, FP32_GATE, Agreement, Gate, compare, require

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor, nn

    from milnce_convert.checkpoint import Towers
    from milnce_convert.export import ExportedGraph

    Arrays = dict[str, NDArray[Any]]

_REFERENCE = "PyTorch tower, FP32, CPU"
_LARGE = 32 * 112 * 112  # pixels of a clip from which on fewer clips are compared, for time
_SENTENCES = 32


def run_graph(model: bytes, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
    """Run a serialised ONNX graph on ONNX Runtime's CPU provider; returns its outputs by name.

    The CPU provider computes FP16 operators in FP32 and rounds what passes between them, so an FP16 figure measured
    here is that of the weights' and activations' rounding; accumulation in FP16 needs a GPU to be seen. An ARM
    processor with FP16 arithmetic would add up in it: there the graph runs in FP32, and the figure is of the weights.
    """
    if "asimdhp" in arm_features():
        model = in_fp32(model)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def in_fp32(model: bytes) -> bytes:
    """Return an FP16 graph that computes in FP32, its weights as FP16 rounded them. An FP32 graph stays what it is."""
    proto = onnx.load_from_string(model)
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for node in proto.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
    del proto.graph.value_info[:]  # of the dtypes that were
    return bytes(proto.SerializeToString())


def measure_text(towers: Towers, graphs: Sequence[ExportedGraph], *, words: int) -> list[dict[str, Any]]:
    """Compare text graphs, the FP32 one first, with the text tower.

    Args:
        towers: The reference.
        graphs: One FP32 graph, then any made from it.
        words: Ids a sentence.

    Returns:
        The manifest's parity record of each graph.

    Raises:
        ParityError: if a graph fails its gate.
    """
    tokens = random_tokens(_SENTENCES, towers.text.config.rows, words=words, seed=1)
    expected = _torch_outputs(towers.text, torch.from_numpy(tokens))
    case = f"{_SENTENCES} sentences of {words} ids"
    records = [_Record(graph) for graph in graphs]
    plain: Arrays | None = None
    for record in records:
        found = run_graph(record.graph.model, {"tokens": tokens})
        record.add(case, expected, found, plain)
        plain = plain or found
    return [record.to_json() for record in records]


def measure_video(
    towers: Towers, graphs: Sequence[ExportedGraph], sizes: Sequence[tuple[int, int, int]]
) -> list[dict[str, Any]]:
    """Compare video graphs with the video tower on structured clips, and FP32 block by block at the first size.

    Args:
        towers: The reference.
        graphs: FP32 graphs before those cast from them.
        sizes: (frames, height, width) of the clips.

    Returns:
        The manifest's parity record of each graph.

    Raises:
        ParityError: if a graph fails its gate.
    """
    records = [_Record(graph) for graph in graphs]
    for frames, height, width in sizes:
        count = 3 if frames * height * width >= _LARGE else 6
        clips = moving_clips(count, frames, height, width, seed=frames + height)
        expected = _torch_outputs(towers.video, as_video(clips))
        plain: dict[str, Arrays] = {}
        for record in records:
            form = record.graph.input_form
            found = run_graph(record.graph.model, {"video": _as_input(clips, form)})
            record.add(f"{count} clips {frames}x{height}x{width}", expected, found, plain.get(form))
            plain.setdefault(form, found)
    records[0].blocks = measure_blocks(towers, graphs[0], sizes[0])
    return [record.to_json() for record in records]


def measure_blocks(towers: Towers, graph: ExportedGraph, size: tuple[int, int, int]) -> dict[str, Agreement]:
    """Compare the FP32 graph with the tower after every Inception block.

    Raises:
        ParityError: if a block fails the FP32 gate.
    """
    blocks = list(towers.config.video.blocks)
    clips = moving_clips(3, *size, seed=5)
    maps: dict[str, NDArray[Any]] = {}
    hooks = [
        towers.video.get_submodule(name).register_forward_hook(
            lambda _module, _inputs, output, name=name: maps.__setitem__(name, output.numpy())
        )
        for name in blocks
    ]
    try:
        _torch_outputs(towers.video, as_video(clips))
    finally:
        for hook in hooks:
            hook.remove()
    found = run_graph(
        _with_outputs(graph.model, map(block_output, blocks)), {"video": _as_input(clips, graph.input_form)}
    )
    agreements = {}
    for name in blocks:
        agreements[name] = compare(_rows(maps[name]), _rows(found[block_output(name)]))
        require(agreements[name], FP32_GATE, f"{graph.module} {graph.input_form} {graph.precision} at {name}")
    return agreements


def measure_projection(towers: Towers, graph: ExportedGraph) -> dict[str, Any]:
    """Compare the projection graph with `fc`; returns the manifest's parity record.

    Raises:
        ParityError: if it fails the FP32 gate.
    """
    generator = torch.Generator().manual_seed(2)
    features = torch.rand(_SENTENCES, towers.config.video.mixed_5c, generator=generator)
    with torch.no_grad():
        expected = {"video_embedding": towers.video.fc(features).numpy()}
    record = _Record(graph)
    record.add(f"{_SENTENCES} features", expected, run_graph(graph.model, {"mixed_5c": features.numpy()}), None)
    return record.to_json()


@dataclass
class _Record:
    """One graph's agreements by output and case, and by block; each is held to the graph's gate as it comes."""

    graph: ExportedGraph
    outputs: dict[str, dict[str, Agreement]] = field(default_factory=dict)
    blocks: dict[str, Agreement] = field(default_factory=dict)

    def add(self, case: str, expected: Arrays, found: Arrays, plain: Arrays | None) -> None:
        """Compare one run. `plain` is the FP32 graph's output on the same input, for a graph of another precision."""
        graph, gate = self.graph, gate_of(self.graph.precision)
        for name, reference in expected.items():
            subject = f"{graph.module} {graph.input_form} {graph.precision}, {name}, {case}"
            agreement = compare(reference, found[name])
            require(agreement, gate, subject)
            if plain is not None and not gate.may_be_identical and np.array_equal(plain[name], found[name]):
                raise ParityError(f"{subject} is bit-identical to fp32: the same graph was compared with itself")
            self.outputs.setdefault(name, {})[case] = agreement

    def to_json(self) -> dict[str, Any]:
        """Return the manifest's form."""
        outputs = {
            name: {case: agreement.to_json() for case, agreement in cases.items()}
            for name, cases in self.outputs.items()
        }
        record: dict[str, Any] = {"reference": _REFERENCE, "gate": self.graph.precision, "outputs": outputs}
        if self.blocks:
            record["blocks"] = {name: agreement.to_json() for name, agreement in self.blocks.items()}
        return record


def gate_of(precision: str) -> Gate:
    """Return the gate of a graph's precision."""
    return {"fp32": FP32_GATE, "fp16": FP16_GATE}[precision]


def _torch_outputs(tower: nn.Module, value: Tensor) -> Arrays:
    with torch.no_grad():
        return {name: output.numpy() for name, output in tower(value).items()}


def _as_input(clips: NDArray[np.uint8], input_form: str) -> NDArray[Any]:
    return clips if input_form == "uint8" else as_video(clips).contiguous().numpy()


def _rows(maps: NDArray[Any]) -> NDArray[Any]:
    return maps.reshape(len(maps), -1)


def _with_outputs(model: bytes, names: Iterable[str]) -> bytes:
    """Return the graph with some of its inner values as further outputs."""
    proto = onnx.ModelProto.FromString(model)
    inner = {value.name: value for value in proto.graph.value_info}
    for name in names:
        if name not in inner:
            raise ParityError(f"the graph has no value {name} to compare at")
        proto.graph.output.append(inner[name])
    return bytes(proto.SerializeToString())
