"""Measures a bundle in everything that runs it here, beside PyTorch where that is installed: for `milnce bench`.

Needs NumPy alone until it finds PyTorch; then the towers are rebuilt from the bundle's own weights, and are what the
others are measured against.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce.bench import (
    DISTINCT_CLIPS,
    Source,
    clips_work,
    measure,
    open_all,
    sentences_work,
    text_source,
    video_source,
)
from milnce.bundle import Bundle
from milnce.errors import InputError, MilnceError
from milnce.heap import kept_heap
from milnce.machine import blas_threads, cores, describe, memory_bytes
from milnce.model import load
from milnce.platforms import install
from milnce_convert.judge import judge
from milnce_convert.sample_inputs import moving_clips

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from milnce.bench import Opened

    Reference = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    Progress = Callable[[str], None]

FORMAT_VERSION = 1
SENTENCE_BATCHES = (1, 256)
_SENTENCES, _WORDS_A_SENTENCE, _LONGEST_SENTENCE = max(SENTENCE_BATCHES), 8, 16
_SENTENCE_SEED = 0
_TEXT_S = 5.0
_CLIP_SEED = 3
_BYTES_A_BYTE = 2  # of a clip: the clips to be compared, and the batches made of them
_NEEDED = ("torch", "onnx", "onnxruntime")


@dataclass(frozen=True)
class Cases:
    """What clips to measure: every combination.

    Attributes:
        batches: Clips a batch.
        frames: Frames a clip; the bundle's own if empty.
        sizes: Pixels a side; the bundle's own if empty.
    """

    batches: tuple[int, ...] = (1,)
    frames: tuple[int, ...] = ()
    sizes: tuple[int, ...] = ()

    def of(self, bundle: Bundle) -> list[tuple[int, int, int]]:
        """Return (batch, frames, size) of each."""
        sampling = bundle.manifest.sampling
        return [
            (batch, frames, size)
            for frames in self.frames or (sampling["frames"],)
            for size in self.sizes or (sampling["size"],)
            for batch in self.batches
        ]


def bench_bundle(  # noqa: PLR0913  # what to measure, in what, for how long
    path: str | os.PathLike[str],
    cases: Cases,
    *,
    backend: str = "auto",
    device: str = "auto",
    precisions: Sequence[str] = (),
    rounds: int = 7,
    threads: int | None = None,
    pytorch: bool = True,
    compiled: bool = False,
    progress: Progress = print,
) -> dict[str, Any]:
    """Measure a bundle, the memory that is freed between rounds being kept (`milnce.heap.kept_heap`).

    Args:
        path: The bundle's folder.
        cases: The clips.
        backend: "auto" for all, or the name of one.
        device: "auto" for all, "cpu" or "cuda".
        precisions: Those to measure; all if empty.
        rounds: Rounds, after one that warms up.
        threads: CPU threads of every row but NumPy's, whose BLAS has its own; None for a thread a core.
        pytorch: Whether to measure PyTorch too, where it is installed.
        compiled: Whether to measure torch.compile too.
        progress: Called with what begins.

    Returns:
        One document of JSON values: format_version, bundle, name, digest, machine, settings, reference (the first
        row's name), video and text (rows as `milnce.bench.measure` gives them), left_out (reasons by name).

    Raises:
        MilnceError: as `milnce.bench.open_all`.
    """
    bundle, threads = Bundle.open(path), threads or cores()
    with (
        open_all(path, backend=backend, device=device, precisions=precisions, threads=threads) as opened,
        kept_heap() as heap_kept,
    ):
        towers = PyTorchRows()
        if pytorch:
            progress("PyTorch: the towers are rebuilt from the bundle's weights")
            towers = pytorch_rows(bundle, opened, compiled=compiled, threads=threads)
        sources = [*towers.video, *map(video_source, opened.models)]
        reference = towers.reference or _exact(bundle, opened, sources, threads)
        check_cases(bundle, cases.of(bundle))
        video = []
        for case in cases.of(bundle):
            progress("clips of {1}x{2}x{2} in batches of {0}".format(*case))
            try:
                video += video_rows(sources, reference, case, rounds=rounds)
            except MemoryError as error:
                batch, frames, size = case
                raise InputError(
                    f"batches of {batch} clips of {frames}x{size}x{size} given, for which there is no memory: {error}. "
                    "Ask for smaller batches or clips"
                ) from error
        progress("sentences")
        text = text_rows(bundle, opened, towers.text, rounds=rounds, threads=threads)
        left_out = dict(opened.left_out)
    document: dict[str, Any] = _plain(
        {
            "format_version": FORMAT_VERSION,
            "bundle": str(path),
            "name": bundle.manifest.name,
            "digest": bundle.manifest.model_digest,
            "machine": describe(),
            "settings": {"rounds": rounds, "threads": threads, "blas_threads": blas_threads(), "heap_kept": heap_kept},
            "reference": sources[0].name,
            "video": video,
            "text": text,
            "left_out": left_out,
        }
    )
    return document


def _exact(bundle: Bundle, opened: Opened, sources: Sequence[Source], threads: int) -> Reference:
    """Return what gives the embeddings that others are held to without PyTorch: FP32, though it may not be timed.

    A bundle without FP32 graphs is held to its first row, which then has no error to tell.
    """
    if sources[0].about.get("precision") == "fp32":
        return sources[0].run
    try:
        model = opened.hold(load(bundle.path, precision="fp32", threads=threads, modules=("video",)))
    except MilnceError as error:
        opened.left_out["FP32 to compare with"] = str(error)
        return sources[0].run
    return lambda clips: model.encode_video(clips).embedding


def check_cases(bundle: Bundle, cases: Sequence[tuple[int, int, int]]) -> None:
    """Refuse clips, before anything is measured, that the video graph does not take or memory does not hold.

    Raises:
        InputError: naming the clips, and what the graph takes or what memory there is.
    """
    spec = bundle.graph("video", input_form="uint8").inputs[0]
    memory = memory_bytes()
    for batch, frames, size in cases:
        for what, given, axis in zip(("frames", "height", "width"), (frames, size, size), spec.shape[1:4], strict=True):
            if not axis.accepts(given):
                raise InputError(f"clips of {frames}x{size}x{size} given: {what} is {given}; expected {axis} in {spec}")
        # Activations come on top, but how much they need is the backend's.
        needed = _BYTES_A_BYTE * frames * size * size * 3 * (max(batch, DISTINCT_CLIPS) + DISTINCT_CLIPS)
        if memory is not None and needed > memory:
            raise InputError(
                f"batches of {batch} clips of {frames}x{size}x{size} given, which need {needed / 2**30:.1f} GiB at "
                f"least; there are {memory / 2**30:.1f} GiB. Ask for smaller batches or clips"
            )


@dataclass(frozen=True)
class PyTorchRows:
    """What PyTorch gives to measure: nothing where it is not installed.

    Attributes:
        video: Rows of the video tower.
        text: The row of the text tower, or None.
        reference: Gives the embeddings of clips in FP32 on the CPU, or None.
    """

    video: Sequence[Source] = ()
    text: Source | None = None
    reference: Reference | None = None


def pytorch_rows(bundle: Bundle, opened: Opened, *, compiled: bool, threads: int) -> PyTorchRows:
    """Rebuild the bundle's towers in PyTorch; what cannot be had goes into `opened.left_out`, with the reason.

    PyTorch of the whole process then has `threads` threads: left alone it would follow OMP_NUM_THREADS, which the
    others do not, and be slower for that.
    """
    lacking = [module for module in _NEEDED if find_spec(module) is None]
    if lacking:
        reason = f"PyTorch is compared with where {', '.join(_NEEDED)} are installed, and {', '.join(lacking)} is not"
        opened.left_out["PyTorch"] = f"{reason}: {install('convert')}"
        return PyTorchRows()
    import torch  # noqa: PLC0415  # where it is installed

    from milnce_convert import torch_modes  # noqa: PLC0415
    from milnce_convert.from_bundle import rebuild_text_tower, rebuild_video_tower  # noqa: PLC0415

    torch.set_num_threads(threads)
    try:
        tower, text = rebuild_video_tower(bundle), rebuild_text_tower(bundle)
    except MilnceError as error:
        opened.left_out["PyTorch"] = str(error)
        return PyTorchRows()
    sources: list[Source] = []
    reference: Reference | None = None
    for place in torch_modes.usable_devices(model.backend.device.partition(":")[0] for model in opened.models):
        modes = [*torch_modes.EAGER[place], *(torch_modes.COMPILED[place] if compiled else ())]
        video = torch_modes.TorchVideo(tower, place, modes)
        reference = video.reference
        sources += torch_modes.sources(video, place)
    return PyTorchRows(sources, torch_modes.text_source(text, bundle.tokenizer()), reference)


def video_rows(
    sources: Sequence[Source],
    reference: Reference,
    case: tuple[int, int, int],
    *,
    rounds: int,
    seconds: float | None = None,
) -> list[dict[str, Any]]:
    """Measure sources on clips of moving shapes; `case` is (batch, frames, size)."""
    batch, frames, size = case
    work = clips_work(moving_clips(DISTINCT_CLIPS, frames, size, size, seed=_CLIP_SEED), batch, reference)
    return measure(sources, work, judge, rounds=rounds, seconds=seconds)


def text_rows(
    bundle: Bundle, opened: Opened, torch_text: Source | None, *, rounds: int, threads: int
) -> list[dict[str, Any]]:
    """Measure the text tower on sentences of the bundle's own words, in everything that runs it for these models."""
    unique = {} if torch_text is None else {torch_text.name: torch_text}
    # What a query meets by default, then what runs text for those who ask for a backend by name.
    models = [*opened.models]
    with contextlib.suppress(MilnceError):  # a bundle without text
        models.insert(0, opened.hold(load(bundle.path, modules=("text",), threads=threads)))
    for model in models:
        try:
            source = text_source(model)
        except MilnceError as error:
            opened.left_out[f"text in {model.backend.name} {model.backend.precision}"] = str(error)
            continue
        unique.setdefault(source.name, source)
    sources = list(unique.values())
    if not sources:
        return []
    own = blas_threads()
    if own != threads and any(source.about.get("backend") == "numpy" for source in sources):
        count = "as many threads as its build and environment say" if own is None else f"{own} threads"
        reason = (
            f"its BLAS has {count}, not {threads}; set OPENBLAS_NUM_THREADS or MKL_NUM_THREADS before Python starts"
        )
        opened.left_out[f"{threads} threads for text in numpy"] = reason
    sentences = sample_sentences(bundle)
    works = [sentences_work(sentences, batch, sources[0].run) for batch in SENTENCE_BATCHES]
    # A sentence takes a fraction of a millisecond, so that more rounds cost nothing.
    return [row for work in works for row in measure(sources, work, judge, rounds=20 * rounds, seconds=_TEXT_S)]


def sample_sentences(bundle: Bundle) -> list[str]:
    """Return different seeded sentences of the bundle's own words, as captions are: few words make up most of them.

    The word of rank r has weight 1/r, which is Zipf's law, and lengths are around 8 words. Were sentences repeated
    within a batch, NumPy's tower, which runs each distinct word once, would be measured on less work than captions are.
    """
    tokenizer = bundle.tokenizer()
    text = (bundle.path / bundle.manifest.vocabulary.file).read_text(encoding="utf-8")
    known = [word for word in text.split("\n") if word and not tokenizer.unknown(word) and tokenizer(word)[0, 0]]
    rng = np.random.default_rng(_SENTENCE_SEED)
    # Which words are frequent says nothing about where they lie in the table.
    words = [known[index] for index in rng.permutation(len(known))]
    weights = 1 / np.arange(1, len(words) + 1)
    found: dict[str, None] = {}
    while len(found) < _SENTENCES:
        length = int(np.clip(rng.poisson(_WORDS_A_SENTENCE), 1, _LONGEST_SENTENCE))
        drawn = rng.choice(len(words), length, p=weights / weights.sum())
        found[" ".join(words[index] for index in drawn)] = None
    return list(found)


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Return `value` without NaN and infinity, for which JSON has no word."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
