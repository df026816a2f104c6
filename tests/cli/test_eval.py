"""`milnce eval`: what it measures, prints and writes, how it fails, and what it does not do again."""

from __future__ import annotations

import json
import re
import shutil
import sys
from typing import TYPE_CHECKING, Any

import pytest

from helpers.tiny_bundle import write_tiny_bundle
from milnce import page
from milnce.errors import OutputError
from milnce.model import Model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from helpers.commands import Ran, Tiny

    Run = Callable[..., Ran]

ROWS = [
    ("a", "open the door", "unseen"),
    ("a", "door", "unseen"),
    ("b", "pour water", "seen"),
    ("c.mp4", "cut the tomato", "seen"),
]


def written(path: Path, rows: Sequence[tuple[str, ...]], header: str = "video,caption,split") -> Path:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    return written(tmp_path / "captions.csv", ROWS)


@pytest.fixture
def asked(tiny: Tiny, captions: Path) -> list[object]:
    return ["eval", "--bundle", tiny.path, "--captions", captions]


def table_of(stdout: str) -> list[list[str]]:
    return [line.split() for line in stdout.splitlines() if line.strip().startswith("this run")]


def test_the_table_has_both_directions(asked: list[object], videos: Path, run: Run) -> None:
    result = run(*asked, "--videos", videos)
    assert result.code == 0
    document = json.loads(run(*asked, "--videos", videos, "--json").stdout)
    for printed, row in zip(table_of(result.stdout), document["metrics"], strict=True):
        names = ("r1", "r5", "r10", "r50", "median_rank", "mean_rank", "geometric_mean")
        assert printed == ["this", "run", "ce", row["direction"], *(f"{row[name]:.1f}" for name in names)]
    assert [(row["direction"], row["queries"], row["candidates"]) for row in document["metrics"]] == [
        ("t2v", 4, 3),
        ("v2t", 3, 4),
    ]
    lines = result.stdout.splitlines()
    assert "ce t2v: 4 queries, 3 candidates, 0 ties" in lines
    assert "ce v2t: 3 queries, 4 candidates, 0 ties" in lines
    assert "clips: 3, of which 0 failed" in lines
    assert "columns of times: none, every clip is a whole video" in lines
    assert "captions without a known word: 0" in lines
    assert document["preset"]["size"] == 32
    assert document["model"]["name"] == "tiny"
    assert (document["published"], document["html"], document["features"]) == (None, None, [])
    assert "No column start or end: every clip is a whole video." in result.stderr
    assert ("YouCook2" in result.stdout, "source:" in result.stdout) == (False, False)


def test_both_metrics_can_be_printed(asked: list[object], videos: Path, run: Run) -> None:
    result = run(*asked, "--videos", videos, "--metric", "both")
    assert [row[2:4] for row in table_of(result.stdout)] == [["ce", "t2v"], ["ce", "v2t"], ["milnce", "t2v"]]
    assert "milnce t2v: 4 queries, 4 candidates, 2 ties, 6 samples" in result.stdout
    result = run(*asked, "--videos", videos, "--metric", "milnce", "--json")
    assert [row["definition"] for row in json.loads(result.stdout)["metrics"]] == ["mil-nce"]


def test_queries_are_some_rows_and_candidates_all(asked: list[object], videos: Path, run: Run) -> None:
    document = json.loads(run(*asked, "--videos", videos, "--queries", "split=unseen", "--json").stdout)
    assert [(row["queries"], row["candidates"]) for row in document["metrics"]] == [(2, 3), (1, 2)]
    document = json.loads(run(*asked, "--videos", videos, "--where", "split=seen", "--json").stdout)
    assert [(row["queries"], row["candidates"]) for row in document["metrics"]] == [(2, 2), (2, 2)]


def test_published_rows_stand_beside_it_with_their_sources(asked: list[object], videos: Path, run: Run) -> None:
    result = run(*asked, "--videos", videos, "--published")
    printed = [re.split(r"\s{2,}", line.strip()) for line in result.stdout.splitlines()]
    assert ["QuerYD: HowTo100m S3D", "ce", "t2v", "13.5", "27.5", "34.5", "57.0", "35.0", "72.5", "23.4"] in printed
    paper = ["YouCook2 validation: MIL-NCE S3D, paper", "milnce", "t2v", "15.1", "38.0", "51.2", "-", "10.0", "-", "-"]
    assert paper in printed
    assert result.stdout.count("\nsource: github.com/") == 4
    document = json.loads(run(*asked, "--videos", videos, "--published", "--json").stdout)
    assert len(document["published"]) == 8


def test_markdown_is_a_table_that_keeps_its_columns(asked: list[object], videos: Path, run: Run) -> None:
    result = run(*asked, "--videos", videos, "--markdown", "--published")
    assert result.code == 0
    rows = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert rows[0] == "| result | metrics | direction | R@1 | R@5 | R@10 | R@50 | MdR | MnR | Geom |"
    assert rows[1] == "| --- | --- | --- |" + " ---: |" * 7
    assert {row.count("|") for row in rows} == {11}
    assert len(rows) == 2 + 2 + 8
    assert "- ce t2v: 4 queries, 3 candidates, 0 ties" in result.stdout


@pytest.mark.parametrize("name", ["f.npz", "f.parquet"])
def test_stored_features_are_used_and_the_videos_need_not_be_there(
    name: str, asked: list[object], tiny: Tiny, videos: Path, tmp_path: Path, run: Run
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(videos, moved)
    assert run("embed", "--bundle", tiny.path, "--out", tmp_path / name, moved).code == 0
    from_videos = json.loads(run(*asked, "--videos", moved, "--json").stdout)
    shutil.rmtree(moved)
    result = run(*asked, "--features", tmp_path / name, "--json")
    assert result.code == 0
    document = json.loads(result.stdout)
    assert document["metrics"] == from_videos["metrics"]
    assert (document["clips_from_stored_features"], from_videos["clips_from_stored_features"]) == (3, 0)
    assert [(item["path"], item["precision"]) for item in document["features"]] == [(str(tmp_path / name), "fp32")]
    table = run(*asked, "--features", tmp_path).stdout  # the folder with the file
    assert "stored features: 3 clips, fp32 on " in table
    times = ["0.1,9", ",", ",", "2,99"]
    rows = [(video, caption, time) for (video, caption, _), time in zip(ROWS, times, strict=True)]
    timed = written(tmp_path / "timed.csv", rows, "video,caption,start,end")
    result = run("eval", "-b", tiny.path, "-c", timed, "--features", tmp_path)
    assert "stored features: 2 clips, fp32 on " in result.stdout
    assert "columns of times: start and end\n" in result.stdout
    assert "clips: 4, of which 2 failed" in result.stdout


def test_features_of_another_model_or_preset_are_refused(
    asked: list[object], tiny: Tiny, videos: Path, tmp_path: Path, run: Run
) -> None:
    write_tiny_bundle(tmp_path / "other", seed=1)
    features = tmp_path / "f.npz"
    assert run("embed", "--bundle", tmp_path / "other", "--out", features, videos / "a.mp4").code == 0
    result = run(*asked, "--features", features)
    assert (result.code, result.stdout) == (2, "")
    assert "f.npz: made with the model" in result.stderr
    assert run("embed", "--bundle", tiny.path, "--overwrite", "--out", features, videos, "--stride-frames", 2).code == 0
    result = run(*asked, "--features", features)
    assert (result.code, "f.npz: sampled with preset milnce-native, customised" in result.stderr) == (2, True)
    assert run(*asked, "--features", features, "--stride-frames", 2).code == 0


def test_stored_features_need_no_video_tower(
    captions: Path, tiny: Tiny, videos: Path, tmp_path: Path, run: Run
) -> None:
    assert run("embed", "--bundle", tiny.path, "--out", tmp_path / "f.npz", videos).code == 0
    write_tiny_bundle(tmp_path / "text", modules=["text"])
    asked = ["eval", "--captions", captions, "--features", tmp_path / "f.npz", "--json"]
    result = run(*asked, "--bundle", tmp_path / "text")
    assert result.code == 0
    assert json.loads(result.stdout)["metrics"] == json.loads(run(*asked, "--bundle", tiny.path).stdout)["metrics"]


def test_the_number_of_words_is_an_option(
    asked: list[object], videos: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int | None] = []
    encode = Model.encode_text

    def spy(model: Model, sentences: Any, *, max_words: int | None = None, **options: Any) -> Any:  # noqa: ANN401
        given.append(max_words)
        return encode(model, sentences, max_words=max_words, **options)

    monkeypatch.setattr(Model, "encode_text", spy)
    assert run(*asked, "--videos", videos).code == 0
    assert run(*asked, "--videos", videos, "--max-words", 30).code == 0
    assert given == [None, 30]


def test_failed_videos_are_listed_with_their_cost(
    asked: list[object], captions: Path, videos: Path, tmp_path: Path, run: Run
) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"nothing")
    written(captions, [*ROWS, ("broken", "run", "seen"), ("none", "water", "seen"), ("none", "cut", "unseen")])
    sources = ["--videos", videos, "--videos", tmp_path / "broken.mp4"]
    result = run(*asked, *sources)
    assert result.code == 1
    assert "Failed: broken: " in result.stderr
    assert "the file is damaged or not a video" in result.stderr
    assert "Failed: none: no such video among the 4 video files (costs 2 queries)\n" in result.stderr
    assert "2 of 5 clips failed, so 3 of 7 queries were not asked.\n" in result.stderr
    assert "queries lost: 3 to failed clips" in result.stdout
    document = json.loads(run(*asked, *sources, "--json").stdout)
    assert (document["queries"], document["queries_lost"], document["candidates"]) == (4, 3, 3)
    assert [(item["video"], item["queries"]) for item in document["failed"]] == [("broken", 1), ("none", 2)]
    only = json.loads(run(*asked, *sources, "--where", "split=seen", "--json").stdout)
    assert [row["queries"] for row in only["metrics"]] == [2, 2]


def test_when_every_video_fails_there_is_no_table(asked: list[object], tmp_path: Path, run: Run) -> None:
    (tmp_path / "x.mp4").write_bytes(b"nothing")
    page_path = tmp_path / "page.html"
    result = run(*asked, "--videos", tmp_path, "--html", page_path)
    assert (result.code, result.stdout) == (1, "No table: no query is left to ask.\n")
    assert not page_path.exists()
    result = run(*asked, "--videos", tmp_path, "--json", "--html", page_path)
    document = json.loads(result.stdout)
    assert (result.code, document["metrics"], document["html"]) == (1, [], None)


def test_bad_rows_stop_or_are_listed(asked: list[object], captions: Path, videos: Path, run: Run) -> None:
    written(captions, [*ROWS, ("a", "", "seen"), ("a", "door", "seen")])
    result = run(*asked, "--videos", videos)
    assert (result.code, result.stdout) == (2, "")
    assert "2 rows cannot be used" in result.stderr
    assert "  row 5: its caption is empty\n  row 6: the same clip and caption as row 2\n" in result.stderr
    result = run(*asked, "--videos", videos, "--skip-bad-rows")
    assert result.code == 0
    assert "Left out: row 5: its caption is empty\n" in result.stderr
    assert "2 rows of " in result.stderr
    assert "rows left out: 2" in result.stdout
    document = json.loads(run(*asked, "--videos", videos, "--skip-bad-rows", "--keep-duplicates", "--json").stdout)
    assert document["excluded_rows"] == [{"row": 5, "reason": "its caption is empty"}]
    assert document["queries"] == 5


def test_captions_without_a_known_word_are_reported(
    asked: list[object], captions: Path, videos: Path, run: Run
) -> None:
    written(captions, [*ROWS, ("b", "zucchini", "seen")])
    result = run(*asked, "--videos", videos)
    assert result.code == 0
    assert result.stderr.count("zucchini") == 1
    assert "Warning: no known word, asked as padding only: row 5: zucchini\n" in result.stderr
    assert "captions without a known word: 1" in result.stdout
    assert "ce t2v: 5 queries, 3 candidates" in result.stdout


def test_long_lists_are_cut_on_the_screen_and_whole_in_json(
    asked: list[object], captions: Path, videos: Path, run: Run
) -> None:
    written(captions, [*ROWS, *((f"none{number}", "run", "seen") for number in range(25))])
    result = run(*asked, "--videos", videos, "--json")
    assert result.stderr.count("Failed: none") == 10
    assert "Failed: and 15 more; --json lists all.\n" in result.stderr
    assert len(json.loads(result.stdout)["failed"]) == 25


def test_column_names_are_options(tiny: Tiny, videos: Path, tmp_path: Path, run: Run) -> None:
    folder = tmp_path / "data" / "validation" / "226"
    shutil.copytree(videos, folder)
    header = "end,start,task,text,video_id"
    path = written(
        tmp_path / "validation_youcook.csv", [("1", "0", "226", "run", "a"), ("2.5", "1", "226", "cut", "c")], header
    )
    asked = ["eval", "--bundle", tiny.path, "--captions", path, "--videos", tmp_path / "data", "--json"]
    names = ["--video-column", "validation/{task}/{video_id}", "--caption-column", "text"]
    result = run(*asked, *names)
    assert result.code == 0
    document = json.loads(result.stdout)
    assert (document["queries"], document["candidates"], document["times"]) == (2, 2, ["start", "end"])
    assert "No column start or end" not in result.stderr
    assert json.loads(run(*asked, *names, "--start-column", "start", "--end-column", "end").stdout) == document
    result = run(*asked[:-1], "--video-column", "video_id")
    assert result.code == 2
    assert "no column caption; there are end, start, task, text, video_id." in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "no videos: give --videos FOLDER, --features FILE, or both"),
        (["--videos", "nowhere"], "nowhere: no such folder or video"),
        (["--features", "nowhere.npz"], "nowhere.npz: no such features file"),
        (["--videos", "n" * 300], "no such folder or video"),
        (["--features", "n" * 300 + ".npz"], "no such features file"),
        (["--videos", ".", "--max-words", "10001"], "10000"),
        (["--videos", ".", "--metric", "map"], "no metric 'map'; there are ce, milnce, both"),
        (["--videos", ".", "--json", "--markdown"], "--json and --markdown are given, and there is one output"),
        (["--videos", ".", "--where", "split"], "--where 'split' given; COLUMN=VALUE expected, such as split=test"),
        (["--videos", ".", "--queries", "=x"], "--queries '=x' given; COLUMN=VALUE expected"),
        (
            ["--videos", ".", "--queries", "split=dev"],
            "no row with split=dev, as --queries asks for; split has 'unseen'",
        ),
        (
            ["--videos", ".", "--queries", "split=seen", "--metric", "both"],
            "1 of 3 clips have no query; leave --queries",
        ),
    ],
)
def test_wrong_options_are_refused_before_any_work(
    options: list[object], message: str, asked: list[object], run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*asked, *options)
    assert result.code == 2
    assert message in result.stderr


def test_what_the_system_refuses_is_one_line(
    asked: list[object], videos: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", "closed\x1b/f.csv")

    monkeypatch.setattr("milnce.captions.read_captions", refuse)
    result = run(*asked, "--videos", videos)
    assert (result.code, result.stdout) == (1, "")
    assert result.stderr == "Error: closed\\x1b/f.csv: Permission denied\n"
    document = json.loads(run(*asked, "--videos", videos, "--json").stdout)
    assert document == {"error": {"type": "PermissionError", "message": "closed\x1b/f.csv: Permission denied"}}


def data_of(page_path: Path) -> list[dict[str, Any]]:
    """Return the queries that the page holds."""
    text = page_path.read_text(encoding="utf-8")
    found = re.search(r'<script type="application/json" id="queries-data">(.*?)</script>', text, re.DOTALL)
    assert found
    queries: list[dict[str, Any]] = json.loads(found[1])
    return queries


def test_the_page_shows_queries_with_their_top_clips(
    asked: list[object], videos: Path, tmp_path: Path, run: Run
) -> None:
    path = tmp_path / "page.html"
    result = run(*asked, "--videos", videos, "--html", path, "--html-top", 1, "--json")
    assert result.code == 0
    document = json.loads(result.stdout)
    assert (document["html"], document["html_error"]) == (str(path), None)
    assert "page.html: 4 of 4 queries, 3 pictures" in result.stderr
    queries = data_of(path)
    assert [query["caption"] for query in queries] == [caption for _, caption, _ in ROWS]
    hits = sum(query["rank"] == 1 for query in queries)
    assert document["metrics"][0]["r1"] == 25 * hits
    for query in queries:
        assert [video["correct"] for video in query["shown"]] == ([True] if query["rank"] == 1 else [False, True])
    text = path.read_text(encoding="utf-8")
    assert text.count("data:image/webp;base64,") == 3
    assert "4 of 4, evenly chosen" in text
    assert f"{document['metrics'][0]['mean_rank']:.1f}" in text
    run(*asked, "--videos", videos, "--html", path, "--html-queries", 2, "--overwrite")
    assert [query["caption"] for query in data_of(path)] == [ROWS[0][1], ROWS[3][1]]


def test_a_page_is_replaced_only_when_asked_and_checked_first(
    asked: list[object], tmp_path: Path, videos: Path, run: Run
) -> None:
    path = tmp_path / "page.html"
    path.write_text("old")
    result = run(*asked, "--videos", videos, "--html", path)
    assert (result.code, result.stdout, path.read_text()) == (1, "", "old")
    assert "page.html: exists already; pass --overwrite" in result.stderr


def test_a_page_takes_no_other_name_than_that_of_a_page(
    asked: list[object], captions: Path, tmp_path: Path, videos: Path, run: Run
) -> None:
    before = captions.read_text()
    result = run(*asked, "--videos", videos, "--html", captions, "--overwrite")
    assert (result.code, result.stdout, captions.read_text()) == (1, "", before)
    assert "captions.csv: suffix '.csv' given; .html or .htm expected" in result.stderr
    result = run(*asked, "--videos", videos, "--html", tmp_path / f"{'n' * 300}.html")
    assert (result.code, result.stdout) == (1, "")
    assert ".html: no such name can be made (File name too long); choose another" in result.stderr


def test_a_page_that_fails_does_not_cost_the_table(
    asked: list[object], tmp_path: Path, videos: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OutputError("page.html: cannot write the page (disk full)")

    monkeypatch.setattr(page, "write_page", full)
    result = run(*asked, "--videos", videos, "--html", tmp_path / "page.html")
    assert (result.code, len(table_of(result.stdout))) == (1, 2)
    assert "Failed: page.html: cannot write the page (disk full)" in result.stderr
    document = json.loads(run(*asked, "--videos", videos, "--html", tmp_path / "page.html", "--json").stdout)
    assert (document["html"], document["html_error"]) == (None, "page.html: cannot write the page (disk full)")


def test_a_picture_that_is_missing_is_said_and_the_page_written(
    asked: list[object], tiny: Tiny, videos: Path, tmp_path: Path, run: Run
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(videos, moved)
    assert run("embed", "--bundle", tiny.path, "--out", tmp_path / "f.npz", moved).code == 0
    (moved / "a.mp4").unlink()
    path = tmp_path / "page.html"
    result = run(*asked, "--features", tmp_path / "f.npz", "--html", path)
    assert result.code == 0
    assert "No picture of 1 clip on the page; the first: " in result.stderr
    pictures = {video["video"]: video["picture"] for query in data_of(path) for video in query["shown"]}
    assert (pictures["a"], None in (pictures["b"], pictures["c.mp4"])) == (None, False)
    # With the folder of the videos beside the features, pictures are of these.
    run(*asked, "--features", tmp_path / "f.npz", "--videos", videos, "--html", path, "--overwrite")
    assert None not in [video["picture"] for query in data_of(path) for video in query["shown"]]


def test_a_page_wants_pillow_and_says_so_first(
    asked: list[object], videos: Path, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    result = run(*asked, "--videos", videos, "--html", tmp_path / "page.html")
    assert (result.code, result.stdout) == (1, "")
    assert 'looping pictures need Pillow; run: pip install "milnce[video]"' in result.stderr


def test_text_of_captions_and_names_does_not_reach_the_terminal_raw(
    asked: list[object], captions: Path, videos: Path, run: Run
) -> None:
    written(captions, [*ROWS, ("b", "\x1b[31mzucchini", "seen"), ("no\x1b[2Jne", "run", "seen")])
    result = run(*asked, "--videos", videos)
    assert result.code == 1
    assert "\x1b" not in result.stderr + result.stdout
    assert "\\x1b[31mzucchini" in result.stderr
    assert "no\\x1b[2Jne" in result.stderr


def test_the_page_escapes_captions(asked: list[object], captions: Path, videos: Path, tmp_path: Path, run: Run) -> None:
    written(captions, [*ROWS, ("b", "</script><script>alert(1)</script> run", "seen")])
    path = tmp_path / "page.html"
    assert run(*asked, "--videos", videos, "--html", path).code == 0
    assert "<script>alert" not in path.read_text(encoding="utf-8")
    assert data_of(path)[-1]["caption"] == "</script><script>alert(1)</script> run"


def test_precision_and_backend_are_named(asked: list[object], videos: Path, run: Run) -> None:
    result = run(*asked, "--videos", videos, "--backend", "onnxruntime", "--precision", "fp16")
    assert result.code == 0
    assert "model: tiny, fp16 on onnxruntime cpu\n" in result.stdout
