"""examples/cpp compiled, and compared with the Python library: sentences, window starts, slots, pictures, hashes."""

# ruff: noqa: RUF001 - sentences in many scripts are the point
from __future__ import annotations

import hashlib
import importlib.util
import io
import re
import shutil
import subprocess
import sys
import unicodedata
import warnings
from contextlib import redirect_stdout
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.abi_page import table
from helpers.videos import make_video, read_numbers
from milnce.errors import UnknownWordsWarning
from milnce.tokenizer import Tokenizer
from milnce.video.container import open_video
from milnce.video.decode import FrameReader
from milnce.video.picture import crop_center_square, resize_bilinear
from milnce.video.presets import get_preset
from milnce.video.probe import measure_length
from milnce.video.windows import iter_windows, round_half_away, window_starts

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    Tool = Callable[..., bytes]

EXAMPLES = Path(__file__).parents[2] / "examples" / "cpp"
FLAGS = (
    "-std=c++17",
    "-O2",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wpedantic",
    "-Wconversion",
    "-Wshadow",
    "-Werror",
)

ONCE = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
FIXED = settings(ONCE, derandomize=True)


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Tool:
    """Compile the tool, and return a function that runs it on bytes."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no g++ here")
    program = tmp_path_factory.mktemp("cpp") / "milnce_tool"
    done = subprocess.run(
        [compiler, *FLAGS, str(EXAMPLES / "milnce_tool.cpp"), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr

    def run(*arguments: object, given: bytes = b"") -> bytes:
        ran = subprocess.run([program, *map(str, arguments)], input=given, capture_output=True, check=False, timeout=60)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


def lines(tool: Tool, *arguments: object, given: Sequence[str]) -> list[str]:
    """Run the tool on lines of text."""
    text = tool(*arguments, given="".join(f"{line}\n" for line in given).encode()).decode()
    return text.removesuffix("\n").split("\n")


def python_words(sentence: str) -> list[str]:
    return re.findall(r"[\w']+", sentence.lower())


# ---- sentences ----

SENTENCES = (
    "open the door",
    "Don't cut THE tomato",
    "  many   spaces\tand tabs ",
    'punctuation: a,b;c.d!e?f(g)h[i]j"k`l~m',
    "under_score 42 3rd 1/2 ½ ²",
    "café CAFÉ cafe\u0301",  # the last one with a combining accent, which is no word character
    "naïve Ärger STRASSE straße ẞ",
    "ΟΔΥΣΣΕΥΣ ΣΑΣ Σ ΑΣ. Α\u00adΣ ΑΣ\u00adΑ Α'Σ Σ'Α",  # capital sigmas, with soft hyphens and apostrophes around
    "İstanbul ISTANBUL ı I",
    "北京 東京 서울 हिन्दी العربية עברית ไทย",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 😀 emoji",
    "a\u200bb c\u00a0d e\u2019f",
    "",
    "''' ' _",
)


def in_one_line(sentence: str) -> str:
    return sentence.replace("\n", " ")


def test_words_of_all_kinds_of_sentences(tool: Tool) -> None:
    assert lines(tool, "words", given=SENTENCES) == [" ".join(python_words(text)) for text in SENTENCES]


# Assigned since Unicode 3.2, so that every Python agrees about it: looked up in 3.10 to 3.13, which have Unicode 13 to
# 15.1. U+1734 alone changed between them, and a line end ends the sentence.
SETTLED = [
    code
    for code in range(sys.maxunicode + 1)
    if unicodedata.ucd_3_2_0.category(chr(code)) not in {"Cn", "Cs"} and code not in {0x0A, 0x1734}
]
TEXT = st.text(st.sampled_from([*map(chr, SETTLED)]) | st.sampled_from("aB'_ 1ΣσςÀ\u0307\u00adİ.-"), max_size=30)


@ONCE
@given(st.lists(TEXT, min_size=1, max_size=40))
def test_words_of_any_text(tool: Tool, sentences: list[str]) -> None:
    assert lines(tool, "words", given=sentences) == [" ".join(python_words(text)) for text in sentences]


def test_every_character_alone_and_beside_letters_and_a_sigma(tool: Tool) -> None:
    header = (EXAMPLES / "unicode_tables.hpp").read_text(encoding="ascii")
    version = re.search(r'version\[\] = "([0-9.]+)"', header)
    assert version is not None
    same = version[1] == unicodedata.unidata_version
    codes = [code for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000] if same else SETTLED
    unassigned = [chr(code) for code in codes if unicodedata.category(chr(code)) in {"Cn", "Co"}]
    assigned = sorted({chr(code) for code in codes} - {*unassigned, "\n"})
    sentences = [f"{char} a{char}b A{char}Σ Σ{char}A" for char in assigned]
    sentences += ["a".join(unassigned[at : at + 64]) for at in range(0, len(unassigned), 64)]
    assert lines(tool, "words", given=sentences) == [" ".join(python_words(text)) for text in sentences]


def test_the_tables_are_what_their_script_writes() -> None:
    spec = importlib.util.spec_from_file_location("make_unicode_tables", EXAMPLES / "make_unicode_tables.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with redirect_stdout(io.StringIO()) as written:
        module.main()
    header = (EXAMPLES / "unicode_tables.hpp").read_text(encoding="ascii")
    if f'"{unicodedata.unidata_version}"' not in header:
        pytest.skip(f"the tables are of another Unicode than this Python's {unicodedata.unidata_version}")
    assert written.getvalue() == header


@ONCE
@given(st.lists(TEXT, min_size=1, max_size=20), st.integers(1, 20))
def test_ids_are_the_tokenizers(tool: Tool, tmp_path: Path, sentences: list[str], max_words: int) -> None:
    words = ["the", "a", "café", "don't", "a", "ς", "σας", *python_words(" ".join(sentences[::2])), "last"]
    (tmp_path / "vocabulary.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    known = [*sentences, " ".join(words), "the unknownword don't a"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownWordsWarning)
        expected = Tokenizer(words, max_words)([in_one_line(text) for text in known])
    found = lines(tool, "ids", tmp_path / "vocabulary.txt", max_words, given=[in_one_line(text) for text in known])
    np.testing.assert_array_equal([[int(one) for one in line.split()] for line in found], expected)


@pytest.mark.parametrize(
    "bad", [b"\xff", b"a\xc3", b"\xc0\xaf", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80", b"\xc3("]
)
def test_what_is_no_utf_8_is_refused(tool: Tool, bad: bytes) -> None:
    with pytest.raises(UnicodeDecodeError):
        bad.decode()
    with pytest.raises(AssertionError, match="the text is not UTF-8 at byte"):
        tool("words", given=bad + b"\n")


# ---- windows ----

TIME_BASES = (Fraction(1, 90_000), Fraction(1, 15_360), Fraction(1001, 30_000), Fraction(1, 1_000), Fraction(1, 30))


@st.composite
def videos(draw: st.DrawFn) -> tuple[list[Fraction], Fraction]:
    """Return when the frames of a video begin, not evenly, and when it ends."""
    base = draw(st.sampled_from(TIME_BASES))
    step = max(1, round(Fraction(1, draw(st.sampled_from([5, 10, 25, 30, 60]))) / base))
    ticks = [0]
    for _ in range(draw(st.integers(0, 70))):
        ticks.append(ticks[-1] + draw(st.sampled_from([step, step, step, 0, 1, step * 2, step * 9])))
    return [tick * base for tick in ticks], (ticks[-1] + draw(st.sampled_from([0, 1, step, step * 30]))) * base


def text(value: Fraction) -> str:
    return f"{value.numerator}/{value.denominator}"


def slot_line(
    layout: str, start: Fraction, end: Fraction, fps: Fraction, frames: int, times: Sequence[Fraction]
) -> str:
    return f"{layout} {text(start)} {text(end)} {text(fps)} {frames} {' '.join(map(text, times))}"


def fractions_of(line: str) -> list[Fraction]:
    return [Fraction(one) for one in line.split()]


@ONCE
@given(
    st.lists(videos(), min_size=1, max_size=20),
    st.sampled_from(["milnce-eval", "milnce-native", "sliding"]),
    st.integers(1, 40),
    st.sampled_from([1, 5, 7.5, 10, 29.97]),
)
def test_window_starts_are_the_presets(
    tool: Tool, clips: list[tuple[list[Fraction], Fraction]], name: str, count: int, fps: float
) -> None:
    layout = {"stride_frames": count} if name == "sliding" else {"windows": count}
    preset = get_preset(name, fps=fps, **layout)
    rows = []
    for _, end in clips:
        start = end / 3  # not at a microsecond
        rows.append((start, end + Fraction(1, 7), window_starts(preset, start, end + Fraction(1, 7))))
    kind = "sliding" if name == "sliding" else "spread"
    rate = text(Fraction(str(fps)))
    given = [f"{kind} {text(start)} {text(end)} {rate} {preset.frames} {count}" for start, end, _ in rows]
    assert [fractions_of(line) for line in lines(tool, "starts", given=given)] == [starts for *_, starts in rows]


def python_slots(
    times: list[Fraction], end: Fraction, start: Fraction, fps: Fraction, frames: int, *, slide: bool
) -> list[int]:
    """Return the frame of each slot by the rule as it is written at the head of milnce.video.windows.

    Slot k shows the last frame whose time since the start, in slots, rounds to k or less.
    """
    kept = [index for index, time in enumerate(times) if slide or time >= start] or [len(times) - 1]
    until = round_half_away((end - start) * fps)
    shown = []
    for slot in range(frames):
        showing = [index for index in kept if round_half_away((times[index] - start) * fps) <= slot]
        shown.append(-1 if slot >= max(1, until) else showing[-1] if showing else kept[0])
    return shown


@ONCE
@given(st.lists(videos(), min_size=1, max_size=10), st.sampled_from([5, 10, Fraction(15, 2)]), st.booleans(), st.data())
def test_slots_show_the_frames_of_the_rule(
    tool: Tool, clips: list[tuple[list[Fraction], Fraction]], fps: Fraction, slide: bool, data: st.DataObject
) -> None:
    given, expected = [], []
    for times, end in clips:
        start = data.draw(st.sampled_from([Fraction(0), *times, *(time + Fraction(1, 1000) for time in times)]))
        start = min(start, max(end - Fraction(1, 1000), Fraction(0)))
        given.append(slot_line("sliding" if slide else "spread", start, end, Fraction(fps), 16, times))
        expected.append(python_slots(times, end, start, Fraction(fps), 16, slide=slide))
    assert [list(map(int, line.split())) for line in lines(tool, "slots", given=given)] == expected


GAPS_MS = (40, 7, 400, 33, 33, 1, 900, 120, 60, 60, 1500, 33, 33, 33)
RECIPES: dict[str, dict[str, Any]] = {
    "constant": {"frames": 90, "fps": Fraction(25)},
    "variable": {"frames": 15, "ticks": tuple(np.cumsum([0, *GAPS_MS]).tolist())},
    "short": {"frames": 3, "fps": Fraction(10)},
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", ["milnce-native", "milnce-eval", "sliding", "tfhub-colab"])
def test_clips_of_real_videos_show_the_frames_that_the_tool_says(
    tool: Tool, tmp_path: Path, name: str, recipe: str
) -> None:
    path = make_video(tmp_path / "video.mkv", **RECIPES[recipe])
    preset = get_preset(name, size=32)
    windows = list(iter_windows(path, preset))
    with open_video(path) as video:
        reader = FrameReader(video)
        frames = list(iter(reader.read, None))
    times = [frame.time_s for frame in frames]
    length = measure_length(path).video_s
    end = max(length, frames[-1].end_s)
    if preset.fps is None:
        given = [f"first 0/1 {text(length)} {preset.frames} {' '.join(map(text, times))}"]
    else:
        fps, sliding = Fraction(str(preset.fps)), preset.stride_frames is not None
        layout = "sliding" if sliding else "spread"
        count = preset.stride_frames if sliding else preset.windows
        (line,) = lines(tool, "starts", given=[f"{layout} 0/1 {text(length)} {text(fps)} {preset.frames} {count}"])
        starts = fractions_of(line)
        assert [float(start) for start in starts] == [window.start_s for window in windows]
        given = [slot_line(layout, start, end, fps, preset.frames, times) for start in starts]
    shown = [[int(one) for one in line.split()] for line in lines(tool, "slots", given=given)]
    expected = [[-1 if number is None else number for number in read_numbers(window.clip)] for window in windows]
    assert shown == expected


def test_the_tables_of_the_document_hold_for_the_tool(tool: Tool) -> None:
    rows = table("sentence")
    expected = [" ".join(words.replace("`", "").split()) for _, words in rows]
    assert lines(tool, "words", given=[sentence for sentence, _ in rows]) == expected
    for name, seconds, starts in table("preset | seconds"):
        preset = get_preset(name)
        layout, count = ("sliding", preset.stride_frames) if preset.stride_frames else ("spread", preset.windows)
        (line,) = lines(tool, "starts", given=[f"{layout} 0 {seconds} {int(preset.fps or 0)} {preset.frames} {count}"])
        assert fractions_of(line) == [Fraction(one) for one in starts.split()]
    for layout, begins, end, start, shown in table("layout"):
        kind = "sliding" if layout == "stride" else "spread"
        times = [Fraction(one) for one in begins.split()]
        (line,) = lines(tool, "slots", given=[slot_line(kind, Fraction(start), Fraction(end), Fraction(10), 6, times)])
        assert line.replace("-1", "-") == shown


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("first 0 10 8 0 1 2", "0 0 0 1 1 1 2 2"),
        ("first 1 10 4 0 1 2 3 4 5 6", "1 2 3 4"),
        ("first 1/2 2 6 0 1 2 3", "0 0 0 1 1 1"),
        ("first 0 1 3 0", "0 0 0"),
        ("first 5 6 2 0 1", "1 1"),
    ],
)
def test_frames_as_they_come_are_repeated(tool: Tool, arguments: str, shown: str) -> None:
    assert lines(tool, "slots", given=[arguments]) == [shown]


# ---- pictures ----


@FIXED
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 48), st.integers(0, 2**32 - 1))
def test_pictures_are_cropped_and_scaled_alike(tool: Tool, height: int, width: int, size: int, seed: int) -> None:
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    made = np.frombuffer(tool("square", height, width, size, given=picture.tobytes()), np.uint8)
    np.testing.assert_array_equal(made.reshape(size, size, 3), resize_bilinear(crop_center_square(picture), size))


def test_a_picture_of_full_size_is_scaled_alike(tool: Tool) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (360, 641, 3), dtype=np.uint8)
    made = np.frombuffer(tool("square", 360, 641, 224, given=picture.tobytes()), np.uint8)
    np.testing.assert_array_equal(made.reshape(224, 224, 3), resize_bilinear(crop_center_square(picture), 224))


def test_weights_that_lie_between_two_are_rounded_alike(tool: Tool) -> None:
    """With 2048 columns the two taps' weights end in a half; OpenCV rounds halves to even."""
    picture = np.random.default_rng(0).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    made = np.frombuffer(tool("square", 3, 3, 2048, given=picture.tobytes()), np.uint8)
    np.testing.assert_array_equal(made.reshape(2048, 2048, 3), resize_bilinear(picture, 2048))


def test_the_float32_form_is_the_bytes_by_255(tool: Tool) -> None:
    clip = np.random.default_rng(0).integers(0, 256, (4, 6, 8, 3), dtype=np.uint8)
    planes = np.frombuffer(tool("planar", given=clip.tobytes()), np.float32).reshape(3, 4, 6, 8)
    np.testing.assert_array_equal(planes, clip.transpose(3, 0, 1, 2).astype(np.float32) / np.float32(255))


# ---- files and errors ----


@pytest.mark.parametrize("length", [0, 1, 55, 56, 63, 64, 65, 119, 120, 1000, 70_001])
def test_hashes_are_sha_256(tool: Tool, length: int) -> None:
    data = np.random.default_rng(length).integers(0, 256, length, dtype=np.uint8).tobytes()
    assert tool("sha256", given=data).decode().strip() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        ([], b"", "arguments are missing"),
        (["ids", "/nowhere/vocabulary.txt", 16], b"", "/nowhere/vocabulary.txt cannot be read"),
        (["resize"], b"", "no task resize"),
        (["slots"], b"spread 0 1\n", "a fraction is missing"),
        (["slots"], b"spread 0 1 1/0 4 0\n", "a fraction needs a denominator"),
        (["starts"], b"spread 0 9007199254740993/2 10 32 10\n", "too many digits"),
    ],
)
def test_what_cannot_be_done_is_said(tool: Tool, arguments: list[object], given: bytes, message: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(message)):
        tool(*arguments, given=given)
