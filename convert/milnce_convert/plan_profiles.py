"""What sizes a plan is built for: the optimisation profiles of a graph, from the bundle's own sizes or those asked for.

A profile is a fixed shape or a range. Fixed batches, one profile each, are the default: TensorRT tunes each for itself,
and a batch is padded to the next.
"""

from __future__ import annotations

import itertools
import math
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from milnce.errors import InputError
from milnce.plans import PlanProfile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from milnce.manifest import GraphFile, Manifest
    from milnce.specs import Dimension

VIDEO_BATCHES = (1, 2, 4, 8, 16, 32)
TEXT_BATCHES = (1, 8, 32, 256)

# Most elements of a tensor that a convolution takes or gives, "Volume Limits" on the operator's page:
# docs.nvidia.com/deeplearning/tensorrt/operators/docs/Convolution.html. Some builds get through with more, and
# TensorRT-RTX 1.7.1 ends the process (SIGSEGV) with 18 times as many. The input alone is held against it here.
LARGEST_VOLUME = 2**31 - 1

# Which axis of an input is what. Fixed axes have no name in the manifest, so names cannot say it.
_AXES = {
    ("video", "uint8"): ("batch", "frames", "height", "width", None),
    ("video", "float32"): ("batch", None, "frames", "height", "width"),
    ("text", "tokens"): ("batch", "words"),
    ("projection", "mixed_5c"): ("batch", None),
}


@dataclass(frozen=True, slots=True)
class Span:
    """Sizes of one axis that a profile takes.

    Attributes:
        minimum: Smallest size.
        maximum: Largest size; equal to `minimum` for a fixed one.
        optimum: Size that is tuned for; None for the bundle's own if it lies in the range, else the largest.
    """

    minimum: int
    maximum: int
    optimum: int | None = None

    @classmethod
    def fixed(cls, size: int) -> Span:
        """Return exactly `size`."""
        return cls(size, size, size)


Picture = tuple[Span, Span]  # height and width


@dataclass(frozen=True, slots=True)
class PlanSizes:
    """Sizes to build for; each entry of a tuple makes profiles of its own, all combined with all.

    Attributes:
        batch: Clips a run; None for `VIDEO_BATCHES`.
        text_batch: Sentences a run, and rows of features a run of the projection; None for `TEXT_BATCHES`.
        frames: Frames a clip; None for the bundle's own.
        pictures: Height and width, in pixels; None for the bundle's own.
        words: Words a sentence; None for the bundle's own.
    """

    batch: tuple[Span, ...] | None = None
    text_batch: tuple[Span, ...] | None = None
    frames: tuple[Span, ...] | None = None
    pictures: tuple[Picture, ...] | None = None
    words: tuple[Span, ...] | None = None


def make_profiles(graph: GraphFile, manifest: Manifest, sizes: PlanSizes) -> tuple[PlanProfile, ...]:
    """Return the profiles of a graph, in the order of the sizes given.

    Raises:
        InputError: for sizes that the graph does not take; the message says what it takes.
    """
    frames, size = int(manifest.sampling["frames"]), int(manifest.sampling["size"])
    own = {"frames": frames, "height": size, "width": size, "words": manifest.vocabulary.max_words}
    batch, default = (sizes.batch, VIDEO_BATCHES) if graph.module == "video" else (sizes.text_batch, TEXT_BATCHES)
    columns: list[list[dict[str, Span]]] = [[{"batch": span} for span in batch or map(Span.fixed, default)]]
    if graph.module == "video":
        pictures = sizes.pictures or ((Span.fixed(size), Span.fixed(size)),)
        columns.append([{"frames": span} for span in sizes.frames or (Span.fixed(frames),)])
        columns.append([{"height": height, "width": width} for height, width in pictures])
    elif graph.module == "text":
        columns.append([{"words": span} for span in sizes.words or (Span.fixed(own["words"]),)])
    profiles = []
    # The batch varies fastest, so that buckets of one size are neighbours.
    for rest in itertools.product(*columns[1:]):
        for first in columns[0]:
            spans = {name: span for part in (first, *rest) for name, span in part.items()}
            profiles.append(_profile(graph, spans, own))
    return tuple(profile for index, profile in enumerate(profiles) if profile not in profiles[:index])


def parse_spans(text: str, option: str) -> tuple[Span, ...]:
    """Read sizes and ranges, such as "1,8", "1:32" or "1:8:32" (smallest:tuned for:largest).

    Raises:
        InputError: naming `option` and what was given.
    """
    return tuple(_span(item, text, option) for item in text.split(","))


def parse_pictures(text: str, option: str) -> tuple[Picture, ...]:
    """Read picture sizes and ranges, such as "224", "200:256", or "240x320" (height x width).

    Raises:
        InputError: naming `option` and what was given.
    """
    pictures = []
    for item in text.split(","):
        sides = [part.split("x") for part in item.split(":")]
        if any(len(side) > 2 for side in sides):  # noqa: PLR2004 - height and width
            raise _unreadable(text, option)
        height = ":".join(side[0] for side in sides)
        width = ":".join(side[-1] for side in sides)
        pictures.append((_span(height, text, option), _span(width, text, option)))
    return tuple(pictures)


def _span(item: str, text: str, option: str) -> Span:
    numbers = [_number(part) for part in item.split(":")]
    match numbers:
        case [int(size)]:
            return Span.fixed(size)
        case [int(low), int(high)] if low <= high:
            return Span(low, high)
        case [int(low), int(best), int(high)] if low <= best <= high:
            return Span(low, high, best)
    raise _unreadable(text, option)


def _number(text: str) -> int | None:
    text = text.strip()
    # At most as many digits as a size of a tensor can have.
    return int(text) if text.isascii() and text.isdigit() and 0 < len(text) <= 9 and int(text) > 0 else None  # noqa: PLR2004


def _unreadable(text: str, option: str) -> InputError:
    pictures = " or 240x320 (height x width)" if option == "--size" else ""
    return InputError(
        f"{option} {shlex.quote(text)} given; sizes from 1 expected: 8, or several (1,8,32), or a range (1:32, or "
        f"1:8:32 tuned for 8){pictures}"
    )


def _profile(graph: GraphFile, spans: dict[str, Span], own: dict[str, int]) -> PlanProfile:
    (spec,) = graph.inputs
    axes = [
        _bounds(graph, name, axis, Span.fixed(axis.minimum) if name is None else spans[name], own)
        for name, axis in zip(_AXES[graph.module, graph.input_form], spec.shape, strict=True)
    ]
    low, best, high = (tuple(sizes) for sizes in zip(*axes, strict=True))
    volume = math.prod(high)
    if volume > LARGEST_VOLUME:
        raise InputError(
            f"{spec.name} of {' x '.join(map(str, high))} asked for, which is {volume} elements; a tensor of TensorRT "
            f"has {LARGEST_VOLUME} at most. Build for smaller batches, clips or pictures"
        )
    return PlanProfile({spec.name: (low, best, high)})


def _bounds(
    graph: GraphFile, name: str | None, axis: Dimension, span: Span, own: dict[str, int]
) -> tuple[int, int, int]:
    """Return the smallest size, the one tuned for, and the largest, after holding them against the graph's axis."""
    best = span.optimum
    if best is None:
        best = own.get(str(name), span.maximum)
        if not (span.minimum <= best <= span.maximum and axis.accepts(best)):
            best = span.maximum
    sizes = (span.minimum, best, span.maximum)
    wrong: Sequence[int] = [size for size in dict.fromkeys(sizes) if not axis.accepts(size)]
    if wrong:
        label = "size" if name in {"height", "width"} else name
        raise InputError(
            f"{label} {', '.join(map(str, wrong))} asked for; {graph} takes {axis} there ({graph.inputs[0]})"
        )
    return sizes
