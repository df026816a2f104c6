"""The page in a real browser: what a reader sees and can do, and that nothing of a caption ever runs.

Needs Debian's chromium and Playwright (see helpers/browser.py). Without them these tests are skipped, and fail where
MILNCE_REQUIRE_BROWSER=1 says that they must run.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from helpers.browser import BrowserMissingError, open_browser, screenshot
from helpers.pages import HOSTILE, RANKS, loop, query, video, write
from milnce.page import ShownQuery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from playwright.sync_api import Browser, Page

    Open = Callable[..., AbstractContextManager[Page]]

CAPTIONS = [
    f"{verb} the {thing}" for verb in ("cut", "wash") for thing in ("tomato", "car", "onion", "\u00c4pfel", "dog")
]

VIDEOS = sum(len(query("", rank).shown) for rank in RANKS)

# The contrast of each text with the colours behind it, by WCAG 2's formula; transparent layers are followed upwards.
CONTRASTS = """() => {
  const parse = (colour) => (colour.match(/[\\d.]+/g) ?? []).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3).map((value) => value / 255)
    .map((value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4))
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] > 0) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility() || element.tagName === "OPTION") continue;
    const [a, b] = [parse(getComputedStyle(element).color), behind(element)].map(luminance);
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), walker.currentNode.data.trim()]);
  }
  return found;
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Return one browser for all tests here, and no longer: its event loop would be in the way of other tests'."""
    try:
        with open_browser() as opened:
            yield opened
    except BrowserMissingError as error:
        if os.environ.get("MILNCE_REQUIRE_BROWSER") == "1":
            pytest.fail(f"MILNCE_REQUIRE_BROWSER=1, but there is {error}")
        pytest.skip(str(error))


@pytest.fixture
def open_page(browser: Browser) -> Open:
    """Return a function that opens a page, and at its end asserts that it was quiet and asked for nothing."""

    @contextmanager
    def opened(path: Path, fragment: str = "", **context: Any) -> Iterator[Page]:  # noqa: ANN401 - Playwright's options
        quiet: list[str] = []
        settings = browser.new_context(viewport={"width": 1280, "height": 900}, **context)
        try:
            page = settings.new_page()
            page.on("console", lambda message: quiet.append(f"console: {message.text}"))
            page.on("pageerror", lambda error: quiet.append(f"error: {error}"))
            page.on("dialog", lambda dialog: quiet.append(f"dialog: {dialog.message}"))
            page.on(
                "request",
                lambda request: quiet.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
            )
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url) if request.url.startswith("file:") else None)
            page.goto(f"{path.as_uri()}{fragment}")
            yield page
            assert quiet == []
            assert {url.partition("#")[0] for url in asked} == {path.as_uri()}
        finally:
            settings.close()

    return opened


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page of ten queries, one for each of `RANKS`."""
    queries = [query(caption, rank) for caption, rank in zip(CAPTIONS, RANKS, strict=True)]
    return write(tmp_path_factory.mktemp("page") / "small.html", queries)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a page of 1,000 queries with six videos each, 24 pictures among them."""
    pictures = {f"{number}": loop((10 * number, 90, 200), size=(171, 96)) for number in range(24)}
    queries = (
        ShownQuery(
            f"sentence {number}",
            number % 20 + 1,
            tuple(video(place, picture=f"{(number + place) % 24}", correct=place == 2) for place in range(1, 7)),
        )
        for number in range(1000)
    )
    return write(tmp_path_factory.mktemp("page") / "large.html", queries, pictures=pictures)


def captions(page: Page) -> list[str]:
    # Not innerText, which is empty for what `content-visibility` leaves out.
    return page.locator(".query h3").all_text_contents()


def fragment(page: Page, expected: str) -> None:
    """Wait until the address is the view's: it follows a moment after typing."""
    page.wait_for_function("expected => decodeURIComponent(location.hash) === expected", arg=expected)


def wait_for_pictures(page: Page, tag: str, count: int) -> None:
    page.wait_for_function(
        "([tag, count]) => document.querySelectorAll(`.frame ${tag}`).length === count", arg=[tag, count]
    )


def test_a_query_shows_its_videos_and_marks_the_right_one_in_words(open_page: Open, small: Path) -> None:
    with open_page(small) as page:
        assert captions(page) == CAPTIONS
        last = page.locator(".query").last
        last.scroll_into_view_if_needed()
        wait_for_pictures(page, "img", VIDEOS)
        page.wait_for_function("() => [...document.querySelectorAll('.query')].at(-1).innerText !== ''")
        assert last.locator("header").inner_text().split("\n") == ["wash the dog", "rank 300"]
        tiles = [[line for line in tile.split("\n") if line] for tile in last.locator(".video").all_inner_texts()]
        assert [tile[0] for tile in tiles] == ["1", "2", "3", "4", "5", "300 \u2713 right"]
        assert tiles[1][1:] == ["9.750", "clip2.mp4", "0:03.2 \u2013 0:06.4"]
        assert tiles[5][1:] == ["-27.500", "clip300.mp4", "8:00.0 \u2013 8:03.2"]
        assert page.locator(".query .video.right").count() == len(CAPTIONS)
        assert page.get_by_role("status").inner_text() == "10 of 10 queries"


@pytest.mark.parametrize(
    ("label", "expected", "address"),
    [
        ("Rank 1", [0, 1], "#rank=1-1"),
        ("Rank 2 to 5", [2, 3, 4, 5], "#rank=2-5"),
        ("Rank 6 to 10", [6, 7], "#rank=6-10"),
        ("Worse", [8, 9], "#rank=11-"),
    ],
)
def test_filters_count_as_recall_does(
    label: str, expected: list[int], address: str, open_page: Open, small: Path
) -> None:
    with open_page(small) as page:
        page.get_by_role("radio", name=label).check()
        assert captions(page) == [CAPTIONS[number] for number in expected]
        assert page.get_by_role("status").inner_text() == f"{len(expected)} of 10 queries"
        fragment(page, address)
        label_text = page.locator(".preset", has=page.get_by_role("radio", name=label)).inner_text()
        assert label_text.split("\n")[-1] == f"{len(expected)} \u00b7 {len(expected) * 10:.1f} %"
        page.get_by_role("radio", name="All").check()
        assert captions(page) == CAPTIONS
        fragment(page, "")


def test_a_free_range_filters_and_joins_the_address(open_page: Open, small: Path) -> None:
    with open_page(small) as page:
        page.get_by_label("from").fill("4")
        page.get_by_label("to", exact=True).fill("10")
        assert captions(page) == CAPTIONS[4:8]
        assert page.locator("input[type=radio]:checked").count() == 0
        fragment(page, "#rank=4-10")
        page.get_by_label("from").fill("6")
        assert page.get_by_role("radio", name="Rank 6 to 10").is_checked()
        page.get_by_label("from").fill("")
        page.get_by_label("to", exact=True).fill("")
        assert captions(page) == CAPTIONS


def test_search_finds_all_words_in_any_order_whatever_their_case(open_page: Open, small: Path) -> None:
    with open_page(small) as page:
        box = page.get_by_label("Search captions")
        box.press_sequentially("\u00e4PFEL wash")
        assert captions(page) == ["wash the \u00c4pfel"]
        fragment(page, "#text=\u00e4PFEL+wash")
        page.get_by_role("radio", name="Rank 1").check()
        assert captions(page) == []
        assert page.get_by_text("No query matches.").is_visible()
        page.get_by_role("button", name="Show all queries").click()
        assert captions(page) == CAPTIONS
        assert box.input_value() == ""
        assert page.evaluate("document.activeElement.id") == "search"


def test_the_order_can_be_turned(open_page: Open, small: Path) -> None:
    with open_page(small) as page:
        page.get_by_label("Order").select_option("worst rank first")
        assert captions(page) == [*CAPTIONS[:1:-1], *CAPTIONS[:2]]  # equal ranks stay in their order
        fragment(page, "#order=worst")
        page.get_by_label("Order").select_option("best rank first")
        assert captions(page) == CAPTIONS


def test_a_linked_view_opens_as_it_was(open_page: Open, small: Path) -> None:
    with open_page(small, "#rank=2-10&text=the+onion&order=worst") as page:
        assert captions(page) == ["wash the onion", "cut the onion"]
    with open_page(small, "#rank=2-10&order=worst&text=wash") as page:
        assert captions(page) == ["wash the onion", "wash the car", "wash the tomato"]
        assert page.get_by_label("from").input_value() == "2"
        assert page.get_by_label("to", exact=True).input_value() == "10"
        assert page.get_by_label("Search captions").input_value() == "wash"
        assert page.get_by_label("Order").input_value() == "worst"
        page.evaluate("location.hash = '#rank=1-1'")
        page.wait_for_function("() => document.querySelectorAll('.query').length === 2")
        assert page.get_by_role("radio", name="Rank 1").is_checked()


@pytest.mark.parametrize(
    "address", ["#rank=x&order=__proto__", "#rank=-5", "#rank=99999999999-1&order=constructor", "#%E0%A4%A", "#rank=0-"]
)
def test_an_address_that_says_nothing_shows_everything(address: str, open_page: Open, small: Path) -> None:
    with open_page(small, address) as page:
        assert captions(page) == CAPTIONS
        assert page.get_by_role("radio", name="All").is_checked()


@pytest.mark.parametrize(
    "address", ["#text=<img src=x onerror='window.ran=1'>", '#text="><script>window.ran=1</script>']
)
def test_nothing_in_an_address_runs(address: str, open_page: Open, small: Path) -> None:
    with open_page(small, address) as page:
        assert captions(page) == []
        assert page.get_by_label("Search captions").input_value() == address.removeprefix("#text=")
        assert page.evaluate("window.ran") is None


def test_hostile_text_is_shown_as_text_and_nothing_runs(open_page: Open, tmp_path: Path) -> None:
    queries = [ShownQuery(text, 1, (video(1, video=text, correct=True, picture=text),)) for text in HOSTILE]
    path = write(
        tmp_path / "p.html",
        queries,
        title=HOSTILE[0],
        facts=[(text, text) for text in HOSTILE],
        pictures=dict.fromkeys(HOSTILE, loop()),
    )
    with open_page(path) as page:
        assert page.title() == HOSTILE[0]
        wait_for_pictures(page, "img", len(HOSTILE))
        for selector in (".query h3", ".name", "dt", "dd"):
            assert page.locator(selector).evaluate_all("all => all.map(each => each.textContent)") == list(HOSTILE)
        page.locator(".name").first.hover()
        page.get_by_label("Search captions").fill("<script>")
        assert len(captions(page)) == 2
        page.wait_for_timeout(200)
        assert page.evaluate("window.ran") is None
        assert page.locator("h3 *, .name *, dt *, dd *, h1 *").count() == 0


def test_the_policy_stops_what_would_get_through(browser: Browser, small: Path) -> None:
    page = browser.new_page()
    try:
        page.goto(small.as_uri())
        blocked = page.evaluate(
            """async () => {
              const script = document.createElement("script");
              let refused = false;
              try { script.text = "window.ran = 1"; document.body.append(script); } catch { refused = true; }
              const fetched = await fetch("data:,x").then(() => true, () => false);
              return { refused, ran: window.ran ?? null, fetched };
            }"""
        )
        assert blocked == {"refused": True, "ran": None, "fetched": False}
    finally:
        page.close()


def test_names_that_run_right_to_left_do_not_turn_their_neighbours(open_page: Open, tmp_path: Path) -> None:
    path = write(tmp_path / "p.html", [query("\u05e9\u05dc\u05d5\u05dd \u202e abc", 3)])
    with open_page(path) as page:
        assert page.locator(".query h3").evaluate("each => getComputedStyle(each).direction") == "rtl"
        assert page.locator(".query .badge").evaluate("each => getComputedStyle(each).direction") == "ltr"
        assert page.locator(".query .badge").inner_text() == "rank 3"


def test_loops_play_and_stop_at_their_first_picture(open_page: Open, small: Path) -> None:
    with open_page(small) as page:
        wait_for_pictures(page, "img", VIDEOS)
        page.wait_for_function(
            "() => [...document.querySelectorAll('.frame img')].every(image => image.naturalWidth === 32)"
        )
        assert page.get_by_label("Play the loops").is_checked()
        page.get_by_label("Play the loops").uncheck()
        wait_for_pictures(page, "canvas", VIDEOS)
        colour = page.locator(".frame canvas").first.evaluate(
            "canvas => [...canvas.getContext('2d').getImageData(5, 5, 1, 1).data]"
        )
        assert colour == [220, 20, 20, 255]
        assert page.locator(".frame img").count() == 0
        page.get_by_label("Play the loops").check()
        wait_for_pictures(page, "img", VIDEOS)


def test_the_last_word_on_loops_counts_however_fast(open_page: Open, small: Path) -> None:
    with open_page(small) as page:
        page.evaluate("() => { const box = document.getElementById('loops'); box.click(); box.click(); }")
        page.wait_for_timeout(300)
        assert page.locator(".frame img").count() == VIDEOS
        assert page.locator(".frame canvas").count() == 0


def test_who_prefers_less_motion_gets_still_pictures(open_page: Open, small: Path) -> None:
    with open_page(small, reduced_motion="reduce") as page:
        wait_for_pictures(page, "canvas", VIDEOS)
        assert page.locator(".frame img").count() == 0
        assert not page.get_by_label("Play the loops").is_checked()
        assert page.get_by_role("img", name="Pictures from clip1.mp4").count() == 10


def test_a_missing_or_broken_picture_is_said(open_page: Open, tmp_path: Path) -> None:
    shown = (video(1, picture=None), video(2, picture="broken", correct=True))
    path = write(tmp_path / "p.html", [ShownQuery("a", 2, shown)], pictures={"broken": loop()[:40]})
    with open_page(path, reduced_motion="reduce") as page:
        page.get_by_text("picture cannot be shown").wait_for()
        assert page.get_by_text("no picture", exact=True).count() == 1


def test_no_queries_at_all_is_said(open_page: Open, tmp_path: Path) -> None:
    with open_page(write(tmp_path / "p.html", [])) as page:
        assert page.get_by_role("status").inner_text() == "0 of 0 queries"
        assert page.get_by_text("No query matches.").is_visible()


def test_shared_ranks_are_explained_where_there_are_any(open_page: Open, small: Path, tmp_path: Path) -> None:
    with open_page(small) as page:
        assert page.get_by_text("A rank such as 2.5 is shared").is_visible()
    with open_page(write(tmp_path / "p.html", [query("a", 1)])) as page:
        assert not page.get_by_text("A rank such as 2.5 is shared").is_visible()


def test_a_thousand_queries_are_drawn_as_they_are_reached(open_page: Open, large: Path) -> None:
    with open_page(large) as page:
        page.wait_for_timeout(300)
        assert page.locator(".query").count() <= 72
        # What is far below is in the page and not painted.
        last = page.locator(".query h3").last
        assert not last.evaluate("each => each.checkVisibility({ contentVisibilityAuto: true })")
        assert page.get_by_role("status").inner_text() == "1,000 of 1,000 queries"
        page.get_by_role("button", name="Show more queries").scroll_into_view_if_needed()
        page.wait_for_function("() => document.querySelectorAll('.query').length >= 48")
        for _ in range(100):
            if page.locator(".query").count() == 1000:
                break
            page.evaluate("scrollTo(0, document.body.scrollHeight)")
            page.wait_for_timeout(30)
        assert len(set(captions(page))) == 1000
        assert not page.get_by_role("button", name="Show more queries").is_visible()
        # Everything drawn, and yet a key in the search is answered at once.
        took_ms = page.evaluate(
            """() => {
              const box = document.getElementById("search");
              const start = performance.now();
              box.value = "99";
              box.dispatchEvent(new Event("input"));
              document.body.getBoundingClientRect();
              return performance.now() - start;
            }"""
        )
        assert page.locator(".query").count() == 19
        assert took_ms < 500


def test_a_high_window_is_filled_without_scrolling(open_page: Open, large: Path) -> None:
    with open_page(large) as page:
        page.set_viewport_size({"width": 1280, "height": 20_000})
        page.wait_for_function("() => document.querySelector('#queries').getBoundingClientRect().bottom > 20000")
        assert page.locator(".query").count() < 200


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
def test_no_width_scrolls_sideways(width: int, open_page: Open, small: Path, tmp_path: Path) -> None:
    long = write(
        tmp_path / "long.html",
        [ShownQuery("w" * 300, 1, (video(1, video="n" * 300 + ".mp4", correct=True), video(2)))],
        title="t" * 200,
        facts=[("f" * 100, "v" * 300)],
        table=([f"column {number}" for number in range(30)], [["1.0"] * 30]),
    )
    for path in (small, long):
        with open_page(path) as page:
            page.set_viewport_size({"width": width, "height": 780})
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            outside = page.locator("body :not(table, table *)").evaluate_all(
                "(all, width) => all.filter(each => each.checkVisibility() &&"
                " each.getBoundingClientRect().right > width + 1)"
                ".map(each => each.outerHTML.slice(0, 80))",
                width,
            )
            assert outside == []
            # A place and a score are read in one piece.
            lines = page.locator(".score, .line b").evaluate_all(
                "all => all.map(each => each.getClientRects()[0].height)"
            )
            assert 0 < max(lines) < 30


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_text_has_contrast(scheme: Any, open_page: Open, small: Path) -> None:  # noqa: ANN401 - Playwright's literals
    with open_page(small, color_scheme=scheme) as page:
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        found = page.evaluate(CONTRASTS)
        assert len(found) > 200
        assert [pair for pair in found if pair[0] < 4.5] == []
    assert background == {"light": "rgb(244, 246, 248)", "dark": "rgb(15, 18, 22)"}[scheme]


def test_every_control_has_a_name_and_is_reached_by_keyboard(open_page: Open, small: Path) -> None:
    with open_page(small) as page:
        for control in page.locator("input, select, button").all():
            if control.is_visible():
                assert control.evaluate("each => each.labels?.length > 0 || each.textContent.trim() !== ''")
        reached = []
        for _ in range(8):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
        assert reached[:7] == ["scroll", "rank-all", "least", "most", "search", "order", "loops"]
        page.locator("#rank-all").focus()
        page.keyboard.press("ArrowRight")
        assert captions(page) == CAPTIONS[:2]


def test_without_scripts_facts_and_table_are_there_and_the_rest_is_said(open_page: Open, small: Path) -> None:
    with open_page(small, java_script_enabled=False) as page:
        words = page.locator("table").inner_text().split()
        assert " ".join(words) == "direction R@1 source text to video 20.0 here video to text - here"
        assert page.locator("dd").all_inner_texts() == ["tiny", "2026-01-31"]
        note = page.locator("noscript p")  # not by text: Playwright looks for none in noscript
        assert note.is_visible()
        assert "the queries with their videos, the filter and the search are not shown" in note.inner_text()
        assert not page.locator("#controls").is_visible()


def test_a_screenshot_is_the_same_every_time(browser: Browser, small: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        screenshot(browser, small, tmp_path / name, width=640, height=480)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
