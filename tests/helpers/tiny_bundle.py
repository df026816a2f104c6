"""A bundle of tiny graphs with the real ones' names, dtypes and axes, and the same arithmetic in NumPy.

It opens and runs in milliseconds, so tests of everything around the model can use it. The towers are random, but
different clips get different embeddings, and the order of the frames, rows, columns and colours all matter.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from milnce.bundle_writer import BundleWriter
from milnce.specs import Dimension, TensorSpec

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    Array = NDArray[np.float32]

OPSET = 20
WORDS = ("a", "cut", "the", "tomato", "open", "door", "don't", "someone", "cutting", "pour", "water", "run", "café")
MAX_WORDS = 16

_MINIMUM_FRAMES, _MINIMUM_SIZE = 4, 16


@dataclass(frozen=True)
class TinyWeights:
    """Weights of both towers.

    Attributes:
        stem: (C, 3, 2, 2, 2), a convolution of stride 2 over time, rows and columns.
        mean_bias: (C,), its bias.
        mixed: (F, C), makes the mixed_5c features, with ReLU.
        fc: (D, F) and fc_bias (D,), the projection.
        table: (words + 1, E), row 0 for padding.
        text_fc1: (E, H), then ReLU and the maximum over words.
        text_fc2: (D, H), with text_bias (D,).
    """

    stem: Array
    mean_bias: Array
    mixed: Array
    fc: Array
    fc_bias: Array
    table: Array
    text_fc1: Array
    text_fc2: Array
    text_bias: Array

    @classmethod
    def seeded(cls, seed: int = 0, *, embedding: int = 8, features: int = 12, words: int = len(WORDS)) -> TinyWeights:
        """Return weights drawn with `seed`."""
        rng = np.random.default_rng(seed)

        def draw(*shape: int) -> Array:
            return rng.standard_normal(shape, dtype=np.float32)

        return cls(
            stem=draw(6, 3, 2, 2, 2),
            mean_bias=draw(6),
            mixed=draw(features, 6),
            fc=draw(embedding, features),
            fc_bias=draw(embedding),
            table=draw(words + 1, 5),
            text_fc1=draw(5, 7),
            text_fc2=draw(embedding, 7),
            text_bias=draw(embedding),
        )

    @property
    def digest(self) -> str:
        """Hex sha256 over the weights."""
        digest = hashlib.sha256()
        for value in vars(self).values():
            digest.update(value.tobytes())
        return digest.hexdigest()

    def video(self, clips: NDArray[np.uint8]) -> tuple[Array, Array]:
        """Return what the video graph gives for uint8 (N, T, H, W, 3): embedding (N, D) and mixed_5c (N, F)."""
        x = clips.astype(np.float32) / np.float32(255)
        count, frames, height, width, _ = x.shape
        blocks = x.reshape(count, frames // 2, 2, height // 2, 2, width // 2, 2, 3)
        stem = np.einsum("ntahbwcs,ksabc->nkthw", blocks, self.stem)
        stem = np.maximum(stem + self.mean_bias[:, None, None, None], 0)
        mixed = np.maximum(stem.mean(axis=(2, 3, 4)) @ self.mixed.T, 0).astype(np.float32)
        return self.project(mixed), mixed

    def project(self, mixed_5c: Array) -> Array:
        """Return what the projection gives for (N, F)."""
        return np.asarray(mixed_5c @ self.fc.T + self.fc_bias, dtype=np.float32)

    def text(self, tokens: NDArray[np.int64]) -> Array:
        """Return what the text graph gives for (N, words): (N, D)."""
        hidden = np.maximum(self.table[tokens] @ self.text_fc1, 0).max(axis=1)
        return np.asarray(hidden @ self.text_fc2.T + self.text_bias, dtype=np.float32)


@dataclass(frozen=True)
class Tiny:
    """A tiny bundle on disk and the weights that say what it must answer."""

    path: Path
    weights: TinyWeights


def write_tiny_bundle(  # noqa: PLR0913 - each one is a way in which bundles differ
    folder: Path,
    *,
    precisions: Sequence[str] = ("fp32", "fp16"),
    input_forms: Sequence[str] = ("uint8", "float32"),
    modules: Sequence[str] = ("video", "text", "projection"),
    words: Sequence[str] = WORDS,
    max_words: int = MAX_WORDS,
    sampling: dict[str, Any] | None = None,
    seed: int = 0,
    embedding: int = 8,
    features: int = 12,
    largest_batch: int | None = None,
) -> TinyWeights:
    """Write a bundle to `folder` and return the weights, whose methods give the numbers to expect.

    Clips must have at least 4 frames and 16 x 16 pixels, and even sizes. The projection is FP32 alone.
    """
    weights = TinyWeights.seeded(seed, embedding=embedding, features=features, words=len(words))
    batch = Dimension("batch", 1, largest_batch)
    with BundleWriter(folder) as writer:
        for precision in precisions:
            for form in input_forms if "video" in modules else ():
                model = video_graph(weights, form=form, precision=precision)
                inputs, outputs = [video_spec(form, batch)], _video_outputs(weights, batch)
                _add(writer, "video", form, precision, model, inputs, outputs)
            if "text" in modules:
                tokens = TensorSpec("tokens", "int64", (batch, Dimension("words", 1, None)))
                model = text_graph(weights, precision=precision)
                text_outputs = [_matrix("text_embedding", batch, weights.fc.shape[0])]
                _add(writer, "text", "tokens", precision, model, [tokens], text_outputs)
        if "projection" in modules:
            features_spec = _matrix("mixed_5c", batch, weights.fc.shape[1])
            outputs = _video_outputs(weights, batch)[:1]
            _add(writer, "projection", "mixed_5c", "fp32", projection_graph(weights), [features_spec], outputs)
        writer.add_vocabulary(list(words), max_words=max_words)
        writer.commit(
            name="tiny",
            model_digest=weights.digest,
            sampling=sampling or {"preset": "milnce-native", "size": 32, "frames": 4},
            made={"tool": "tests"},
        )
    return weights


def tiny_clips(count: int = 3, *, frames: int = 4, size: int = 16, seed: int = 0) -> NDArray[np.uint8]:
    """Return seeded noise of differing brightness, uint8 (count, frames, size, size, 3)."""
    rng = np.random.default_rng(seed)
    clips = rng.integers(0, 256, (count, frames, size, size, 3), dtype=np.uint8)
    levels = rng.uniform(0.3, 1.0, (count, frames, 1, 1, 3))
    return (clips * levels).astype(np.uint8)


def video_spec(form: str, batch: Dimension) -> TensorSpec:
    """Return the video input of `form`."""
    axes = [
        Dimension("frames", _MINIMUM_FRAMES, None, 2),
        Dimension("height", _MINIMUM_SIZE, None, 2),
        Dimension("width", _MINIMUM_SIZE, None, 2),
    ]
    channels = Dimension.fixed(3)
    shape = (batch, *axes, channels) if form == "uint8" else (batch, channels, *axes)
    return TensorSpec("video", form, shape)


def video_graph(weights: TinyWeights, *, form: str = "uint8", precision: str = "fp32") -> bytes:
    """Return the ONNX video graph: [cast, scale, permute,] Conv, ReLU, mean, Gemm, ReLU, Gemm."""
    graph = _Graph(precision)
    if form == "uint8":
        graph.node("Cast", ["video"], "float", to=TensorProto.FLOAT)
        graph.node("Div", ["float", graph.constant(np.float32(255), keep=True)], "scaled")
        graph.node("Transpose", ["scaled"], "pixels", perm=[0, 4, 1, 2, 3])
        shape: list[str | int] = ["batch", "frames", "height", "width", 3]
    else:
        graph.node("Identity", ["video"], "pixels")
        shape = ["batch", 3, "frames", "height", "width"]
    stem = [graph.lower("pixels"), graph.constant(weights.stem), graph.constant(weights.mean_bias)]
    graph.node("Conv", stem, "stem", strides=[2, 2, 2])
    graph.node("Relu", ["stem"], "stem_relu")
    graph.node("GlobalAveragePool", [graph.raise_("stem_relu")], "mean")
    graph.node("Flatten", ["mean"], "flat")
    graph.node("Gemm", ["flat", graph.constant(weights.mixed, keep=True)], "mixed", transB=1)
    graph.node("Relu", ["mixed"], "mixed_5c")
    _add_fc(graph, weights)
    element = TensorProto.UINT8 if form == "uint8" else TensorProto.FLOAT
    outputs = [("video_embedding", weights.fc.shape[0]), ("mixed_5c", weights.fc.shape[1])]
    return graph.serialise(helper.make_tensor_value_info("video", element, shape), outputs)


def text_graph(weights: TinyWeights, *, precision: str = "fp32") -> bytes:
    """Return the ONNX text graph: Gather, MatMul, ReLU, ReduceMax, Gemm."""
    graph = _Graph(precision)
    graph.node("Gather", [graph.constant(weights.table), "tokens"], "words")
    graph.node("MatMul", ["words", graph.constant(weights.text_fc1)], "hidden")
    graph.node("Relu", ["hidden"], "hidden_relu")
    axes = graph.constant(np.array([1], dtype=np.int64), keep=True)
    graph.node("ReduceMax", [graph.raise_("hidden_relu"), axes], "sentence", keepdims=0)
    last = ["sentence", graph.constant(weights.text_fc2, keep=True), graph.constant(weights.text_bias, keep=True)]
    graph.node("Gemm", last, "text_embedding", transB=1)
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["batch", "words"])
    return graph.serialise(tokens, [("text_embedding", weights.fc.shape[0])])


def projection_graph(weights: TinyWeights) -> bytes:
    """Return the ONNX graph of the last layer alone."""
    graph = _Graph("fp32")
    _add_fc(graph, weights)
    features = helper.make_tensor_value_info("mixed_5c", TensorProto.FLOAT, ["batch", weights.fc.shape[1]])
    return graph.serialise(features, [("video_embedding", weights.fc.shape[0])])


def _add_fc(graph: _Graph, weights: TinyWeights) -> None:
    operands = ["mixed_5c", graph.constant(weights.fc, keep=True), graph.constant(weights.fc_bias, keep=True)]
    graph.node("Gemm", operands, "video_embedding", transB=1)


class _Graph:
    """Collects nodes and constants; with precision "fp16" constants are halves unless kept."""

    def __init__(self, precision: str) -> None:
        self.half = precision == "fp16"
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:  # noqa: ANN401 - ONNX's own
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))

    def constant(self, value: Any, *, keep: bool = False) -> str:  # noqa: ANN401 - an array or a NumPy scalar
        array = np.asarray(value)
        name = f"constant_{len(self.constants)}"
        self.constants.append(
            numpy_helper.from_array(array.astype(np.float16) if self.half and not keep else array, name)
        )
        return name

    def lower(self, tensor: str) -> str:
        return self._cast(tensor, TensorProto.FLOAT16)

    def raise_(self, tensor: str) -> str:
        return self._cast(tensor, TensorProto.FLOAT)

    def _cast(self, tensor: str, element: int) -> str:
        if not self.half:
            return tensor
        self.node("Cast", [tensor], f"{tensor}_cast", to=element)
        return f"{tensor}_cast"

    def serialise(self, tensor: onnx.ValueInfoProto, outputs: list[tuple[str, int]]) -> bytes:
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name, width in outputs]
        graph = helper.make_graph(self.nodes, "tiny", [tensor], results, self.constants)
        # IR 10 is the newest that the oldest supported ONNX Runtime reads.
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def _add(
    writer: BundleWriter,
    module: str,
    form: str,
    precision: str,
    model: bytes,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> None:
    writer.add_graph(
        module=module,
        input_form=form,
        precision=precision,
        model=model,
        opset=OPSET,
        inputs=inputs,
        outputs=outputs,
        parity={"max_difference": 0.0},
    )


def _video_outputs(weights: TinyWeights, batch: Dimension) -> list[TensorSpec]:
    embedding, features = weights.fc.shape
    return [_matrix("video_embedding", batch, embedding), _matrix("mixed_5c", batch, features)]


def _matrix(name: str, batch: Dimension, width: int) -> TensorSpec:
    return TensorSpec(name, "float32", (batch, Dimension.fixed(width)))
