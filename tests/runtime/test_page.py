"""The page as a file: what is in it, that nothing breaks out of it, and that it is whole or not there."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tracemalloc
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from importlib import resources
from typing import TYPE_CHECKING, Any

import pytest

from helpers.pages import HOSTILE, loop, query, still, video, write
from milnce.errors import BundleNotFoundError, InputError, OutputError
from milnce.page import ShownQuery, write_page

if TYPE_CHECKING:
    from pathlib import Path


class Reader(HTMLParser):
    """Collects a page's elements and their text, as a browser without scripts would read it."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.data: dict[str, str] = {}
        self._open: list[tuple[str, str | None]] = []
        self.feed(page.read_text(encoding="utf-8"))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: D102 - named by HTMLParser
        self.elements.append((tag, dict(attrs)))
        self._open.append((tag, dict(attrs).get("id")))

    def handle_endtag(self, tag: str) -> None:  # noqa: D102 - named by HTMLParser
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:  # noqa: D102 - named by HTMLParser
        tag, name = self._open[-1] if self._open else ("", None)
        if tag == "script" and name is not None:
            self.data[name] = self.data.get(name, "") + data
        self.texts.append((tag, data.strip()))

    def text_of(self, tag: str) -> list[str]:
        """Return the texts of every element of a kind."""
        return [text for element, text in self.texts if element == tag and text]

    def queries(self) -> Any:  # noqa: ANN401 - JSON
        """Return the queries that the page's script reads."""
        return json.loads(self.data["queries-data"])


def test_facts_table_and_title_are_there_without_scripts(tmp_path: Path) -> None:
    page = Reader(write(tmp_path / "p.html", [query("a", 1)], title="Retrieval of <all> & more"))
    assert page.text_of("title") == ["Retrieval of <all> & more"]
    assert page.text_of("h1") == ["Retrieval of <all> & more"]
    assert list(zip(page.text_of("dt"), page.text_of("dd"), strict=True)) == [("Model", "tiny"), ("Date", "2026-01-31")]
    assert page.text_of("th") == ["direction", "R@1", "source", "text to video", "video to text"]
    assert page.text_of("td") == ["20.0", "here", "-", "here"]
    assert any("JavaScript is off: the queries" in text for text in page.text_of("p"))
    assert [tag for tag, _ in page.elements].index("noscript") > 0


def test_columns_of_numbers_are_aligned_as_numbers(tmp_path: Path) -> None:
    page = Reader(write(tmp_path / "p.html", []))
    classes = [(tag, fields.get("class")) for tag, fields in page.elements if tag in {"th", "td"}]
    assert classes[:3] == [("th", None), ("th", "number"), ("th", None)]
    assert classes[3:6] == [("th", None), ("td", "number"), ("td", None)]


def test_queries_hold_everything_that_was_given(tmp_path: Path) -> None:
    shown = (
        video(1, start_s=None, end_s=None, score=0.1234567891, picture=None),
        video(7, correct=True, video="folder/right.gif"),
    )
    page = Reader(write(tmp_path / "p.html", [ShownQuery("cut a tomato", 7.5, shown)]))
    assert page.queries() == [
        {
            "caption": "cut a tomato",
            "rank": 7.5,
            "shown": [
                {
                    "rank": 1,
                    "video": "clip1.mp4",
                    "start_s": None,
                    "end_s": None,
                    "score": 0.1234568,
                    "correct": False,
                    "picture": None,
                },
                {
                    "rank": 7,
                    "video": "folder/right.gif",
                    "start_s": pytest.approx(11.2),
                    "end_s": pytest.approx(14.4),
                    "score": 9.125,
                    "correct": True,
                    "picture": 0,
                },
            ],
        }
    ]


@pytest.mark.parametrize(
    ("data", "kind"),
    [(loop(), "image/webp"), (still("PNG"), "image/png"), (still("JPEG"), "image/jpeg")],
    ids=["webp", "png", "jpeg"],
)
def test_a_picture_is_embedded_as_it_is(data: bytes, kind: str, tmp_path: Path) -> None:
    page = Reader(write(tmp_path / "p.html", [query("a", 1)], pictures={"loop": data}))
    uri = json.loads(page.data["picture-0"])
    assert uri == f"data:{kind};base64,{base64.b64encode(data).decode()}"


def test_each_picture_that_is_shown_is_embedded_once_and_no_other(tmp_path: Path) -> None:
    first, second, unused = loop(), loop((1, 2, 3)), loop((4, 5, 6))
    queries = [
        ShownQuery(f"{number}", 1, (video(1, picture="</script>"), video(2, picture="b"))) for number in range(50)
    ]
    path = write(tmp_path / "p.html", queries, pictures={"b": second, "unused": unused, "</script>": first})
    page, text = Reader(path), path.read_text(encoding="utf-8")
    assert {name for name in page.data if name.startswith("picture-")} == {"picture-0", "picture-1"}
    for data, count in ((first, 1), (second, 1), (unused, 0)):
        assert text.count(base64.b64encode(data).decode()) == count
    assert {(each["shown"][0]["picture"], each["shown"][1]["picture"]) for each in page.queries()} == {(0, 1)}
    assert json.loads(page.data["picture-0"]).endswith(base64.b64encode(first).decode())


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_breaks_out(text: str, tmp_path: Path) -> None:
    """Wherever the text is put, the page has the very elements of the page with a harmless text."""
    paths = [
        write(
            tmp_path / f"{name}.html",
            [ShownQuery(each, 1, (video(1, video=each, picture=each),))],
            title=each,
            facts=[(each, each)],
            pictures={each: loop()},
        )
        for name, each in (("harmless", "harmless"), ("hostile", text))
    ]
    harmless, hostile = map(Reader, paths)
    assert hostile.elements == harmless.elements
    assert hostile.data.keys() == harmless.data.keys()
    assert hostile.queries()[0]["caption"] == text
    assert hostile.queries()[0]["shown"][0]["video"] == text
    for tag in ("title", "h1", "dt", "dd"):
        assert "".join(hostile.text_of(tag)) == text.strip()
    assert "<" not in hostile.data["queries-data"]


def test_control_characters_and_undecodable_names_are_seen_and_written(tmp_path: Path) -> None:
    name = "a\x00b\x1b[2J\udcff\n.mp4"
    page = Reader(write(tmp_path / "p.html", [ShownQuery(name, 1, (video(1, video=name),))], title=name))
    expected = "a\\x00b\\x1b[2J\\udcff\\n.mp4"
    assert page.text_of("h1") == [expected]
    assert page.queries()[0]["caption"] == page.queries()[0]["shown"][0]["video"] == expected


def test_the_policy_allows_this_script_and_style_and_no_other(tmp_path: Path) -> None:
    path = write(tmp_path / "p.html", [query("a", 1)])
    text = path.read_text(encoding="utf-8")
    (policy,) = (
        str(fields["content"])
        for tag, fields in Reader(path).elements
        if tag == "meta" and fields.get("http-equiv") == "Content-Security-Policy"
    )
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for name, pattern in (("script-src", r"<script>(.*?)</script>"), ("style-src", r"<style>(.*?)</style>")):
        (content,) = re.findall(pattern, text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[name] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in policy


def test_the_page_names_no_other_file_or_address(tmp_path: Path) -> None:
    text = write(tmp_path / "p.html", [query("a", 1)]).read_text(encoding="utf-8")
    assert not re.findall(r"https?:|\b(?:src|href)=|@import|url\(", text)


def test_the_script_makes_no_markup_of_text() -> None:
    script = resources.files("milnce").joinpath("page.js").read_text(encoding="utf-8")
    for name in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "</"):
        assert name not in script


def test_an_evaluation_without_queries_is_a_page_too(tmp_path: Path) -> None:
    assert Reader(write(tmp_path / "p.html", [])).queries() == []


def test_an_existing_file_is_replaced_only_when_asked(tmp_path: Path) -> None:
    path = tmp_path / "p.html"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match=r"p.html: exists already; pass --overwrite \(overwrite=True\)"):
        write(path, [])
    assert path.read_text(encoding="utf-8") == "mine"
    write(path, [query("a", 1)], overwrite=True)
    assert len(Reader(path).queries()) == 1
    assert [each.name for each in tmp_path.iterdir()] == ["p.html"]


def test_where_no_file_can_be_made_the_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="missing: no such folder; make it first"):
        write(tmp_path / "missing" / "p.html", [])
    (tmp_path / "folder.html").mkdir()
    with pytest.raises(OutputError, match="is a folder; name a file in it"):
        write(tmp_path / "folder.html", [])


@pytest.mark.parametrize("name", ["captions.csv", "page", "page.html.gz"])
def test_only_a_name_of_a_page_is_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=r"suffix '.*' given; \.html or \.htm expected"):
        write(tmp_path / name, [], overwrite=True)
    assert (tmp_path / name).read_text() == "mine"
    write(tmp_path / "p.HTM", [])


def broken(error: Exception) -> Iterator[ShownQuery]:
    yield query("a", 1)
    raise error


def test_a_page_that_fails_midway_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "p.html", [query("old", 1)])
    before = path.read_bytes()
    with pytest.raises(OutputError, match=r"p.html: cannot write the page \(.*No space left"):
        write(path, broken(OSError(28, "No space left on device")), overwrite=True)
    with pytest.raises(KeyError):
        write(path, broken(KeyError("x")), overwrite=True)
    # An error of milnce's own keeps its kind, even one that is an OSError.
    with pytest.raises(BundleNotFoundError, match="gone"):
        write(path, broken(BundleNotFoundError("gone")), overwrite=True)
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["p.html"]


@pytest.mark.parametrize(
    ("changes", "rank", "message"),
    [
        ({}, 0.5, r"query 'q': rank must be a finite number, at least 1; got 0.5"),
        ({}, float("nan"), r"query 'q': rank must be a finite number, at least 1; got nan"),
        ({"score": float("inf")}, 1, r"query 'q', video 'clip1.mp4': score must be finite; got inf"),
        ({"start_s": float("nan")}, 1, r"query 'q', video 'clip1.mp4': start_s must be finite; got nan"),
        ({"picture": "no"}, 1, r"picture 'no' is shown by a query and not among the 2 pictures given"),
        ({"picture": "gif"}, 1, r"picture 'gif' begins with b'GIF89a'; the bytes of a WebP, PNG or JPEG file expected"),
    ],
)
def test_what_cannot_be_shown_is_refused(changes: dict[str, object], rank: float, message: str, tmp_path: Path) -> None:
    pictures = {"loop": loop(), "gif": b"GIF89a"}
    with pytest.raises(InputError, match=message):
        write(tmp_path / "p.html", [ShownQuery("q", rank, (video(1, **changes),))], pictures=pictures)
    assert list(tmp_path.iterdir()) == []


def test_a_row_of_the_wrong_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"table row \['a'\] has 1 cells; 2 expected: \['x', 'y'\]"):
        write_page(tmp_path / "p.html", title="", facts=[], table=(["x", "y"], [["a"]]), queries=[], pictures={})


class Made(Mapping[str, bytes]):
    """Pictures that are made when they are asked for, 20 kB each."""

    def __getitem__(self, key: str) -> bytes:
        return loop() + key.encode() * (20_000 // len(key))

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __contains__(self, key: object) -> bool:
        return True

    def __len__(self) -> int:
        return 0


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    count = 1000
    queries = (ShownQuery(f"{n}", 1, (video(1, picture=f"picture {n}"),)) for n in range(count))
    tracemalloc.start()
    try:
        path = write(tmp_path / "p.html", queries, pictures=Made())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > count * 20_000
    assert peak < 2_000_000  # 0.5 MB measured; the pictures alone are 27 MB as base64
