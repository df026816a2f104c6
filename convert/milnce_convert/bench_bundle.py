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
from milnce.errors import MilnceError
from milnce.machine import describe
from milnce.model import load
from milnce_convert.judge import judge
from milnce_convert.sample_inputs import moving_clips

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from milnce.bench import Opened

    Reference = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
    Progress = Callable[[str], None]

FORMAT_VERSION = 1
SENTENCE_BATCHES = (1, 256)
_SENTENCES, _WORDS_A_SENTENCE = 16, 5
_TEXT_S = 5.0
_CLIP_SEED = 3
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
    """Measure a bundle.

    Args:
        path: The bundle's folder.
        cases: The clips.
        backend: "auto" for all, or the name of one.
        device: "auto" for all, "cpu" or "cuda".
        precisions: Those to measure; all if empty.
        rounds: Rounds, after one that warms up.
        threads: CPU threads; None for each library's own choice.
        pytorch: Whether to measure PyTorch too, where it is installed.
        compiled: Whether to measure torch.compile too.
        progress: Called with what begins.

    Returns:
        One document of JSON values: format_version, bundle, name, digest, machine, settings, reference (the first
        row's name), video and text (rows as `milnce.bench.measure` gives them), left_out (reasons by name).

    Raises:
        MilnceError: as `milnce.bench.open_all`.
    """
    bundle = Bundle.open(path)
    with open_all(path, backend=backend, device=device, precisions=precisions, threads=threads) as opened:
        towers = PyTorchRows()
        if pytorch:
            progress("PyTorch: the towers are rebuilt from the bundle's weights")
            towers = pytorch_rows(bundle, opened, compiled=compiled, threads=threads)
        sources = [*towers.video, *map(video_source, opened.models)]
        video = []
        for case in cases.of(bundle):
            progress("clips of {1}x{2}x{2} in batches of {0}".format(*case))
            video += video_rows(sources, towers.reference or sources[0].run, case, rounds=rounds)
        progress("sentences")
        text = text_rows(bundle, opened, towers.text, rounds=rounds)
        left_out = dict(opened.left_out)
    document: dict[str, Any] = _plain(
        {
            "format_version": FORMAT_VERSION,
            "bundle": str(path),
            "name": bundle.manifest.name,
            "digest": bundle.manifest.model_digest,
            "machine": describe(),
            "settings": {"rounds": rounds, "threads": threads},
            "reference": sources[0].name,
            "video": video,
            "text": text,
            "left_out": left_out,
        }
    )
    return document


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


def pytorch_rows(bundle: Bundle, opened: Opened, *, compiled: bool, threads: int | None) -> PyTorchRows:
    """Rebuild the bundle's towers in PyTorch; what cannot be had goes into `opened.left_out`, with the reason."""
    lacking = [module for module in _NEEDED if find_spec(module) is None]
    if lacking:
        reason = f"PyTorch is compared with where {', '.join(_NEEDED)} are installed, and {', '.join(lacking)} is not"
        opened.left_out["PyTorch"] = f'{reason}: pip install "milnce[convert]"'
        return PyTorchRows()
    import torch  # noqa: PLC0415  # where it is installed

    from milnce_convert import torch_modes  # noqa: PLC0415
    from milnce_convert.from_bundle import rebuild_text_tower, rebuild_video_tower  # noqa: PLC0415

    if threads is not None:
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


def text_rows(bundle: Bundle, opened: Opened, torch_text: Source | None, *, rounds: int) -> list[dict[str, Any]]:
    """Measure the text tower on sentences of the bundle's own words, in everything that runs it for these models."""
    unique = {} if torch_text is None else {torch_text.name: torch_text}
    # What a query meets by default, then what runs text for those who ask for a backend by name.
    models = [*opened.models]
    with contextlib.suppress(MilnceError):  # a bundle without text
        models.insert(0, opened.hold(load(bundle.path, modules=("text",))))
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
    sentences = sample_sentences(bundle)
    works = [sentences_work(sentences, batch, sources[0].run) for batch in SENTENCE_BATCHES]
    # A sentence takes a fraction of a millisecond, so that more rounds cost nothing.
    return [row for work in works for row in measure(sources, work, judge, rounds=20 * rounds, seconds=_TEXT_S)]


def sample_sentences(bundle: Bundle) -> list[str]:
    """Return sentences of the bundle's own words, no two the same where it has enough of them."""
    words = (bundle.path / bundle.manifest.vocabulary.file).read_text(encoding="utf-8").splitlines()
    return [
        " ".join(words[(_WORDS_A_SENTENCE * sentence + word) % len(words)] for word in range(_WORDS_A_SENTENCE))
        for sentence in range(_SENTENCES)
    ]


def _plain(value: Any) -> Any:  # noqa: ANN401 - JSON
    """Return `value` without NaN and infinity, for which JSON has no word."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
