"""NNCF's post-training quantisation of a video graph: an FP32 ONNX graph and clips to one with INT8 convolutions.

The result is ONNX with QuantizeLinear and DequantizeLinear around what is quantised ("QDQ"). OpenVINO fuses them into
INT8 kernels, the very ones that it makes of NNCF's own OpenVINO models.
"""

from __future__ import annotations

import io
import logging
import sys
from contextlib import contextmanager, redirect_stdout
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from milnce.backends.openvino import import_openvino
from milnce.errors import MissingDependencyError, QuantizationError
from milnce.onnx_policy import refuse_external_data
from milnce.platforms import install

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy as np
    import onnx
    from numpy.typing import NDArray

# NNCF finds the ranges of activations by running the graph in ONNX Runtime, and counts on OpenVINO being there.
_NEEDED = ("nncf", "openvino", "onnx", "onnxruntime")
_TELEMETRY = "openvino_telemetry"

METHOD: Mapping[str, Any] = {
    # Weights symmetric, activations asymmetric; OpenVINO runs both as fast.
    "preset": "mixed",
    # The least and the largest value of all clips. NNCF's default, the mean of each clip's, cuts the strongest
    # activations of many: on the demo it cost 3.8 points of R@1 and made embeddings 11% too short, this 0 and 0.3%.
    "activation_ranges": "min_max",
    # NNCF's fast one made the demo's embeddings worse: mean centred cosine 0.9987 with it, 0.9998 without.
    "bias_correction": "none",
    # The gates (a mean over the map, a 1x1x1 convolution of that one position, a sigmoid) scale whole channels and cost
    # nothing; in INT8 they cost the demo a point of R@1. The last layer is the projection, a bundle's FP32 graph too.
    "in_fp32": "gates and projection",
}


def require_quantizer() -> None:
    """Make sure that what quantising needs is installed.

    Raises:
        MissingDependencyError: naming what is missing and how to get it.
    """
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"quantize needs {', '.join(missing)}; run: {install('int8')}")


def import_nncf() -> Any:  # noqa: ANN401 - the library is not typed
    """Import nncf with its usage reports switched off, as `import_openvino` does.

    Raises:
        MissingDependencyError: if it is not installed or does not load.
    """
    require_quantizer()
    import_openvino()
    absent = object()
    held: Any = sys.modules.get(_TELEMETRY, absent)
    # nncf puts a stand-in in its place where the import fails, and keeps it.
    sys.modules[_TELEMETRY] = None  # type: ignore[assignment] # None is how an import is refused
    try:
        import nncf  # noqa: PLC0415 - seconds, and only needed to quantise
        import nncf.onnx.quantization.quantize_model  # noqa: PLC0415 - which nncf would import later, unguarded
    except ImportError as error:
        raise MissingDependencyError(
            f'quantize needs nncf, which does not load ({error}); run: pip install --force-reinstall "milnce[int8]"'
        ) from error
    finally:
        if held is absent:
            del sys.modules[_TELEMETRY]
        else:
            sys.modules[_TELEMETRY] = held
    return nncf


def quantize_graph(model: bytes, clips: Sequence[NDArray[np.uint8]]) -> bytes:
    """Quantise the convolutions of an FP32 video graph.

    Args:
        model: The serialised ONNX graph; its input is "video", uint8 (N, T, H, W, 3).
        clips: Real clips, each (T, H, W, 3), for the ranges of activations. They are read several times.

    Returns:
        The serialised graph, with the same inputs and outputs; its weights are INT8.

    Raises:
        MissingDependencyError: if NNCF is not installed.
        QuantizationError: if NNCF fails, or gives something else than such a graph.
    """
    nncf = import_nncf()
    import onnx  # noqa: PLC0415 - with nncf
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters  # noqa: PLC0415 - with nncf
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet  # noqa: PLC0415

    plain = onnx.load_from_string(model)
    for number, node in enumerate(plain.graph.node):
        node.name = node.name or f"unnamed_{number}"  # NNCF tells operators apart by their names
    feeds = _Feeds(plain.graph.input[0].name, clips)
    with _silent():
        try:
            quantized = nncf.quantize(
                plain,
                nncf.Dataset(feeds),
                subset_size=len(clips),
                preset=nncf.QuantizationPreset.MIXED,
                ignored_scope=nncf.IgnoredScope(names=left_in_fp32(plain)),
                advanced_parameters=AdvancedQuantizationParameters(
                    activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX,
                    disable_bias_correction=True,
                ),
            )
        except Exception as error:
            raise QuantizationError(f"NNCF {nncf.__version__} cannot quantise the graph: {error}") from error
    return _checked(quantized, plain)


def left_in_fp32(model: onnx.ModelProto) -> list[str]:
    """Return the names of the operators that are not quantised: those of the gates and the projection."""
    nodes = model.graph.node
    producers = {output: node.op_type for node in nodes for output in node.output}
    return [
        node.name
        for node in nodes
        if node.op_type in {"ReduceMean", "Sigmoid", "Gemm"}
        or (node.op_type == "Conv" and producers.get(node.input[0]) == "ReduceMean")
    ]


class _Feeds:
    """Clips as the graph takes them, one at a time, as often as NNCF asks; none is kept."""

    def __init__(self, name: str, clips: Sequence[NDArray[np.uint8]]) -> None:
        self._name, self._clips = name, clips

    def __len__(self) -> int:
        return len(self._clips)

    def __iter__(self) -> Iterator[dict[str, NDArray[np.uint8]]]:
        for clip in self._clips:
            yield {self._name: clip[None]}


def _checked(quantized: onnx.ModelProto, plain: onnx.ModelProto) -> bytes:
    import onnx  # noqa: PLC0415 - with nncf

    problems = []
    for kind in ("input", "output"):
        wanted, found = ([_signature(value) for value in getattr(graph.graph, kind)] for graph in (plain, quantized))
        if wanted != found:
            problems.append(f"its {kind}s are {found}, those of the FP32 graph are {wanted}")
    if [(item.domain, item.version) for item in quantized.opset_import] != [
        (item.domain, item.version) for item in plain.opset_import
    ]:
        problems.append("it is of another opset")
    if not any(node.op_type == "QuantizeLinear" for node in quantized.graph.node):
        problems.append("nothing in it is quantised")
    if problems:
        raise QuantizationError(f"NNCF gave another graph than was asked for: {'; '.join(problems)}")
    data = bytes(quantized.SerializeToString())
    refuse_external_data(data, "the quantised graph")
    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise QuantizationError(f"NNCF gave a graph that is not valid ONNX: {error}") from error
    return data


def _signature(value: onnx.ValueInfoProto) -> tuple[str, int, tuple[str | int, ...]]:
    tensor = value.type.tensor_type
    return value.name, tensor.elem_type, tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)


@contextmanager
def _silent() -> Iterator[None]:
    """Keep NNCF's progress and remarks off stdout, which is for results; it raises what is wrong."""
    logger = logging.getLogger("nncf")
    level, handlers = logger.level, logger.handlers[:]
    logger.setLevel(logging.CRITICAL)
    logger.handlers[:] = []
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        logger.handlers[:] = handlers
