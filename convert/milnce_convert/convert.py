"""Checkpoint to bundle: load, export, cast, compare with PyTorch, write; nothing is left behind when a step fails."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import milnce
from milnce.bundle import Bundle
from milnce.bundle_writer import BundleWriter
from milnce.errors import InputError
from milnce.files import file_sha256
from milnce.video.presets import get_preset
from milnce_convert.checkpoint import Towers, load_towers
from milnce_convert.export import (
    DEFAULT_OPSET,
    SUPPORTED_OPSETS,
    ExportedGraph,
    export_projection,
    export_text,
    export_video,
    half_precision,
    size_axes,
)
from milnce_convert.fixtures import WORDS, seeded_towers
from milnce_convert.measure import measure_projection, measure_text, measure_video
from milnce_convert.towers import TowersConfig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from milnce.video.presets import Preset

    Progress = Callable[[str], None]

PRECISIONS = ("fp32", "fp16")
INPUT_FORMS = ("uint8", "float32")

LARGEST_SEED = 2**32 - 1

# Clips of a few pixels hardly differ, so on them parity cannot tell rounding from a defect.
LEAST_MEASURABLE_SIZE = (4, 32, 32)


@dataclass(frozen=True)
class ExportOptions:
    """What to write into a bundle.

    Attributes:
        precisions: Of "fp32" and "fp16". An FP32 graph is always made, since FP16 is cast from it.
        input_forms: Of "uint8" and "float32": the video graph's input.
        max_words: Ids a sentence is cut or padded to by default (16 in the released text module; the evaluation
            loaders use 30, the training loader 20).
        fold_stem: One 3x4x8x8 stem convolution instead of space-to-depth and a 24-channel one.
        fixed_size: (frames, height, width) to fix those axes of the video graph; dynamic by default. Presets sample
            square clips, so a bundle whose height and width differ takes clips of your own only.
        opset: ONNX opset.
        overwrite: Replace an existing bundle.
        preset: Name of the sampling `embed` and `search` use by default.
        sampling_size: Height and width, in pixels, that they sample clips at; the preset's own when None.
        parity_sizes: (frames, height, width) of the clips that parity is measured on; blocks at the first.

    Raises:
        InputError: if a value is not one of these.
    """

    precisions: tuple[str, ...] = PRECISIONS
    input_forms: tuple[str, ...] = INPUT_FORMS
    max_words: int = 16
    fold_stem: bool = True
    fixed_size: tuple[int, int, int] | None = None
    opset: int = DEFAULT_OPSET
    overwrite: bool = False
    preset: str = "milnce-native"
    sampling_size: int | None = None
    parity_sizes: tuple[tuple[int, int, int], ...] = field(default=((16, 64, 64), (32, 224, 224)))

    def __post_init__(self) -> None:
        for name, given, known in (
            ("precisions", self.precisions, PRECISIONS),
            ("input forms", self.input_forms, INPUT_FORMS),
        ):
            if not given or not set(given) <= set(known):
                raise InputError(
                    f"{name} {', '.join(given) or 'none'} given; one or more of {', '.join(known)} expected"
                )
            if len(set(given)) < len(given):
                raise InputError(f"{name} {', '.join(given)} given; each once expected")
        if not self.parity_sizes:
            raise InputError("no parity sizes given; at least one (frames, height, width) expected")
        for size in (*self.parity_sizes, *([self.fixed_size] if self.fixed_size else [])):
            if any(given < least for given, least in zip(size, LEAST_MEASURABLE_SIZE, strict=True)):
                raise InputError(
                    f"size {'x'.join(map(str, size))} is too small to compare with PyTorch; at least "
                    f"{'x'.join(map(str, LEAST_MEASURABLE_SIZE))} (frames, height, width) needed. "
                    "Leave the size dynamic to run smaller clips"
                )
        if self.max_words < 1:
            raise InputError(f"max_words is {self.max_words}; at least 1 expected")
        if self.opset not in SUPPORTED_OPSETS:
            raise InputError(
                f"opset {self.opset} given; {SUPPORTED_OPSETS.start} to {SUPPORTED_OPSETS.stop - 1} expected"
            )
        sampled = self.sampling
        if self.fixed_size and self.sampling_size and (sampled.frames, sampled.size, sampled.size) != self.fixed_size:
            raise InputError(
                f"clips sampled at {self.sampling_size} pixels and a video graph fixed to "
                f"{'x'.join(map(str, self.fixed_size))} given; leave one of them out"
            )

    @property
    def sampling(self) -> Preset:
        """The sampling `embed` and `search` use by default, unless the graph's size is fixed to another."""
        return get_preset(self.preset, **({"size": self.sampling_size} if self.sampling_size else {}))


def export_bundle(
    weights: Path,
    vocabulary: Path,
    destination: Path,
    options: ExportOptions,
    progress: Progress,
    *,
    config: TowersConfig | None = None,
    training: dict[str, Any] | None = None,
) -> Bundle:
    """Convert a checkpoint into a bundle and measure its parity with PyTorch.

    Args:
        weights: The checkpoint, as `milnce_convert.checkpoint.load_towers` takes it.
        vocabulary: Its word list.
        destination: Folder of the bundle.
        options: What to write.
        progress: Called with the name of each stage as it begins.
        config: Sizes of the towers, for a checkpoint of other than the published widths.
        training: How the weights were trained, as JSON values for the manifest, where that is known.

    Raises:
        CheckpointError: if the weights do not fit the towers.
        ParityError: if an exported graph does not give the tower's numbers; no bundle is left.
        OutputError: if the destination exists, or cannot be written.
    """
    with BundleWriter(destination, overwrite=options.overwrite) as writer:
        progress("read the weights")
        towers = load_towers(weights, vocabulary, config)
        sources = {
            kind: {"file": path.name, "sha256": file_sha256(path), "bytes": path.stat().st_size}
            for kind, path in (("weights", weights), ("vocabulary", vocabulary))
        }
        made = {"sources": sources, **({"training": training} if training else {})}
        return _write(writer, towers, options, made, progress)


def export_seeded_bundle(
    seed: int, destination: Path, options: ExportOptions, *, width: float = 1.0, progress: Progress
) -> Bundle:
    """Make a bundle of seeded random weights, for trying the machinery out; they retrieve nothing.

    Args:
        seed: Seeds the weights.
        destination: Folder of the bundle.
        options: What to write.
        width: Factor on the published channel counts.
        progress: Called with the name of each stage as it begins.

    Raises:
        InputError: if the seed is negative or above `LARGEST_SEED`.
        ParityError: if an exported graph does not give the tower's numbers; no bundle is left.
        OutputError: if the destination exists, or cannot be written.
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed {seed} given; 0 to {LARGEST_SEED} expected")
    with BundleWriter(destination, overwrite=options.overwrite) as writer:
        progress("seed the weights")
        towers = seeded_towers(seed, TowersConfig.scaled(width, rows=len(WORDS) + 1))
        made = {"sources": {"seed": seed, "width": width}, "note": "seeded random weights: they retrieve nothing"}
        return _write(writer, towers, options, made, progress)


def _write(
    writer: BundleWriter, towers: Towers, options: ExportOptions, made: dict[str, Any], progress: Progress
) -> Bundle:
    """Export, measure and write every graph, then commit."""
    size_axes(towers.video, options.fixed_size)  # an impossible size is refused before the work
    progress("export the text tower")
    text = export_text(towers.text, opset=options.opset)
    graphs = [text]
    if "fp16" in options.precisions:
        graphs.append(half_precision(text))
    progress("compare the text tower with PyTorch")
    parities = measure_text(towers, graphs, words=options.max_words)
    progress("export the video tower")
    forms = export_video(towers.video, opset=options.opset, fold_stem=options.fold_stem, fixed_size=options.fixed_size)
    video = [forms[form] for form in options.input_forms]
    if "fp16" in options.precisions:
        video += [half_precision(graph) for graph in video]
    progress("compare the video tower with PyTorch")
    parities += measure_video(towers, video, (options.fixed_size,) if options.fixed_size else options.parity_sizes)
    projection = export_projection(towers.video, opset=options.opset)
    parities.append(measure_projection(towers, projection))
    progress("write the bundle")
    for graph, parity in zip([*graphs, *video, projection], parities, strict=True):
        if graph.precision in options.precisions or graph.module == "projection":
            add_exported(writer, graph, parity)
    writer.add_vocabulary(towers.words, max_words=options.max_words)
    sampling = options.sampling
    frames, height = (options.fixed_size or (sampling.frames, sampling.size, sampling.size))[:2]
    writer.commit(
        name=writer.destination.name,
        model_digest=towers.digest(),
        sampling={"preset": options.preset, "frames": frames, "size": height},
        made={**made, **_made_with(), "config": towers.config.to_json(), "folded_stem": options.fold_stem},
    )
    return Bundle.open(writer.destination)


def add_exported(writer: BundleWriter, graph: ExportedGraph, parity: dict[str, Any]) -> None:
    """Write an exported graph with its parity record into the bundle."""
    writer.add_graph(
        module=graph.module,
        input_form=graph.input_form,
        precision=graph.precision,
        model=graph.model,
        opset=graph.opset,
        inputs=graph.inputs,
        outputs=graph.outputs,
        parity=parity,
    )


def _made_with() -> dict[str, Any]:
    """Return the date and the versions of everything that had a hand in the graphs."""
    packages = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "numpy")
    versions = {"milnce": milnce.__version__, **{package: version(package) for package in packages}}
    date = datetime.now(tz=timezone.utc).isoformat(timespec="seconds")
    return {"date": date, "versions": versions, "python": platform.python_version(), "platform": platform.platform()}
