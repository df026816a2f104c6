"""A bundle with one more precision: its video graph in INT8, calibrated on the user's videos, for `milnce quantize`.

Needs the extra "int8" and no PyTorch. What is written has been measured on clips that nothing was calibrated on.
"""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import milnce
from milnce import backends
from milnce.bundle import Bundle, GraphFile
from milnce.errors import InputError, ParityError, QuantizationError
from milnce.evaluation import embed_clips, evaluate
from milnce.model import Model
from milnce.pipeline import resolve_preset
from milnce_convert.derived import commit_derived, copy_graph, derived_bundle
from milnce_convert.parity import INT8_GATE, compare, require
from milnce_convert.quantize_clips import LEAST_CLIPS, draw_clips
from milnce_convert.quantize_nncf import METHOD, quantize_graph, require_quantizer
from milnce_convert.quantize_recall import LARGEST_FALL_POINTS, caption_recall, clip_recall, require_recall

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from milnce.captions import Captions
    from milnce.errors import MilnceError
    from milnce.evaluation import Evaluation
    from milnce.video import Preset
    from milnce_convert.quantize_clips import Drawn
    from milnce_convert.quantize_recall import Recall

    Progress = Callable[[str], None]

_BACKEND = "openvino"  # ONNX Runtime has no INT8 kernel of 3-D convolutions: it ran such graphs 2 to 4 times slower
_PACKAGES = ("nncf", "openvino", "onnxruntime", "onnx", "numpy")


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantise.

    Attributes:
        clips: Clips to calibrate on, at most.
        held_out: Other clips to measure on, at most. One of 128 is 0.8 points of recall.
        seed: Decides which clips.
        preset: How clips are sampled: a name or a `Preset`; None for the bundle's own.
        captions: Captions to measure retrieval by, over those of their clips whose videos are held out; they need two
            or more different videos.
        largest_fall_points: How many points R@1 and R@5 may fall.
        overwrite: Replace a bundle that is at the destination.

    Raises:
        InputError: if a number is out of range.
    """

    clips: int = 128
    held_out: int = 128
    seed: int = 0
    preset: str | Preset | None = None
    captions: Captions | None = None
    largest_fall_points: float = LARGEST_FALL_POINTS
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("clips", "held_out"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < LEAST_CLIPS:
                raise InputError(f"{name} is {value!r}; a whole number of at least {LEAST_CLIPS} expected")
        if self.seed < 0:
            raise InputError(f"seed {self.seed} given; at least 0 expected")
        if not 0 <= self.largest_fall_points <= 100:  # noqa: PLR2004 - percentages
            raise InputError(f"largest_fall_points is {self.largest_fall_points}; 0 to 100 expected")


@dataclass(frozen=True)
class Quantized:
    """What `quantize_bundle` made.

    Attributes:
        bundle: The new bundle.
        graph: Its INT8 graph, with the figures in its parity record.
        recalls: How it retrieves beside the FP32 graph.
        failed: Videos that could not be decoded.
    """

    bundle: Bundle
    graph: GraphFile
    recalls: tuple[Recall, ...]
    failed: tuple[tuple[Path, MilnceError], ...] = field(default=())


class _WithGraph(Bundle):
    """A bundle with one more graph, which is in memory alone: what is measured before anything is written."""

    def __init__(self, bundle: Bundle, graph: GraphFile, model: bytes) -> None:
        manifest = replace(bundle.manifest, graphs=(*bundle.manifest.graphs, graph))
        super().__init__(bundle.path, manifest)
        self._graph, self._model = graph, model

    def read(self, graph: GraphFile) -> bytes:
        return self._model if graph is self._graph else super().read(graph)


def quantize_bundle(
    bundle: Bundle,
    destination: Path,
    videos: Sequence[Path],
    options: QuantizeOptions,
    progress: Progress = lambda _stage: None,
) -> Quantized:
    """Write a bundle with the graphs of `bundle` and its uint8 video graph in INT8.

    The INT8 graph is held to a gate against the FP32 one, and to its recall, on clips that it was not calibrated on.

    Args:
        bundle: A bundle with the FP32 video graph that takes uint8 clips, and no INT8 one.
        destination: Folder of the new bundle; with `overwrite` it may be the bundle's own.
        videos: Files and folders like those that will be searched: clips of some calibrate, clips of others measure.
        options: How many clips, which, and what else is measured.
        progress: Called with the name of each stage as it begins.

    Returns:
        The bundle, its new graph and the figures.

    Raises:
        InputError: if the bundle has no such graph, or has an INT8 one, or the videos give too few different clips,
            or captions are given with a single video.
        BackendUnavailableError: if OpenVINO cannot compute in INT8 on this CPU: it could not be measured here.
        QuantizationError: if NNCF fails, or the INT8 graph fails its gate or retrieves worse by more than allowed;
            the figures are in the message and nothing is written.
        OutputError: if the destination exists, or cannot be written.
        MissingDependencyError: if a package of the extra "int8" or "video" is not installed.
    """
    require_quantizer()
    plain = _source(bundle)
    choices = {
        precision: backends.select(_BACKEND, "cpu", precision, modules=("video",)) for precision in ("fp32", "int8")
    }
    with (
        derived_bundle(destination, overwrite=options.overwrite) as writer,
        tempfile.TemporaryDirectory(prefix="milnce-quantize-") as folder,
        Model(bundle, choices["fp32"]) as reference,
    ):
        preset = resolve_preset(reference, options.preset)
        progress("draw clips from the videos")
        drawn = _draw(videos, preset, options, Path(folder))
        _require_other_videos(drawn, options)
        progress(f"quantise on {len(drawn.calibration)} clips")
        data = quantize_graph(bundle.read(plain), list(drawn.calibration.clips))
        graph = _entry(plain, data)
        progress(f"compare with FP32 on {len(drawn.held_out)} other clips")
        with Model(_WithGraph(bundle, graph, data), choices["int8"]) as candidate:
            parity, recalls = _measure(reference, candidate, drawn, preset, options, progress)
        progress("write the bundle")
        for held in bundle.manifest.graphs:
            copy_graph(writer, bundle, held)
        graph = writer.add_graph(
            module=graph.module,
            input_form=graph.input_form,
            precision=graph.precision,
            model=data,
            opset=graph.opset,
            inputs=graph.inputs,
            outputs=graph.outputs,
            parity=parity,
        )
        commit_derived(writer, bundle, made={"quantized": _made(drawn, preset, options)})
    return Quantized(Bundle.open(destination), graph, recalls, drawn.failed)


def _source(bundle: Bundle) -> GraphFile:
    graphs = bundle.manifest.graphs
    if any(graph.precision == "int8" for graph in graphs):
        raise InputError(
            f"{bundle.path} has an INT8 graph already; use it as it is, or quantise the bundle that it was made from"
        )
    for graph in graphs:
        if (graph.module, graph.input_form, graph.precision) == ("video", "uint8", "fp32"):
            return graph
    held = ", ".join(f"{graph.module} {graph.input_form} {graph.precision}" for graph in graphs)
    raise InputError(
        f"{bundle.path} has no FP32 video graph that takes uint8 clips, which INT8 is made from; it has: {held}. "
        "Export it again with --precision fp32 and --input-form uint8"
    )


def _draw(videos: Sequence[Path], preset: Preset, options: QuantizeOptions, folder: Path) -> Drawn:
    return draw_clips(
        videos, preset, calibration=options.clips, held_out=options.held_out, seed=options.seed, folder=folder
    )


def _require_other_videos(drawn: Drawn, options: QuantizeOptions) -> None:
    """Refuse captions of a single video: they are of all of it, and its first half calibrates."""
    shared = set(drawn.held_out_files) & set(drawn.calibration.videos)
    if options.captions is not None and shared:
        raise InputError(
            f"captions were given with a single video ({', '.join(map(str, shared))}), whose first half calibrates, so "
            "that retrieval would be measured on what was calibrated on; give two or more different videos, or leave "
            "out the captions"
        )


def _entry(plain: GraphFile, data: bytes) -> GraphFile:
    """Return what the manifest says of the new graph; the writer chooses the file's name."""
    sha256 = hashlib.sha256(data).hexdigest()
    file = plain.file.replace("fp32", "int8")
    return replace(plain, precision="int8", file=file, sha256=sha256, bytes=len(data), parity={})


def _measure(
    reference: Model,
    candidate: Model,
    drawn: Drawn,
    preset: Preset,
    options: QuantizeOptions,
    progress: Progress,
) -> tuple[dict[str, Any], tuple[Recall, ...]]:
    """Hold the candidate to the gate and to its recall; returns the parity record and the recalls."""
    clips = drawn.held_out.clips
    expected, found = _embed(reference, clips), _embed(candidate, clips)
    case = f"{len(clips)} held-out clips of {'x'.join(map(str, clips.shape[1:]))}"
    outputs = {}
    for name, rows in expected.items():
        try:
            agreement = compare(rows, found[name])
            require(agreement, INT8_GATE, f"the INT8 graph's {name} on {case}")
        except ParityError as error:
            raise QuantizationError(
                f"{error}. It is not written; calibrate on more clips (--clips), of videos like those that will be "
                "searched"
            ) from error
        outputs[name] = {case: agreement.to_json()}
    recalls: tuple[Recall, ...] = clip_recall(expected["video_embedding"], found["video_embedding"])
    if options.captions is not None:
        progress("search by the captions of held-out videos")
        evaluations = (
            _evaluate(model, options.captions, preset, drawn.held_out_files) for model in (reference, candidate)
        )
        recalls = (*caption_recall(*evaluations), *recalls)
    require_recall(recalls, options.largest_fall_points)
    retrieval = {recall.kind: recall.to_json() for recall in recalls}
    record = {"reference": "FP32 graph, OpenVINO, CPU", "gate": INT8_GATE.name, "outputs": outputs}
    return {**record, "retrieval": retrieval}, recalls


def _embed(model: Model, clips: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    # As an array of this very type: the clips are in a file, and are read from it one batch at a time.
    embeddings = model.encode_video(clips)
    return {"video_embedding": embeddings.embedding, "mixed_5c": embeddings.mixed_5c}


def _evaluate(model: Model, captions: Captions, preset: Preset, files: Sequence[Path]) -> Evaluation:
    return evaluate(model, captions, embed_clips(model, captions, preset=preset, videos=files))


def _made(drawn: Drawn, preset: Preset, options: QuantizeOptions) -> dict[str, Any]:
    """Return how the graph was made, for the manifest."""
    return {
        "date": datetime.now(tz=timezone.utc).isoformat(timespec="seconds"),
        "versions": {"milnce": milnce.__version__, **{package: version(package) for package in _PACKAGES}},
        "method": dict(METHOD),
        "preset": {"sampling": str(preset), "digest": preset.digest},
        "seed": options.seed,
        "calibration": {
            "clips": len(drawn.calibration),
            "videos": [path.name for path in drawn.calibration.videos],
        },
        "held_out": {"clips": len(drawn.held_out), "videos": len(drawn.held_out.videos)},
        "captions": None if options.captions is None else options.captions.path.name,
        "largest_fall_points": options.largest_fall_points,
        "gate": asdict(INT8_GATE),
    }
