"""Measures how fast towers run here, and never without saying how exact: outputs that fail their gate get no speed."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from milnce import backends
from milnce.bundle import Bundle
from milnce.errors import BackendUnavailableError, InputError, MilnceError
from milnce.model import load
from milnce.timing import interleaved, ratios

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray
    from typing_extensions import Self

    from milnce.backends import CudaOptions
    from milnce.model import Model

    Judge = Callable[[str, NDArray[Any], NDArray[Any]], tuple[dict[str, Any], list[str]]]

# Clips that outputs are compared on, whatever the batch: two at least tell a row's spread.
DISTINCT_CLIPS = 3


@dataclass(frozen=True)
class Source:
    """Something that embeds, and is timed as its users call it.

    Attributes:
        name: What it is, as the table says it: "openvino bf16".
        gate: Name of the gate that its outputs are held to.
        run: Turns a batch, (N, T, H, W, 3) uint8 or N sentences, into (N, D) float32 on the host.
        about: What else is worth telling: backend, device, precision.
    """

    name: str
    gate: str
    run: Callable[[Any], NDArray[np.float32]]
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """What every source is given.

    Attributes:
        about: What tells it from other work: batch, frames, size.
        items: Clips or sentences in `timed`.
        timed: The batch that is timed.
        checked: Batches whose outputs are compared.
        expected: What the outputs of `checked`, joined, should be.
    """

    about: Mapping[str, Any]
    items: int
    timed: Any
    checked: Sequence[Any]
    expected: NDArray[np.float32]


def clips_work(
    clips: NDArray[np.uint8], batch: int, reference: Callable[[NDArray[np.uint8]], NDArray[np.float32]]
) -> Work:
    """Return the work of embedding batches of `batch` clips.

    Args:
        clips: uint8 (N, T, H, W, 3), N >= 2 and all different; repeated where a batch needs more.
        batch: Clips a batch.
        reference: Gives the embeddings that all sources should give.
    """
    count = -(-len(clips) // batch) * batch
    rows = np.resize(clips, (count, *clips.shape[1:]))
    expected = reference(clips)
    about = {"batch": batch, "frames": clips.shape[1], "size": clips.shape[2]}
    batches = [rows[start : start + batch] for start in range(0, count, batch)]
    return Work(about, batch, batches[0], batches, np.resize(expected, (count, expected.shape[1])))


def sentences_work(sentences: Sequence[str], batch: int, reference: Callable[[list[str]], NDArray[np.float32]]) -> Work:
    """Return the work of embedding `batch` sentences at once, compared on all of `sentences`."""
    given = list(sentences)
    repeated = [given[index % len(given)] for index in range(batch)]
    return Work({"batch": batch}, batch, repeated, [given], reference(given))


def measure(
    sources: Sequence[Source],
    work: Work,
    judge: Judge,
    *,
    rounds: int = 7,
    seconds: float | None = None,
    least: int = 3,
) -> list[dict[str, Any]]:
    """Hold every source's outputs to its gate, then time those that pass, in interleaved rounds.

    Args:
        sources: The first is what the others' speed is measured against.
        work: What they are given.
        judge: Takes a gate's name, the outputs expected and those found; returns the figures of their agreement, and
            what of it the gate refuses.
        rounds: Rounds, after one that warms up.
        seconds: Time after which no further round begins; None for no limit.
        least: Rounds at least.

    Returns:
        A row a source, as JSON values: name, what it is about, gate, parity, failures, error (None, or why it did not
        run). One whose outputs passed and that ran has its times too (`milnce.timing.Timing`), ms_an_item,
        items_per_s, and speed: how many times as fast as the first source, if that was timed, round by round.
    """
    rows = [_judged(source, work, judge) for source in sources]
    sound = [index for index, row in enumerate(rows) if not row["failures"] and row["error"] is None]
    actions = {str(index): _action(sources[index], work) for index in sound}
    times, errors = interleaved(actions, rounds=rounds, seconds=seconds, least=min(least, rounds))
    for index, error in errors.items():
        rows[int(index)]["error"] = error
    for index, timing in times.items():
        row = rows[int(index)]
        row |= timing.to_json()
        row |= {"ms_an_item": 1e3 * timing.median_s / work.items, "items_per_s": work.items / timing.median_s}
        row["speed"] = ratios(times["0"], timing).to_json() if "0" in times else None
    return rows


def _judged(source: Source, work: Work, judge: Judge) -> dict[str, Any]:
    row: dict[str, Any] = {"name": source.name, **source.about, **work.about, "gate": source.gate}
    row |= {"parity": None, "failures": [], "error": None}
    try:
        found = np.concatenate([source.run(batch) for batch in work.checked])
        row["parity"], row["failures"] = judge(source.gate, work.expected, found)
    except Exception as error:  # noqa: BLE001 - one that fails must not lose the others' figures
        row["error"] = f"{type(error).__name__}: {error}"
    return row


def _action(source: Source, work: Work) -> Callable[[], object]:
    return lambda: source.run(work.timed)


class Opened:
    """Models of one bundle in every backend, device and precision that this machine can run. A context manager.

    Attributes:
        models: The models, FP32 first.
        left_out: What cannot be run here and was not opened, with the reason, by name.
    """

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.models: list[Model] = []
        self.left_out: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every model."""
        self.models.clear()
        self._stack.close()

    def hold(self, model: Model) -> Model:
        """Take a model over, to close it with this object; returns it."""
        return self._stack.enter_context(model)


def open_all(
    path: str | os.PathLike[str],
    *,
    backend: str = "auto",
    device: str = "auto",
    precisions: Sequence[str] = (),
    threads: int | None = None,
    cuda: CudaOptions | None = None,
) -> Opened:
    """Open a bundle's video tower in everything that runs it here.

    Args:
        path: The bundle's folder.
        backend: "auto" for all, or the name of one.
        device: "auto" for all, "cpu" or "cuda".
        precisions: Those to open; all if empty.
        threads: As `milnce.load`.
        cuda: As `milnce.load`.

    Raises:
        InputError: if an argument is no such name.
        BundleNotFoundError: if there is no bundle.
        BackendUnavailableError: if nothing of what was asked for can be run; the message says why.
    """
    for kind, given, known in (
        ("backend", [] if backend == "auto" else [backend], backends.BACKENDS),
        ("device", [] if device == "auto" else [device.partition(":")[0]], backends.DEVICES),
        ("precision", precisions, backends.PRECISIONS),
    ):
        if unknown := [each for each in given if each not in known]:
            raise InputError(f"{kind} {', '.join(unknown)} given; known are {', '.join(known)}")
    bundle, opened = Bundle.open(path), Opened()
    try:
        wanted = _held(opened, bundle, precisions or backends.PRECISIONS)
        for name, where, precision in _candidates(opened, backend, device, wanted):
            _open(opened, bundle, name, where, precision, threads=threads, cuda=cuda)
        _refuse_none(opened, bundle, precisions)
    except BaseException:
        opened.close()
        raise
    return opened


def _refuse_none(opened: Opened, bundle: Bundle, asked: Sequence[str]) -> None:
    if not opened.models:
        # What was asked for by name first; that the bundle lacks a precision nobody named explains nothing.
        noted = opened.left_out.items()
        told = [(name, reason) for name, reason in noted if name not in backends.PRECISIONS or name in asked]
        reasons = "; ".join(f"{name}: {reason}" for name, reason in told)
        raise BackendUnavailableError(f"nothing here runs {bundle.path} as asked. {reasons}")


def _held(opened: Opened, bundle: Bundle, precisions: Sequence[str]) -> list[str]:
    """Return the precisions for which the bundle has video graphs: bf16 computes the FP32 ones."""
    held = {graph.precision for graph in bundle.manifest.graphs if graph.module == "video"}
    found = [each for each in precisions if ("fp32" if each == "bf16" else each) in held]
    for each in precisions:
        if each not in found:
            opened.left_out[each] = f"the bundle's video graphs are in {', '.join(sorted(held)) or 'no precision'}"
    return found


def _candidates(opened: Opened, backend: str, device: str, precisions: Sequence[str]) -> list[tuple[str, str, str]]:
    """Return (backend, device, precision) of what the libraries say they can do, FP32 first."""
    found = []
    for library in backends.available():
        if backend not in ("auto", library.name):
            continue
        if "video" not in library.modules:
            if backend == library.name:
                opened.left_out[backend] = f"it runs {', '.join(library.modules)}, and no video, which is measured here"
            continue
        if library.problem is not None:
            opened.left_out[library.name] = library.problem
            continue
        if library.gpu_problem is not None and not device.startswith("cpu"):
            opened.left_out[f"{library.name} on cuda"] = library.gpu_problem
        places = [kind if device == "auto" else device for kind in library.devices if device.startswith(("auto", kind))]
        if not places:
            opened.left_out[library.name] = f"it runs on {', '.join(library.devices)} here, not on {device}"
        found += [
            (library.name, place, each)
            for place in places
            for each in library.precisions
            if each in precisions and not (place == "cpu" and each in library.cpu_problems)
        ]
        missing = [each for each in precisions if each not in library.precisions]
        if places and missing:
            computes = f"it computes in {', '.join(library.precisions)} here"
            for each in missing:
                opened.left_out[f"{library.name} {each}"] = library.cpu_problems.get(each, computes)
    return sorted(found, key=lambda candidate: candidate[2] != "fp32")


def _open(
    opened: Opened,
    bundle: Bundle,
    name: str,
    device: str,
    precision: str,
    *,
    threads: int | None,
    cuda: CudaOptions | None,
) -> None:
    try:
        model = load(
            bundle.path, backend=name, device=device, precision=precision, threads=threads, modules=(), cuda=cuda
        )
    except MilnceError as error:
        opened.left_out[f"{name} {precision} on {device}"] = str(error)
        return
    opened.hold(model)
    try:
        model.open("video", input_form="uint8")
    except MilnceError as error:
        opened.left_out[f"{name} {precision} on {device}"] = str(error)
    else:
        opened.models.append(model)


def video_source(model: Model) -> Source:
    """Return a model's video tower, timed as `Model.encode_video`."""
    choice = model.backend
    place = "" if choice.device == "cpu" else f" on {choice.device}"
    about = {"backend": choice.name, "device": choice.device, "precision": choice.precision}
    name = f"{choice.name} {choice.precision}{place}"
    return Source(name, choice.precision, lambda clips: model.encode_video(clips).embedding, about)


def text_source(model: Model) -> Source:
    """Return a model's text tower, timed as `Model.encode_text`, tokenising and all."""
    choice = model.choice_of("text")
    about = {"backend": choice.name, "device": choice.device, "precision": choice.precision}
    return Source(f"{choice.name} {choice.precision}", choice.precision, model.encode_text, about)
