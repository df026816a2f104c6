"""docs/engine-abi.md against the library: every table, number and filter that it gives to programs without Python."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest

from helpers.abi_page import PAGE, section, table
from helpers.tiny_bundle import write_tiny_bundle
from helpers.videos import numbered
from milnce.bundle import Bundle
from milnce.manifest import FORMAT_VERSION, SIGNATURES
from milnce.plan_file import FORMAT_VERSION as SIDECAR_VERSION
from milnce.plan_file import HARDWARE_COMPATIBILITIES, LIBRARIES, Plan, PlanProfile
from milnce.tokenizer import Tokenizer
from milnce.video.picture import resize_bilinear, square_maker
from milnce.video.presets import PRESETS
from milnce.video.windows import round_half_away, window_starts
from milnce_convert.towers import TowersConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROOT = Path(__file__).parents[2]
DEMO = Bundle.open(ROOT / "engines" / "demo")
AXES = {"N": "batch", "T": "frames", "H": "height", "W": "width", "L": "words"}


def plan(**changes: Any) -> Plan:  # noqa: ANN401 - fields of several types
    values: dict[str, Any] = {
        "format_version": SIDECAR_VERSION,
        "file": "x.plan",
        "sha256": "0" * 64,
        "bytes": 1,
        "module": "text",
        "input_form": "tokens",
        "precision": "fp16",
        "onnx_sha256": "0" * 64,
        "library": "tensorrt",
        "library_version": "11.4.0.106",
        "compute_capabilities": ("9.0",),
        "gpu": "NVIDIA H200",
        "driver": "13.0",
        "hardware_compatibility": "none",
        "version_compatible": False,
        "profiles": (PlanProfile({"tokens": ((1, 16),) * 3}),),
        "build_s": 1.5,
        "date": "2026-11-21T12:00:00+00:00",
    }
    return Plan(**{**values, **changes})


def fits(value: object, kind: str) -> bool:
    """Whether a JSON value is of the type that the document names."""
    if kind.endswith(" or null"):
        return value is None or fits(value, kind.removesuffix(" or null"))
    if kind.startswith("array of "):
        one = kind.removeprefix("array of ").removesuffix("s")
        return isinstance(value, list) and bool(value) and all(fits(item, one) for item in value)
    kinds: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "integer": (int,),
        "number": (int, float),
        "boolean": (bool,),
        "object": (dict,),
    }
    return isinstance(value, kinds[kind]) and (kind == "boolean" or not isinstance(value, bool))


def test_the_fields_of_the_manifest() -> None:
    rows = table("field of manifest.json")
    document = DEMO.manifest.to_json()
    assert [name for name, *_ in rows] == list(document)
    for name, kind, _ in rows:
        assert fits(document[name], kind), name
    meanings = {name: meaning for name, _, meaning in rows}
    assert meanings["format"] == document["format"]
    assert meanings["format_version"] == str(FORMAT_VERSION)
    for field in ("vocabulary", "sampling"):
        assert set(re.findall("`(\\w+)`", meanings[field])) >= set(document[field]), field


def test_the_fields_of_a_graph() -> None:
    rows = table("field of a graph")
    for graph in DEMO.manifest.graphs:
        document = graph.to_json()
        assert [name for name, *_ in rows] == list(document)
        for name, kind, _ in rows:
            assert fits(document[name], kind), name
    meanings = {name: meaning for name, _, meaning in rows}
    assert {word for module, form in SIGNATURES for word in (module, form)} <= set(
        re.findall("`(\\w+)`", meanings["module"] + meanings["input_form"])
    )
    axis = next(
        axis for spec in DEMO.graph("video").inputs for axis in spec.to_json()["shape"] if isinstance(axis, dict)
    )
    (said,) = re.findall("Another is an object: (.*)", PAGE)
    assert list(axis) == re.findall("`(\\w+)`", said)


def test_the_tensors_are_the_interface() -> None:
    given: dict[tuple[str, str], dict[str, list[tuple[str, str, int]]]] = {}
    for module, form, tensor, direction, dtype, shape in table("module"):
        tensors = given.setdefault((module, form), {"in": [], "out": []})
        tensors[direction].append((tensor, dtype, len(shape.split(","))))
    expected = {key: {"in": list(inputs), "out": list(outputs)} for key, (inputs, outputs) in SIGNATURES.items()}
    assert given == expected


def test_the_shapes_and_ranges_are_those_of_a_bundle() -> None:
    ranges = {symbol: (name, sizes) for symbol, name, sizes in table("axis")}
    seen = set()
    for module, form, tensor, direction, dtype, shape in table("module"):
        graphs = [graph for graph in DEMO.manifest.graphs if (graph.module, graph.input_form) == (module, form)]
        for graph in graphs:
            specs = graph.inputs if direction == "in" else graph.outputs
            (spec,) = [spec for spec in specs if spec.name == tensor]
            assert spec.dtype == dtype
            for symbol, axis in zip(shape.strip("()").split(", "), spec.shape, strict=True):
                seen.add(symbol)
                if symbol.isdecimal():
                    assert axis.size == int(symbol)
                    continue
                name, sizes = ranges[symbol]
                if symbol in AXES:
                    step = ", even" if axis.multiple_of == 2 else ""
                    assert (axis.name, name) == (AXES[symbol], AXES[symbol])
                    assert (axis.maximum, sizes) == (None, f"from {axis.minimum}{step}")
                else:
                    assert axis.size is not None
                    assert (name, sizes.partition(":")[0]) == ("", "fixed")
    assert seen == {*ranges, "3"}


def test_the_axes_are_in_the_order_of_every_form(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "bundle", precisions=("fp32",))
    graphs = {(graph.module, graph.input_form): graph for graph in Bundle.open(tmp_path / "bundle").manifest.graphs}
    rows = table("module")
    assert {(module, form) for module, form, *_ in rows} == set(graphs)
    for module, form, tensor, direction, _, shape in rows:
        graph = graphs[module, form]
        (spec,) = [one for one in (graph.inputs if direction == "in" else graph.outputs) if one.name == tensor]
        symbols = shape.strip("()").split(", ")
        assert [AXES.get(symbol) for symbol in symbols] == [axis.name for axis in spec.shape], (module, form, tensor)


def test_the_published_widths() -> None:
    config = TowersConfig()
    widths = {symbol: sizes for symbol, _, sizes in table("axis")}
    assert f" {config.video.embedding} " in widths["D"]
    assert f" {config.video.blocks['mixed_5c'].output} " in widths["F"]


def test_the_fields_of_a_sidecar() -> None:
    rows = table("field")
    built = plan(options={"settings": {}})
    document = built.to_json()
    assert sorted(name for name, *_ in rows) == sorted(document)
    for name, kind, _ in rows:
        assert fits(document[name], kind), name
    bare = plan(gpu=None, driver=None, library="tensorrt_rtx").to_json()
    for name, kind, _ in rows:
        assert fits(bare[name], kind), name
    meanings = {name: meaning for name, _, meaning in rows}
    assert meanings["format"] == document["format"]
    assert meanings["format_version"] == str(SIDECAR_VERSION)
    assert re.findall("`(.+?)`", meanings["library"]) == list(LIBRARIES)
    assert re.findall("`(.+?)`", meanings["hardware_compatibility"]) == list(HARDWARE_COMPATIBILITIES)
    (profile,) = document["profiles"]
    assert list(profile["tokens"]) == re.findall("`(.+?)`", meanings["profiles"])


def test_what_is_read_back_from_the_document_is_a_sidecar() -> None:
    """The fields that the document lists, and no other, make a sidecar that the reader takes."""
    document = {name: plan().to_json()[name] for name, *_ in table("field")}
    assert Plan.from_json(document, source="the document") == plan()


def test_the_presets() -> None:
    rows = table("preset | frames a second")
    assert [name for name, *_ in rows] == list(PRESETS)
    for name, fps, frames, windows, stride, size, interpolation, padding in rows:
        preset = PRESETS[name]
        assert (fps == "as they come") is (preset.fps is None)
        assert preset.fps is None or float(fps) == preset.fps
        assert int(frames) == preset.frames
        assert (int(windows) if windows else None, int(stride) if stride else None) == (
            preset.windows,
            preset.stride_frames,
        )
        assert (int(size), interpolation, padding) == (preset.size, preset.interpolation, preset.padding)


def test_the_starts_of_windows() -> None:
    rows = table("preset | seconds")
    assert len(rows) == 4
    for name, seconds, starts in rows:
        found = window_starts(PRESETS[name], Fraction(0), Fraction(seconds))
        assert [Fraction(one) for one in starts.split()] == found


def test_the_rule_of_slots_gives_the_documents_slots() -> None:
    """The rule as the text says it; tests/runtime/test_cpp_example.py holds it against real videos."""
    rows = table("layout")
    assert len(rows) == 7
    for layout, begins, end, start, shown in rows:
        times, s = [Fraction(one) for one in begins.split()], Fraction(start)
        kept = [index for index, time in enumerate(times) if layout == "stride" or time >= s] or [len(times) - 1]
        last = max(1, round_half_away((Fraction(end) - s) * 10))
        slots = []
        for k in range(6):
            before = [index for index in kept if round_half_away((times[index] - s) * 10) <= k]
            slots.append("-" if k >= last else str((before or kept)[-1 if before else 0]))
        assert " ".join(slots) == shown, (layout, begins, start)


def test_the_words_of_sentences() -> None:
    rows = table("sentence")
    assert len(rows) == 5
    for sentence, words in rows:
        expected = words.replace("`", "").split()
        tokenizer = Tokenizer(["nothing"])
        assert tokenizer.unknown(sentence) == expected
    assert "filled up with 0" in section("Sentences to ids")


def test_a_later_line_wins_and_unknown_words_take_no_place() -> None:
    np.testing.assert_array_equal(Tokenizer(["a", "b", "a"], 4)("x b x a a a a"), [[2, 3, 3, 3]])
    np.testing.assert_array_equal(Tokenizer(["a", "b", "a"], 4)("x b"), [[2, 0, 0, 0]])


def run_filters(chain: str, frame: av.VideoFrame) -> av.VideoFrame:
    """Run a frame through filters that are given as the ffmpeg command line takes them."""
    graph = av.filter.Graph()
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=Fraction(1, 1))]
    for step in re.split(r"(?<!\\),", chain):
        name, _, arguments = step.partition("=")
        nodes.append(graph.add(name, arguments.replace("\\", "")))
    graph.link_nodes(*nodes, graph.add("buffersink"))
    graph.configure()
    graph.vpush(frame)
    return graph.vpull()


def documented_filters() -> str:
    (chain,) = re.findall(r"^```\n(crop=.*)\n```$", section("Pictures"), flags=re.MULTILINE)
    return str(chain)


@pytest.mark.parametrize(("width", "height"), [(320, 240), (240, 320), (101, 75), (224, 224)])
def test_the_filters_of_bicubic_presets(width: int, height: int) -> None:
    frame = av.VideoFrame.from_ndarray(numbered(1234, width, height), "rgb24").reformat(format="yuv420p")
    made = run_filters(documented_filters(), frame).to_ndarray()
    np.testing.assert_array_equal(made, square_maker(224, "bicubic")(frame))


def luma_of(frame: av.VideoFrame) -> NDArray[np.uint8]:
    plane = frame.planes[0]
    return np.frombuffer(bytes(plane), np.uint8).reshape(frame.height, plane.line_size)[:, : frame.width]


@pytest.mark.parametrize(("width", "height", "side"), [(101, 75, 74), (75, 101, 74), (320, 240, 240)])
def test_the_crop_of_4_2_0_pictures_is_even(width: int, height: int, side: int) -> None:
    picture = np.zeros((height, width, 3), np.uint8)
    # Grey levels that say where a pixel was: two pixels of each, as 4:2:0 has.
    picture[:] = (np.arange(width)[None, :, None] // 2 * 2 + np.arange(height)[:, None, None] // 2) % 256
    frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format="yuv420p")
    crop = documented_filters().split(",scale=")[0]
    cut = run_filters(crop, frame)
    assert (cut.width, cut.height) == (side, side)
    luma, whole = luma_of(cut), luma_of(frame)
    left, top = (width - side) // 4 * 2, (height - side) // 4 * 2
    np.testing.assert_array_equal(luma, whole[top : top + side, left : left + side])


def test_the_arithmetic_of_bilinear_presets() -> None:
    """The formula of the document, pixel by pixel, gives what the library gives."""
    picture = np.random.default_rng(0).integers(0, 256, (50, 37, 3), dtype=np.uint8)
    height, width = picture.shape[:2]
    side = min(height, width)
    top, left = height // 2 - side // 2, width // 2 - side // 2
    square = picture[top : top + side, left : left + side]
    size = 224

    def taps(i: int) -> tuple[int, int, int, int]:
        c = np.float32((i + 0.5) * (side / size) - 0.5)
        first = np.floor(c)
        f = np.float32(c - first)
        near, far = (int(np.clip(at, 0, side - 1)) for at in (first, first + 1))
        return near, far, int(np.rint((np.float32(1) - f) * 2048)), int(np.rint(f * 2048))

    made = np.empty((size, size, 3), np.uint8)
    pixels = square.astype(int)
    for y in range(size):
        near_row, far_row, a, b = taps(y)
        for x in range(0, size, 9):
            near, far, near_weight, far_weight = taps(x)

            def h(row: int, near: int = near, far: int = far, w: tuple[int, int] = (near_weight, far_weight)) -> Any:  # noqa: ANN401 - three numbers
                return pixels[row, near] * w[0] + pixels[row, far] * w[1]

            made[y, x] = (((h(near_row) >> 4) * a >> 16) + ((h(far_row) >> 4) * b >> 16) + 2) >> 2
    expected = resize_bilinear(square, size)
    np.testing.assert_array_equal(made[:, ::9], expected[:, ::9])


def test_every_section_that_the_example_names_is_there() -> None:
    source = (ROOT / "examples" / "cpp" / "milnce.hpp").read_text(encoding="utf-8")
    named = [re.findall('"(.+?)"', mark) for mark in re.findall(r"^// ---- .*", source, flags=re.MULTILINE)]
    assert named == [["Sentences to ids"], ["Windows", "Frames of a window"], ["Pictures"], ["Plans"]]
    assert all(section(name) for names in named for name in names)
