"""Contact sheets: the best frames side by side, each with its rank, score, file and time."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from milnce.errors import InputError, MissingDependencyError, OutputError
from milnce.files import check_absent, check_writable
from milnce.platforms import install

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FRAME_HEIGHT = 360  # what to ask of `read_frame`: twice a tile's, so that the reduction stays sharp

# A sheet in pixels: 16:9 pictures, five to a row, is 1920 wide less a little.
_PICTURE = (352, 198)
_GAP = 20
_COLUMNS = 5
_TITLE_SIZE, _HEADING_SIZE, _CAPTION_SIZE = 30, 20, 17

_PAPER, _INK, _FAINT, _MATTE, _ACCENT = "#ffffff", "#16191d", "#5f6873", "#16191d", "#0b62d6"


@dataclass(frozen=True, slots=True)
class Tile:
    """One picture of a sheet.

    Attributes:
        frame: uint8 (height, width, 3) RGB, of any size; None draws an empty picture.
        rank: Place in the ranking, from 1.
        score: The score, printed with two decimals.
        name: File name; long names lose their middle, since beginnings and suffixes tell files apart.
        when: The time, such as "0:03.2 - 0:06.4".
    """

    frame: NDArray[np.uint8] | None
    rank: int
    score: float
    name: str
    when: str


def contact_sheet(tiles: Sequence[Tile], title: str) -> Image:
    """Draw the tiles in rows under a title.

    Every tile has the same size whatever the shape of its frame: frames keep their proportions on a dark matte.

    Args:
        tiles: At least one, in the order to show them.
        title: One line above them, shortened to fit.

    Returns:
        An RGB image.

    Raises:
        InputError: if there are no tiles, or a frame is not uint8 RGB.
        MissingDependencyError: if Pillow is not installed.
    """
    require_pillow()
    from PIL import Image, ImageDraw  # noqa: PLC0415  # optional

    if not tiles:
        raise InputError("no tiles given; a contact sheet needs at least one")
    rows = -(-len(tiles) // _COLUMNS)
    columns = -(-len(tiles) // rows)  # rows as even as can be: six tiles are 3 + 3, not 5 + 1
    fonts = {size: _font(size) for size in (_TITLE_SIZE, _HEADING_SIZE, _CAPTION_SIZE)}
    top = _GAP + _line(_TITLE_SIZE) + _GAP // 2
    tile_height = _PICTURE[1] + 8 + _line(_HEADING_SIZE) + 2 * _line(_CAPTION_SIZE)
    # One tile is too narrow for a title: two columns' width is the least.
    width = max(columns, 2) * (_PICTURE[0] + _GAP) + _GAP
    sheet = Image.new("RGB", (width, top + rows * (tile_height + _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (_GAP, _GAP), title, fonts[_TITLE_SIZE], _INK, width - 2 * _GAP)
    for number, tile in enumerate(tiles):
        x = _GAP + number % columns * (_PICTURE[0] + _GAP)
        y = top + number // columns * (tile_height + _GAP)
        sheet.paste(_picture(tile), (x, y))
        y += _PICTURE[1] + 8
        draw.text((x, y), f"{tile.rank}", font=fonts[_HEADING_SIZE], fill=_INK)
        score = f"{tile.score:.2f}"
        right = x + _PICTURE[0] - draw.textlength(score, font=fonts[_HEADING_SIZE])
        draw.text((right, y), score, font=fonts[_HEADING_SIZE], fill=_ACCENT)
        y += _line(_HEADING_SIZE)
        _text(draw, (x, y), tile.name, fonts[_CAPTION_SIZE], _INK, _PICTURE[0])
        draw.text((x, y + _line(_CAPTION_SIZE)), tile.when, font=fonts[_CAPTION_SIZE], fill=_FAINT)
    return sheet


def stack_sheets(sheets: Sequence[Image]) -> Image:
    """Return the sheets one below the other; a single one as it is.

    Raises:
        InputError: if there are none.
    """
    from PIL import Image  # noqa: PLC0415  # optional

    if not sheets:
        raise InputError("no sheets given; at least one is needed")
    if len(sheets) == 1:
        return sheets[0]
    stacked = Image.new("RGB", (max(one.width for one in sheets), sum(one.height for one in sheets)), _PAPER)
    top = 0
    for one in sheets:
        stacked.paste(one, (0, top))
        top += one.height
    return stacked


def save_sheet(sheet: Image, destination: Path, *, overwrite: bool = False) -> None:
    """Write the image under a temporary name and rename it into place, so it is whole or not there.

    Raises:
        OutputError: as `check_sheet_destination` does, or if the file cannot be written.
    """
    check_sheet_destination(destination, overwrite=overwrite)
    try:
        with tempfile.TemporaryDirectory(
            prefix=f".{destination.name}.", suffix=".tmp", dir=destination.parent
        ) as folder:
            finished = Path(folder, f"sheet{destination.suffix.lower()}")
            sheet.save(finished)
            finished.replace(destination)
    except OSError as error:
        raise OutputError(f"{destination}: cannot write the contact sheet ({error})") from error


def check_sheet_destination(destination: Path, *, overwrite: bool = False) -> None:
    """Refuse, before any work, what could not be written at its end.

    Raises:
        OutputError: if the suffix is not a picture's, the folder is missing or not writable, or the destination exists
            and may not be replaced.
    """
    if destination.suffix.lower() not in SUFFIXES:
        raise OutputError(f"{destination}: suffix {destination.suffix!r} given; one of {', '.join(SUFFIXES)} expected")
    check_absent(destination, overwrite=overwrite)
    check_writable(destination)


def require_pillow() -> None:
    """Make sure that Pillow is there.

    Raises:
        MissingDependencyError: if it is not.
    """
    try:
        import PIL  # noqa: F401, PLC0415  # optional
    except ImportError as error:
        raise MissingDependencyError(f"a contact sheet needs Pillow; run: {install('video')}") from error


def _line(size: int) -> int:
    return round(size * 1.35)


def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont  # noqa: PLC0415  # optional

    return ImageFont.load_default(size)


def _picture(tile: Tile) -> Image:
    from PIL import Image, ImageOps  # noqa: PLC0415  # optional

    if tile.frame is None:
        return Image.new("RGB", _PICTURE, _MATTE)
    _check_frame(tile.frame, tile.name)
    return ImageOps.pad(Image.fromarray(tile.frame), _PICTURE, Image.Resampling.LANCZOS, color=_MATTE)


def _check_frame(frame: NDArray[Any], name: str) -> None:
    if frame.dtype.name != "uint8" or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:  # noqa: PLR2004
        raise InputError(f"{name}: frame is {frame.dtype} {frame.shape}; uint8 (height, width, 3) RGB expected")


def _text(
    draw: ImageDraw,
    position: tuple[int, int],
    text: str,
    font: FreeTypeFont | ImageFont,
    fill: str,
    limit: int,
) -> None:
    fitting = text
    kept = len(text)
    while kept > 1 and draw.textlength(fitting, font=font) > limit:
        kept -= 1
        fitting = f"{text[: (kept + 1) // 2]}...{text[len(text) - kept // 2 :]}"
    draw.text(position, fitting, font=font, fill=fill)
