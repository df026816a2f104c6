"""A bundle as a DeepStream configuration: nvdspreprocess makes clips of streams, nvinfer runs the video tower on them.

The way is that of NVIDIA's sample deepstream-3d-action-recognition: its library gathers frames to (N, 3, T, H, W)
float32, and nvinfer takes the tensor from the buffer's metadata. What the keys mean was read in the sources of
DeepStream 9.1 (github.com/NVIDIA/DeepStream, 581889d).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from milnce.errors import BundleError, InputError, MissingDependencyError
from milnce.video.presets import get_preset
from milnce_convert.deepstream_readme import readme
from milnce_convert.host_folder import RECORD_FILE, folder_record, new_folder, vocabulary_bytes, write_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from milnce.bundle import Bundle
    from milnce.manifest import GraphFile
    from milnce.specs import TensorSpec

KIND = "deepstream"
ONNX_FILE = "milnce_video.onnx"
INFER_FILE = "config_infer.txt"
PREPROCESS_FILE = "config_preprocess.txt"

_SAMPLE_LIBRARY = "/opt/nvidia/deepstream/deepstream/lib/libnvds_custom_sequence_preprocess.so"
_POOL_SIZE = 8  # tensors of one batch each, as in the sample


@dataclass(frozen=True)
class Streams:
    """The streams that a pipeline reads, as they come out of nvstreammux.

    Attributes:
        count: Streams, and so the batch.
        width: Width of the muxer's output, pixels.
        height: Height of the muxer's output, pixels.
        fps: Frames a second of each stream.

    Raises:
        InputError: if a value is out of range.
    """

    count: int = 1
    width: int = 1280
    height: int = 720
    fps: float = 30.0

    def __post_init__(self) -> None:
        for name, value, least in (("count", self.count, 1), ("width", self.width, 2), ("height", self.height, 2)):
            if value < least:
                raise InputError(f"streams: {name} is {value}; at least {least} expected")
        if not 0 < self.fps <= 1000:  # noqa: PLR2004 - as the presets; False for NaN
            raise InputError(f"streams: fps is {self.fps}; a number in (0, 1000] expected")

    @property
    def square(self) -> tuple[int, int, int]:
        """Left, top and side of the centre square: even, as libavfilter rounds crops of 4:2:0 pictures."""
        side = min(self.width, self.height) // 2 * 2
        return (self.width - side) // 4 * 2, (self.height - side) // 4 * 2, side


@dataclass(frozen=True)
class DeepstreamFolder:
    """What was written.

    Attributes:
        graph: The graph of the bundle.
        streams: The streams it is for.
        sizes: Frames, height and width of a clip.
        subsample: Frames that are left out after each one that is taken.
        stride: Taken frames from one clip's start to the next one's.
        preset_fps: Frames a second that the bundle samples, or None for as they come.
    """

    graph: GraphFile
    streams: Streams
    sizes: tuple[int, int, int]
    subsample: int
    stride: int
    preset_fps: float | None

    @property
    def fps(self) -> float:
        """Frames a second that are taken."""
        return self.streams.fps / (self.subsample + 1)

    def __str__(self) -> str:
        frames, height, width = self.sizes
        wanted = "" if self.preset_fps in (None, self.fps) else f" (the bundle samples {self.preset_fps:g})"
        return (
            f"{self.streams.count} x {self.graph}: clips of {frames} frames of {height}x{width} at {self.fps:.3g} a "
            f"second{wanted}, every {self.stride / self.fps:.3g} s"
        )


def write_deepstream(
    bundle: Bundle,
    destination: Path,
    *,
    precision: str | None = None,
    streams: Streams | None = None,
    overwrite: bool = False,
) -> DeepstreamFolder:
    """Write the graph, nvinfer's and nvdspreprocess' configuration, the word list and a README.

    nvinfer gives names of sizes to no axis but the batch, so a graph whose frames, height and width are dynamic is
    written with those that the bundle samples; that takes the package onnx, and nothing else of the exporter.

    Args:
        bundle: A bundle with a float32 video graph.
        destination: The folder to make.
        precision: "fp32" or "fp16"; if None fp16 where the bundle has it.
        streams: The streams; one of 1280x720 at 30 frames a second if None.
        overwrite: Replace a folder that milnce wrote.

    Raises:
        BundleError: if the bundle lacks the graph, or it does not take the sizes that the bundle samples.
        InputError: if the bundle's sampling is no preset of this release.
        MissingDependencyError: if sizes must be fixed and onnx is not installed.
        OutputError: if the destination exists, or cannot be written.
    """
    streams = streams or Streams()
    graph = _graph(bundle, precision)
    spec = graph.inputs[0]
    sizes = _sizes(bundle, spec)
    data = bundle.read(graph)
    if any(axis.size is None for axis in spec.shape[2:]):
        named = {axis.name: size for axis, size in zip(spec.shape[2:], sizes, strict=True) if axis.name}
        data = fix_sizes(data, named)
    preset = get_preset(bundle.manifest.sampling["preset"])
    step = max(1, round(streams.fps / preset.fps)) if preset.fps else 1
    written = DeepstreamFolder(
        graph, streams, sizes, step - 1, preset.stride_frames or max(1, sizes[0] // 2), preset.fps
    )
    with new_folder(destination, KIND, overwrite=overwrite) as folder:
        write_file(folder / ONNX_FILE, data)
        write_file(folder / INFER_FILE, _key_file(infer_settings(written)).encode())
        write_file(folder / PREPROCESS_FILE, _key_file(preprocess_settings(written)).encode())
        write_file(folder / "vocabulary.txt", vocabulary_bytes(bundle))
        write_file(folder / "README.md", readme(bundle.manifest, written).encode())
        details = {"onnx_sha256": graph.sha256, "precision": graph.precision, "sizes": list(sizes)}
        write_file(folder / RECORD_FILE, folder_record(bundle, KIND, **details))
    return written


def infer_settings(written: DeepstreamFolder) -> dict[str, dict[str, Any]]:
    """Return the groups and keys of nvinfer's configuration."""
    outputs = ";".join(spec.name for spec in written.graph.outputs)
    return {
        "property": {
            "gpu-id": 0,
            "onnx-file": ONNX_FILE,
            # The name under which nvinfer itself stores what it builds at the first start.
            "model-engine-file": f"{ONNX_FILE}_b{written.streams.count}_gpu0_fp32.engine",
            "batch-size": written.streams.count,
            "process-mode": 1,  # primary: on frames, not on objects
            "gie-unique-id": 1,
            # Precision is the dtype of the graph: strongly typed, and no flag (0 is "FP32", which sets none).
            "network-mode": 0,
            "strongly-typed": 1,
            "network-type": 100,  # other: no parsing of outputs
            "input-tensor-from-meta": 1,
            "output-tensor-meta": 1,
            "output-blob-names": outputs,
            "tensor-meta-pool-size": _POOL_SIZE,
        }
    }


def preprocess_settings(written: DeepstreamFolder) -> dict[str, dict[str, Any]]:
    """Return the groups and keys of nvdspreprocess' configuration."""
    frames, height, width = written.sizes
    left, top, side = written.streams.square
    sources = range(written.streams.count)
    return {
        "property": {
            "enable": 1,
            "gpu-id": 0,
            "target-unique-ids": 1,  # nvinfer's gie-unique-id
            "process-on-frame": 1,
            "network-input-shape": f"{written.streams.count};3;{frames};{height};{width}",
            "network-input-order": 2,  # custom: (N, 3, T, H, W)
            "network-color-format": 0,  # RGB
            "tensor-data-type": 0,  # FP32
            "tensor-name": written.graph.inputs[0].name,
            "processing-width": width,
            "processing-height": height,
            "maintain-aspect-ratio": 0,  # the regions below are square already
            "scaling-pool-memory-type": 0,
            "scaling-pool-compute-hw": 0,
            "scaling-filter": 2,  # cubic on a GPU, 5 taps on a VIC: the nearest to the bicubic of milnce
            "tensor-buf-pool-size": _POOL_SIZE,
            "custom-lib-path": _SAMPLE_LIBRARY,
            "custom-tensor-preparation-function": "CustomSequenceTensorPreparation",
        },
        "user-configs": {
            "channel-scale-factors": ";".join([repr(1 / 255)] * 3),
            "channel-mean-offsets": "0;0;0",
            "stride": written.stride,
            "subsample": written.subsample,
        },
        "group-0": {
            "src-ids": ";".join(map(str, sources)),
            "process-on-roi": 1,  # before the regions: the parser reads them only where it has seen this
            "draw-roi": 0,
            **{f"roi-params-src-{source}": f"{left};{top};{side};{side}" for source in sources},
        },
    }


def fix_sizes(model: bytes, sizes: Mapping[str, int]) -> bytes:
    """Return an ONNX model with named axes of its inputs and outputs fixed.

    Args:
        model: A serialised ONNX model.
        sizes: Name of an axis -> its size.

    Raises:
        MissingDependencyError: if onnx is not installed.
    """
    if find_spec("onnx") is None:
        raise MissingDependencyError(
            "to fix the sizes of a graph takes onnx; run: pip install onnx, or give a bundle that was exported with "
            "--fixed-size"
        )
    import onnx  # noqa: PLC0415 - only where sizes are dynamic

    proto = onnx.ModelProto.FromString(model)
    for value in (*proto.graph.input, *proto.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in sizes:
                axis.dim_value = sizes[axis.dim_param]
    proto = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    onnx.checker.check_model(proto, full_check=True)
    return bytes(proto.SerializeToString(deterministic=True))


def _graph(bundle: Bundle, precision: str | None) -> GraphFile:
    held = {
        graph.precision for graph in bundle.manifest.graphs if (graph.module, graph.input_form) == ("video", "float32")
    }
    if not held:
        raise BundleError(
            f"bundle {str(bundle.path)!r} has no float32 video graph, which DeepStream needs; export it again with "
            "--input-form float32"
        )
    return bundle.graph("video", precision=precision or ("fp16" if "fp16" in held else "fp32"), input_form="float32")


def _sizes(bundle: Bundle, spec: TensorSpec) -> tuple[int, int, int]:
    """Return frames, height and width: those of the graph where fixed, else those that the bundle samples."""
    sampling = bundle.manifest.sampling
    wanted = (sampling["frames"], sampling["size"], sampling["size"])
    frames, height, width = (axis.size or size for axis, size in zip(spec.shape[2:], wanted, strict=True))
    for axis, size in zip(spec.shape[2:], (frames, height, width), strict=True):
        if not axis.accepts(size):
            raise BundleError(
                f"bundle {str(bundle.path)!r} samples {axis.name} {size}, and its video graph takes {axis}; export it "
                "again"
            )
    return frames, height, width


def _key_file(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Return groups of keys in the form that GLib's key files have."""
    blocks = (
        "".join([f"[{group}]\n", *(f"{key}={value}\n" for key, value in keys.items())])
        for group, keys in groups.items()
    )
    return "\n".join(blocks)
