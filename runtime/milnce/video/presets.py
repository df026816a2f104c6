"""Named ways of turning a video into clips: frame rate, frames, windows, crop, resize and padding.

Two users whose presets have the same `digest` get the same pixels from the same file, so a digest is what features
on disk are labelled with.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from milnce.errors import InputError

Interpolation = Literal["bicubic", "bilinear"]
Padding = Literal["black", "repeat"]

# Goes into every digest. Raise it whenever the same preset starts to give other pixels.
SAMPLING_VERSION = 1
MAX_FPS = 1000

_FOR_PEOPLE = frozenset({"name", "description", "source"})
_CUSTOMISED = ", customised"


@dataclass(frozen=True)
class Preset:
    """How windows are laid over a video and how each becomes a clip.

    Exactly one of `windows` and `stride_frames` is set. `fps=None` takes the frames as they come, and is possible for
    one window only.

    Attributes:
        name: What the preset is called.
        fps: Frames a second that are sampled, or None for the video's own frames.
        frames: Frames of a clip.
        windows: Number of windows, their starts evenly spread over the video; or None.
        stride_frames: Distance of consecutive sliding windows, in sampled frames; or None.
        size: Height and width of a clip's frames, in pixels.
        interpolation: "bicubic" is libavfilter's `scale` (FFmpeg's default, antialiased when shrinking); "bilinear" is
            OpenCV's `INTER_LINEAR` (two taps, not antialiased).
        padding: What fills a clip when the video ends before it: "black" frames after the last one, or "repeat": each
            frame is shown ceil(frames / available) times, and the surplus is cut.
        description: One sentence for people.
        source: Where the numbers were published; those of a customised preset that its description does not name.

    Raises:
        InputError: if a value is out of range or two of them contradict each other.
    """

    name: str
    fps: float | None
    frames: int
    windows: int | None
    stride_frames: int | None
    size: int = 224
    interpolation: Interpolation = "bicubic"
    padding: Padding = "black"
    description: str = ""
    source: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            raise InputError(f"a preset needs a name; got {self.name!r}")
        self._check_fps()
        self._check_count("frames", self.frames, 1, 4096)
        self._check_count("size", self.size, 2, 4096)
        if self.size % 2:
            raise InputError(f"preset {self.name!r}: size must be even, as the model halves it; got {self.size}")
        if (self.windows is None) == (self.stride_frames is None):
            raise InputError(
                f"preset {self.name!r}: set either windows or stride_frames and leave the other None;"
                f" got windows={self.windows!r}, stride_frames={self.stride_frames!r}"
            )
        if self.windows is not None:
            self._check_count("windows", self.windows, 1, 100_000)
        if self.stride_frames is not None:
            self._check_count("stride_frames", self.stride_frames, 1, 1_000_000)
        if self.fps is None and self.windows != 1:
            raise InputError(
                f"preset {self.name!r}: fps=None (frames as they come) needs windows=1;"
                f" got windows={self.windows!r}, stride_frames={self.stride_frames!r}. Give fps a number"
            )
        for field, kind in (("interpolation", Interpolation), ("padding", Padding)):
            if getattr(self, field) not in get_args(kind):
                given, known = getattr(self, field), ", ".join(get_args(kind))
                raise InputError(f"preset {self.name!r}: {field} must be one of {known}; got {given!r}")

    def _check_fps(self) -> None:
        fps: object = self.fps  # callers need not be type-checked
        if fps is None:
            return
        if isinstance(fps, bool) or not isinstance(fps, (int, float)) or not 0 < fps <= MAX_FPS:  # False for NaN
            raise InputError(f"preset {self.name!r}: fps must be None or a number in (0, {MAX_FPS}]; got {fps!r}")

    def _check_count(self, field: str, value: object, minimum: int, maximum: int) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise InputError(
                f"preset {self.name!r}: {field} must be a whole number from {minimum} to {maximum}; got {value!r}"
            )

    @property
    def duration_s(self) -> float | None:
        """Seconds one window spans, or None when it depends on the video's own frame rate."""
        return None if self.fps is None else self.frames / self.fps

    def to_json(self) -> dict[str, Any]:
        """Return every field, as JSON types."""
        return dataclasses.asdict(self)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that changes pixels or times: not of the name, the description or the source."""
        fields = {key: value for key, value in self.to_json().items() if key not in _FOR_PEOPLE}
        fields["fps"] = None if self.fps is None else float(self.fps)
        fields["sampling_version"] = SAMPLING_VERSION
        return hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()

    def __str__(self) -> str:
        rate = "own frame rate" if self.fps is None else f"{self.fps:g} fps"
        layout = f"stride {self.stride_frames} frames" if self.windows is None else f"{self.windows} windows"
        return f"{self.name} ({self.frames} frames, {rate}, {layout}, {self.size} px)"


_EVALUATION = "github.com/antoine77340/MIL-NCE_HowTo100M (README flags; msrvtt_loader.py, youcook_loader.py)"

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            name="milnce-eval",
            fps=5.0,
            frames=16,
            windows=10,
            stride_frames=None,
            description="The reference evaluation as its README runs it: 3.2 s windows of 16 frames.",
            source=_EVALUATION,
        ),
        Preset(
            name="milnce-native",
            fps=10.0,
            frames=32,
            windows=10,
            stride_frames=None,
            description="The same windows with the 32 frames at 10 fps that the published weights were trained on.",
            source=f"{_EVALUATION}, issue 12; arXiv:1912.06430",
        ),
        Preset(
            name="sliding",
            fps=10.0,
            frames=32,
            windows=None,
            stride_frames=16,
            description="Overlapping 3.2 s windows over the whole video, every 1.6 s: for finding moments.",
            source="github.com/albanie/collaborative-experts (S3D features: 32 frames, 10 fps, stride 16)",
        ),
        Preset(
            name="tfhub-colab",
            fps=None,
            frames=32,
            windows=1,
            stride_frames=None,
            interpolation="bilinear",
            padding="repeat",
            description="The first 32 frames as they come; short videos repeat each frame.",
            source="tensorflow.org/hub/tutorials/text_to_video_retrieval_with_s3d_milnce (load_video)",
        ),
    )
}


def get_preset(name: str | Preset, /, **overrides: Any) -> Preset:  # noqa: ANN401 - fields of several types
    """Return a preset by name, with some of its fields replaced.

    A preset that no longer gives the same pixels says so: its name becomes "milnce-eval, customised" and its
    description lists what differs, unless the overrides name and describe it.

    Args:
        name: One of `PRESETS`, or a `Preset` to vary.
        **overrides: Fields of `Preset` with their new values, such as `stride_frames=8`.

    Raises:
        InputError: if there is no such preset or field, or the result is not a valid preset.
    """
    preset = name if isinstance(name, Preset) else PRESETS.get(name)
    if preset is None:
        raise InputError(f"no preset {name!r}; there are {', '.join(PRESETS)}")
    fields = {field.name for field in dataclasses.fields(Preset)}
    unknown = sorted(set(overrides) - fields)
    if unknown:
        raise InputError(f"a preset has no field {', '.join(unknown)}; there are {', '.join(sorted(fields))}")
    if not overrides:
        return preset
    changed = dataclasses.replace(preset, **overrides)
    base = PRESETS.get(preset.name.removesuffix(_CUSTOMISED), preset)
    return dataclasses.replace(changed, **{**_labels(changed, base), **overrides})


def _labels(preset: Preset, base: Preset) -> dict[str, str]:
    differences = ", ".join(
        f"{field.name} {getattr(preset, field.name)} instead of {getattr(base, field.name)}"
        for field in dataclasses.fields(Preset)
        if field.name not in _FOR_PEOPLE and getattr(preset, field.name) != getattr(base, field.name)
    )
    if not differences:
        return {"name": base.name, "description": base.description}
    name = base.name.removesuffix(_CUSTOMISED)
    return {"name": name + _CUSTOMISED, "description": f"As {base.name}, with {differences}."}
