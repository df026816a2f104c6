"""A real Chromium for the tests of pages, and pictures of pages for the README.

    PYTHONPATH=tests python -m helpers.browser page.html page.png --width 1280 --height 900 --dark --hash rank=2-5

Debian's browser is driven (`apt-get install --no-install-recommends chromium`); Playwright's own is never downloaded.
"""

from __future__ import annotations

import argparse
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome")


class BrowserMissingError(RuntimeError):
    """There is no browser, or nothing to drive it with; the message says what to install."""


@contextmanager
def open_browser() -> Iterator[Browser]:
    """Start a Chromium without a window; end it on leaving.

    Raises:
        BrowserMissingError: if Chromium or Playwright is not installed.
    """
    executable = next(filter(None, map(shutil.which, EXECUTABLES)), None)
    if executable is None:
        raise BrowserMissingError("no chromium; run: apt-get install --no-install-recommends chromium")
    try:
        from playwright.sync_api import sync_playwright  # noqa: PLC0415 - the tests of pages skip without it
    except ImportError as error:
        raise BrowserMissingError(f"no Playwright ({error}); run: pip install playwright") from error
    # Chromium has no sandbox for root, whom CI's containers run as. It opens nothing here but our own files.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def screenshot(  # noqa: PLR0913  # the options of a picture, by name
    browser: Browser,
    page: Path,
    destination: Path,
    *,
    width: int = 1280,
    height: int = 900,
    dark: bool = False,
    fragment: str = "",
    scale: float = 1,
) -> None:
    """Take a picture of the top of a page, its loops stopped at their first pictures, so that it can be had again.

    Args:
        browser: From `open_browser`.
        page: The HTML file.
        destination: A .png file; replaced if it is there.
        width: CSS pixels.
        height: CSS pixels.
        dark: Whether the reader prefers dark colours.
        fragment: The view, such as "rank=2-5".
        scale: Picture pixels a CSS pixel.
    """
    shown = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        device_scale_factor=scale,
    )
    try:
        shown.goto(f"{page.resolve().as_uri()}#{fragment}")
        shown.wait_for_function(
            "() => [...document.querySelectorAll('.frame[data-picture]')].every(frame => frame.firstElementChild)"
        )
        shown.screenshot(path=destination)
    finally:
        shown.close()


def main() -> None:
    """Take a picture as the arguments of the command line say."""
    parser = argparse.ArgumentParser(description="Take a picture of a page.")
    parser.add_argument("page", type=Path)
    parser.add_argument("destination", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, default=900)
    parser.add_argument("--scale", type=float, default=1)
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--hash", dest="fragment", default="")
    arguments = vars(parser.parse_args())
    with open_browser() as browser:
        screenshot(browser, **arguments)


if __name__ == "__main__":
    main()
