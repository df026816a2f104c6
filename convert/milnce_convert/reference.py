"""The outputs a bundle should give: made where an FP32 reference runs, kept in a small file, compared with elsewhere.

A host with a GPU may have TensorRT and nothing to compare it with. The file holds the seeds of the clips and of the
sentences, not the pixels, and the outputs of the FP32 graphs on ONNX Runtime's CPU provider, or of the PyTorch towers.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.errors import BackendError, BundleError, InputError, ParityError
from milnce_convert.sample_inputs import moving_clips, random_tokens

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from milnce.bundle import Bundle

FORMAT = "milnce-reference-1"
OUTPUTS = ("video_embedding", "mixed_5c", "text_embedding")

# sin() differs in the last bit from one processor to another, and once in many pixels that makes 1 of 255 of a
# difference; a clip that was made in another way differs by a tenth.
_PIXEL_SUM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Recipe:
    """Which clips and sentences a reference is about; all is made from it anew.

    Attributes:
        clips: Number of clips.
        frames: Frames a clip.
        size: Height and width, pixels.
        sentences: Number of sentences.
        words: Ids a sentence.
        rows: Rows of the word table.
        seed: Of both.
    """

    clips: int
    frames: int
    size: int
    sentences: int
    words: int
    rows: int
    seed: int = 0

    @classmethod
    def of(cls, bundle: Bundle, *, clips: int = 32, sentences: int = 32) -> Recipe:
        """Return the recipe of clips as `bundle` samples them by default, and of sentences of its vocabulary."""
        vocabulary, sampling = bundle.manifest.vocabulary, bundle.manifest.sampling
        return cls(
            clips, sampling["frames"], sampling["size"], sentences, vocabulary.max_words, rows=vocabulary.words + 1
        )

    def make_clips(self) -> NDArray[np.uint8]:
        """Return the clips: (clips, frames, size, size, 3) uint8 RGB."""
        return moving_clips(self.clips, self.frames, self.size, self.size, seed=self.seed)

    def make_tokens(self) -> NDArray[np.int64]:
        """Return the sentences: (sentences, words) int64."""
        return random_tokens(self.sentences, self.rows, words=self.words, seed=self.seed)


@dataclass(frozen=True, eq=False)
class Reference:
    """Outputs to compare with.

    Attributes:
        model_digest: The bundle's, so that a reference of another model is refused.
        source: What computed them.
        recipe: What they were computed from.
        pixel_sums: (clips,) int64, to tell that clips made anew are the same.
        outputs: "video_embedding" (clips, D), "mixed_5c" (clips, F), "text_embedding" (sentences, D), all float32.
    """

    model_digest: str
    source: str
    recipe: Recipe
    pixel_sums: NDArray[np.int64]
    outputs: Mapping[str, NDArray[np.float32]]

    def check_bundle(self, bundle: Bundle) -> None:
        """Refuse a bundle of another model.

        Raises:
            ParityError: if the bundle's weights are not those of the reference.
        """
        if bundle.manifest.model_digest != self.model_digest:
            raise ParityError(
                f"the reference is of the model {self.model_digest[:12]}, {bundle.path} holds "
                f"{bundle.manifest.model_digest[:12]}; make one for it: "
                f"python benchmarks/gpu_check.py --make-reference FILE --bundle {bundle.path}"
            )

    def make_clips(self) -> NDArray[np.uint8]:
        """Return the clips the outputs are of.

        Raises:
            ParityError: if what is made here is not what the reference was computed from.
        """
        clips = self.recipe.make_clips()
        sums = _pixel_sums(clips)
        if not np.allclose(sums, self.pixel_sums, rtol=_PIXEL_SUM_TOLERANCE, atol=0):
            raise ParityError(
                "the clips made here are not those of the reference: another release made it; make it anew"
            )
        return clips


def as_input(clips: NDArray[np.uint8], form: str) -> NDArray[Any]:
    """Return uint8 clips as an input form of the video graph: "uint8", or "float32" (N, 3, T, H, W) in [0, 1]."""
    if form == "uint8":
        return clips
    return np.ascontiguousarray((clips.astype(np.float32) / np.float32(255)).transpose(0, 4, 1, 2, 3))


def from_onnxruntime(bundle: Bundle, recipe: Recipe) -> Reference:
    """Compute a reference with the bundle's FP32 graphs on ONNX Runtime's CPU provider.

    Raises:
        BundleError: if the bundle has no FP32 video graph.
        BackendError: if ONNX Runtime is not installed or fails.
    """
    try:
        import onnxruntime  # noqa: PLC0415 - a host may have a reference file and no ONNX Runtime
    except ImportError as error:
        raise BackendError(
            f"a reference needs onnxruntime ({error}); install it, or make the file on another machine: "
            "python benchmarks/gpu_check.py --make-reference FILE"
        ) from error
    clips, outputs = recipe.make_clips(), {}
    video = _session(onnxruntime, bundle, "video")
    form = bundle.graph("video").input_form
    rows = [video.run(["video_embedding", "mixed_5c"], {"video": as_input(clip[None], form)}) for clip in clips]
    for index, name in enumerate(OUTPUTS[:2]):
        outputs[name] = np.concatenate([row[index] for row in rows])
    (outputs["text_embedding"],) = _session(onnxruntime, bundle, "text").run(
        ["text_embedding"], {"tokens": recipe.make_tokens()}
    )
    source = f"FP32 graphs, onnxruntime {onnxruntime.__version__} on the CPU"
    return Reference(bundle.manifest.model_digest, source, recipe, _pixel_sums(clips), outputs)


def from_torch(bundle: Bundle, recipe: Recipe) -> Reference:
    """Compute a reference with the PyTorch towers in FP32 on the CPU, for a bundle of seeded weights.

    Raises:
        BundleError: if the weights are not seeded ones, or seed differently with this release of PyTorch.
        ImportError: if PyTorch is not installed.
    """
    import torch  # noqa: PLC0415 - a host may have no PyTorch

    from milnce_convert.fixtures import WORDS, as_video, seeded_towers  # noqa: PLC0415
    from milnce_convert.towers import TowersConfig  # noqa: PLC0415

    sources = bundle.manifest.made.get("sources", {})
    if "seed" not in sources:
        raise BundleError(f"{bundle.path} was not made from a seed, and its weights are not here")
    towers = seeded_towers(sources["seed"], TowersConfig.scaled(sources["width"], rows=len(WORDS) + 1))
    if towers.digest() != bundle.manifest.model_digest:
        raise BundleError(f"seed {sources['seed']} gives other weights with torch {torch.__version__} on this machine")
    clips = recipe.make_clips()
    with torch.no_grad():
        rows = [towers.video(as_video(clip[None])) for clip in clips]
        outputs = {name: np.concatenate([row[name].numpy() for row in rows]) for name in OUTPUTS[:2]}
        outputs["text_embedding"] = towers.text(torch.from_numpy(recipe.make_tokens()))["text_embedding"].numpy()
    source = f"PyTorch towers, FP32, torch {torch.__version__} on the CPU"
    return Reference(bundle.manifest.model_digest, source, recipe, _pixel_sums(clips), outputs)


def write(path: Path, reference: Reference) -> None:
    """Write a reference as one NPZ file."""
    about = {
        "format": FORMAT,
        "model_digest": reference.model_digest,
        "source": reference.source,
        "recipe": asdict(reference.recipe),
    }
    arrays: dict[str, Any] = {"about": np.array(json.dumps(about)), "pixel_sums": reference.pixel_sums}
    arrays |= reference.outputs
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def read(path: Path) -> Reference:
    """Read a reference.

    Raises:
        InputError: if the file is missing or not a reference.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            outputs = {name: file[name] for name in OUTPUTS}
            sums = file["pixel_sums"]
        if about["format"] == FORMAT:
            return Reference(about["model_digest"], about["source"], Recipe(**about["recipe"]), sums, outputs)
        problem = f"its format is {about['format']!r}, {FORMAT} expected"
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = str(error)
    raise InputError(f"{path} is not a reference file ({problem}); make one: gpu_check.py --make-reference FILE")


def _session(onnxruntime: Any, bundle: Bundle, module: str) -> Any:  # noqa: ANN401 - the library is not typed
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    data = bundle.read(bundle.graph(module))
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _pixel_sums(clips: NDArray[np.uint8]) -> NDArray[np.int64]:
    return np.asarray(clips.reshape(len(clips), -1).sum(axis=1, dtype=np.int64))
