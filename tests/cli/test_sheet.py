"""Contact sheets: even tiles, readable captions, whole files only."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from milnce.errors import InputError, MissingDependencyError, OutputError
from milnce.sheet import Tile, contact_sheet, save_sheet, stack_sheets

if TYPE_CHECKING:
    from pathlib import Path

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30), (30, 200, 200), (200, 30, 200), (90, 90, 90)]
WIDTH, HEIGHT, GAP = 352, 198, 20


def tile(rank: int = 1, shape: tuple[int, int] = (90, 160), name: str = "video.mp4") -> Tile:
    frame = np.full((*shape, 3), COLOURS[(rank - 1) % len(COLOURS)], np.uint8)
    return Tile(frame, rank, 12.3456, name, "0:01.6 - 0:04.8")


def corners(image: Image.Image, count: int, columns: int) -> list[tuple[int, int]]:
    """Return the corner of each tile's picture, found by the layout's own arithmetic of rows and columns."""
    rows = -(-count // columns)
    top = np.flatnonzero((np.asarray(image)[:, GAP + WIDTH // 2] == COLOURS[0]).all(axis=-1))[0]
    pitch = (image.height - int(top)) // rows
    return [(GAP + n % columns * (WIDTH + GAP), int(top) + n // columns * pitch) for n in range(count)]


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (3, 3), (5, 5), (6, 3), (7, 4), (10, 5), (11, 4)])
def test_tiles_stand_in_even_rows_in_order(count: int, columns: int) -> None:
    image = contact_sheet([tile(rank) for rank in range(1, count + 1)], "a query")
    assert image.width == max(columns, 2) * (WIDTH + GAP) + GAP
    for number, (x, y) in enumerate(corners(image, count, columns)):
        centre = image.getpixel((x + WIDTH // 2, y + HEIGHT // 2))
        assert centre == COLOURS[number % len(COLOURS)]


def test_frames_keep_their_shape_in_tiles_of_one_size() -> None:
    image = contact_sheet([tile(1), tile(2, (400, 200)), tile(3, (60, 400))], "shapes")
    pixels = np.asarray(image).astype(int)
    for number, aspect in ((1, 0.5), (2, 400 / 60)):
        own = np.abs(pixels - COLOURS[number]).max(axis=-1) < 8
        ys, xs = np.nonzero(own)
        assert (np.ptp(xs) + 1) / (np.ptp(ys) + 1) == pytest.approx(aspect, rel=0.03)
        assert np.ptp(xs) < WIDTH
        assert np.ptp(ys) < HEIGHT


def ink(image: Image.Image) -> Any:  # noqa: ANN401 - an array
    return np.asarray(image.convert("L")) < 128


def test_long_names_and_titles_are_shortened_inside_their_space() -> None:
    name = "a_name_that_goes_on_" * 10 + "end.mp4"
    image = contact_sheet([tile(1, name=name), tile(2)], "a very long question " * 20)
    marks = ink(image)
    assert not marks[:, :GAP].any()
    assert not marks[:, -GAP:].any()
    below = corners(image, 2, 2)[0][1] + HEIGHT
    assert not marks[below:, GAP + WIDTH + 2 : WIDTH + 2 * GAP - 2].any(), "the name runs into the next tile"
    assert marks[below:, GAP : GAP + WIDTH].any()


def test_captions_differ_with_rank_score_name_and_time() -> None:
    frame = np.zeros((90, 160, 3), np.uint8)
    base = Tile(frame, 1, 1.0, "a.mp4", "0:00.0 - 0:03.2")
    others = [
        Tile(frame, 2, 1.0, "a.mp4", "0:00.0 - 0:03.2"),
        Tile(frame, 1, 2.0, "a.mp4", "0:00.0 - 0:03.2"),
        Tile(frame, 1, 1.0, "b.mp4", "0:00.0 - 0:03.2"),
        Tile(frame, 1, 1.0, "a.mp4", "0:01.0 - 0:04.2"),
    ]
    drawn = [contact_sheet([tile], "q").tobytes() for tile in (base, *others)]
    assert len(set(drawn)) == len(drawn)


def test_sheets_are_stacked_whole_in_order_on_one_paper() -> None:
    sheets = [contact_sheet([tile(rank) for rank in range(1, count + 1)], f"query {count}") for count in (2, 5, 1)]
    stacked = stack_sheets(sheets)
    assert stacked.size == (sheets[1].width, sum(sheet.height for sheet in sheets))
    top = 0
    for sheet in sheets:
        assert stacked.crop((0, top, sheet.width, top + sheet.height)).tobytes() == sheet.tobytes()
        rest = stacked.crop((sheet.width, top, stacked.width, top + sheet.height))
        assert set(rest.tobytes()) <= {255}
        top += sheet.height
    assert stack_sheets(sheets[:1]) is sheets[0]
    with pytest.raises(InputError, match="no sheets given; at least one is needed"):
        stack_sheets([])


def test_a_missing_frame_is_an_empty_picture() -> None:
    image = contact_sheet([tile(1), Tile(None, 2, 1.0, "gone.mp4", "0:00.0 - 0:03.2")], "q")
    x, y = corners(image, 2, 2)[1]
    assert image.getpixel((x + WIDTH // 2, y + HEIGHT // 2)) == (22, 25, 29)


def test_what_is_no_picture_is_refused() -> None:
    with pytest.raises(InputError, match="no tiles given"):
        contact_sheet([], "q")
    for frame in (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8)):
        bad: Any = frame
        with pytest.raises(InputError, match=r"v.mp4: frame is .*; uint8 \(height, width, 3\) RGB expected"):
            contact_sheet([Tile(bad, 1, 1.0, "v.mp4", "")], "q")


@pytest.mark.parametrize("name", ["s.png", "s.jpg", "s.webp", "S.PNG"])
def test_a_sheet_is_saved_whole(name: str, tmp_path: Path) -> None:
    sheet = contact_sheet([tile()], "q")
    save_sheet(sheet, tmp_path / name)
    with Image.open(tmp_path / name) as saved:
        assert saved.size == sheet.size
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_sheet_that_cannot_be_saved_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sheet = contact_sheet([tile()], "q")
    with pytest.raises(OutputError, match=r"suffix '.pdf' given; one of .png"):
        save_sheet(sheet, tmp_path / "s.pdf")
    with pytest.raises(OutputError, match="no such folder"):
        save_sheet(sheet, tmp_path / "missing" / "s.png")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OutputError, match=r"cannot write the contact sheet .*No space left"):
        save_sheet(sheet, tmp_path / "s.png")
    assert list(tmp_path.iterdir()) == []


def test_without_pillow_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "milnce\[video\]"'):
        contact_sheet([tile()], "q")
