"""Captions files: the published lists as they are, several captions a clip, filters, and everything that is refused."""

from __future__ import annotations

import re
import sys
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from milnce.captions import Caption, CaptionColumns, Captions, Clip, ExcludedRow, read_captions
from milnce.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from pathlib import Path

# The headers and first rows of antoine77340/MIL-NCE_HowTo100M, csv/, and of the MSVD corpus.
YOUCOOK = """end,start,task,text,video_id
60,47,226,pick the ends off the verdalago,xHr8X2Wpmno
89,67,226,combine lemon juice sumac garlic salt and oil in a bowl,xHr8X2Wpmno
"""
MSRVTT = """key,vid_key,video_id,sentence
ret0,msr9770,video9770,a person is connecting something to system
ret1,msr9771,video9771,a little girl does gymnastics
"""
MSVD = """VideoID,Start,End,WorkerID,Source,AnnotationTime,Language,Description
mv89psg6zh4,33,46,588702,unverified,55,Slovene,Papagaj se umiva pod tekočo vodo v lijaku.
mv89psg6zh4,33,46,588702,clean,89,English,A bird in a sink keeps getting under the running water.
mv89psg6zh4,33,46,588703,clean,11,English,A parrot is bathing.
"""


def written(folder: Path, text: str, name: str = "captions.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def table(folder: Path, **columns: Any) -> Path:  # noqa: ANN401  # columns of any type
    path = folder / "captions.parquet"
    parquet.write_table(pa.table(columns), path)
    return path


def sentences(captions: Captions) -> list[tuple[str, str]]:
    return [(str(captions.clips[caption.clip]), caption.text) for caption in captions.captions]


def test_several_rows_with_the_same_clip_are_captions_of_one_clip(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "video,start,end,caption\na.mp4,0,2.5,open door\nb,,,run\na.mp4,0.0,2.50,the door\na.mp4,2.5,,pour water\n",
    )
    captions = read_captions(path)
    assert captions.clips == (Clip("a.mp4", None, 2.5), Clip("b", None, None), Clip("a.mp4", 2.5, None))
    assert captions.captions == (
        Caption(1, "open door", 0, query=True),
        Caption(2, "run", 1, query=True),
        Caption(3, "the door", 0, query=True),
        Caption(4, "pour water", 2, query=True),
    )
    assert (captions.excluded, captions.times, captions.path) == ((), ("start", "end"), path)
    assert [str(clip) for clip in captions.clips] == ["a.mp4 [0 s to 2.5 s]", "b", "a.mp4 [2.5 s to the end]"]


def test_youcook2_loads_as_published(tmp_path: Path) -> None:
    columns = CaptionColumns(video="validation/{task}/{video_id}", caption="text")
    captions = read_captions(written(tmp_path, YOUCOOK, "validation_youcook.csv"), columns)
    assert captions.clips == (
        Clip("validation/226/xHr8X2Wpmno", 47, 60),
        Clip("validation/226/xHr8X2Wpmno", 67, 89),
    )
    assert captions.captions[0].text == "pick the ends off the verdalago"


def test_msrvtt_loads_as_published(tmp_path: Path) -> None:
    captions = read_captions(written(tmp_path, MSRVTT), CaptionColumns(video="video_id", caption="sentence"))
    assert sentences(captions)[1] == ("video9771", "a little girl does gymnastics")
    assert captions.times == ()


def test_msvd_loads_as_published(tmp_path: Path) -> None:
    columns = CaptionColumns(
        video="{VideoID}_{Start}_{End}", caption="Description", where=(("Language", "English"), ("Source", "clean"))
    )
    captions = read_captions(written(tmp_path, MSVD), columns)
    assert captions.clips == (Clip("mv89psg6zh4_33_46", None, None),)
    assert [caption.row for caption in captions.captions] == [2, 3]


def test_named_columns_of_times_are_taken(tmp_path: Path) -> None:
    columns = CaptionColumns(video="VideoID", caption="Description", start="Start", end="End")
    captions = read_captions(written(tmp_path, MSVD), columns)
    assert captions.clips == (Clip("mv89psg6zh4", 33, 46),)
    assert captions.times == ("Start", "End")


def test_parquet_tabs_and_a_byte_order_mark_load_alike(tmp_path: Path) -> None:
    expected = [("a [1 s to 2 s]", "café"), ("b", "cut, then pour")]
    marked = '\ufeffvideo,start,end,caption\na,1,2,café\n\nb,,,"cut, then pour"\n'
    assert sentences(read_captions(written(tmp_path, marked))) == expected
    tabs = "video\tstart\tend\tcaption\na\t1\t2\tcafé\nb\t\t\tcut, then pour\n"
    assert sentences(read_captions(written(tmp_path, tabs, "c.TSV"))) == expected
    stored = table(
        tmp_path, video=["a", "b"], start=[1.0, None], end=[2, None], caption=["café", "cut, then pour"], size=[1, 2]
    )
    assert sentences(read_captions(stored)) == expected


def test_queries_are_chosen_and_the_others_stay_candidates(tmp_path: Path) -> None:
    path = written(tmp_path, "video,caption,split\na,run,seen\nb,cut,unseen\nc,pour,seen\nb,open,seen\n")
    captions = read_captions(path, CaptionColumns(queries=(("split", "unseen"),)))
    assert [caption.query for caption in captions.captions] == [False, True, False, False]
    assert [clip.video for clip in captions.clips] == ["a", "b", "c"]
    only = read_captions(path, CaptionColumns(where=(("split", "seen"),)))
    assert [caption.row for caption in only.captions] == [1, 3, 4]


HEADER = "video,start,end,caption\n"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a,,,", "its caption is empty"),
        ("a,,,  ", "its caption is empty"),
        (" ,,,run", "its video is empty"),
        ("a,60,47,run", "its start 60 s is not before its end 47 s"),
        ("a,3,3,run", "its start 3 s is not before its end 3 s"),
        ("a,,0,run", "its start 0 s is not before its end 0 s"),
        ("a,soon,,run", "start is 'soon'; a number of seconds of at least 0 expected"),
        ("a,,0:47,run", "end is '0:47'; a number of seconds"),
        ("a,-1,2,run", "start is '-1'; a number of seconds of at least 0"),
        ("a,nan,2,run", "start is 'nan'"),
        ("a,1_0,20,run", "start is '1_0'; a number of seconds"),
        ("a,1,inf,run", "end is 'inf'"),
        ("a,1,2", "has 3 cells, and the header 4"),
        ("a,1,2,run, fast", "has 5 cells, and the header 4"),
        ("z,1,2,cut", "the same clip and caption as row 1"),
    ],
)
def test_a_bad_row_is_refused_or_listed_with_its_number(row: str, reason: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"{HEADER}z,1,2,cut\n{row}\nb,1,2,run\n")
    with pytest.raises(InputError) as refused:
        read_captions(path)
    message = str(refused.value)
    assert message.startswith(f"{path}: 1 row cannot be used")
    assert f"  row 2: {reason}" in message
    assert "leave them out with --skip-bad-rows" in message
    captions = read_captions(path, skip_bad_rows=True)
    assert [caption.row for caption in captions.captions] == [1, 3]
    assert [(item.row, item.reason.startswith(reason)) for item in captions.excluded] == [(2, True)]


def test_repeated_rows_can_be_kept(tmp_path: Path) -> None:
    path = written(tmp_path, f"{HEADER}a,1,2,cut\na,1,2,cut\na,1.0,2,cut\na,1,3,cut\n")
    with pytest.raises(InputError, match="--keep-duplicates"):
        read_captions(path)
    assert read_captions(path, skip_bad_rows=True).excluded == tuple(
        ExcludedRow(row, "the same clip and caption as row 1") for row in (2, 3)
    )
    kept = read_captions(path, keep_duplicates=True)
    assert [caption.clip for caption in kept.captions] == [0, 0, 0, 1]


def test_only_the_first_bad_rows_are_listed(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + "a,2,1,run\n" * 25)
    with pytest.raises(InputError) as refused:
        read_captions(path)
    assert "25 rows cannot be used" in str(refused.value)
    assert str(refused.value).count("  row ") == 10
    assert "and 15 more" in str(refused.value)


def test_missing_text_in_parquet_is_no_word(tmp_path: Path) -> None:
    path = table(
        tmp_path, video=["a", "b", "c"], caption=pa.array(["run", None, "cut"]), start=[0.0, 0.0, float("nan")]
    )
    captions = read_captions(path, CaptionColumns(start="start"), skip_bad_rows=True)
    assert [(item.row, item.reason[:20]) for item in captions.excluded] == [
        (2, "its caption is empty"),
        (3, "start is nan; a numb"),
    ]
    numbers = table(tmp_path, video=["a", "b"], caption=pa.array([float("nan"), 2.0]), start=[True, True])
    with pytest.raises(InputError, match=r"row 1: its caption is empty\n  row 2: start is True; a number"):
        read_captions(numbers, CaptionColumns(start="start"))


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("caption", ["run", "go"], "caption is a list; text expected"),
        ("caption", b"run", "caption is a bytes; text expected"),
        ("caption", {"en": "run"}, "caption is a dict; text expected"),
        ("video", ["a"], "video is a list; text expected"),
    ],
)
def test_a_cell_that_is_no_text_is_not_made_one(column: str, value: object, reason: str, tmp_path: Path) -> None:
    path = table(tmp_path, **{"video": ["a"], "caption": ["run"], column: [value]})
    with pytest.raises(InputError, match=f"row 1: {reason}"):
        read_captions(path)
    pattern = CaptionColumns(video="v/{video}") if column == "video" else None
    with pytest.raises(InputError, match=f"row 1: {reason}"):
        read_captions(path, pattern)


def test_numbers_are_text(tmp_path: Path) -> None:
    numbers = table(tmp_path, video=[7], caption=[Decimal("2.5")], split=[3])
    read = read_captions(numbers, CaptionColumns(video="v/{video}", where=(("split", "3"),)))
    assert sentences(read) == [("v/7", "2.5")]


def test_text_that_is_not_utf_8_in_parquet_is_refused(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 4], np.int32)), pa.py_buffer(b"caf\xe9")]
    )
    path = table(tmp_path, video=["a"], caption=broken)
    with pytest.raises(InputError, match=r"captions\.parquet: damaged, its text is not UTF-8"):
        read_captions(path)


def test_a_start_of_zero_is_the_start_of_the_video(tmp_path: Path) -> None:
    path = written(tmp_path, f"{HEADER}a,,2,run\na,0,2,cut\na,0.0,,pour\na,,,open\na,-0.0,,run\n")
    captions = read_captions(path)
    assert captions.clips == (Clip("a", None, 2.0), Clip("a", None, None))
    assert [caption.clip for caption in captions.captions] == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("start,stop", "column start and none named end. Name the one with --end-column; or name --start-column start"),
        ("begin,end", "a column end and none named start. Name the one with --start-column; or name --end-column end"),
    ],
)
def test_one_column_of_times_alone_is_not_guessed(header: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, f"video,{header},caption\na,1,2,run\n")
    with pytest.raises(InputError, match=re.escape(message)):
        read_captions(path)
    first, second = header.split(",")
    both = read_captions(path, CaptionColumns(start=first, end=second))
    assert (both.clips, both.times) == ((Clip("a", 1, 2),), (first, second))
    alone = CaptionColumns(start="start") if first == "start" else CaptionColumns(end="end")
    assert len(read_captions(path, alone).times) == 1


def test_blank_lines_count_as_rows(tmp_path: Path) -> None:
    path = written(tmp_path, f"{HEADER}\na,1,2,cut\n\n\nb,2,1,run\n")
    captions = read_captions(path, skip_bad_rows=True)
    assert [caption.row for caption in captions.captions] == [2]
    assert [item.row for item in captions.excluded] == [5]


@pytest.mark.parametrize(
    ("name", "header", "hint"),
    [
        ("c.csv", "video;caption", "only 'video;caption'. Its first line has semicolons; commas in a .csv file"),
        ("c.csv", "video\tcaption", "Its first line has tabs; commas in a .csv file expected, so save it with these"),
        ("c.tsv", "video,caption", "Its first line has commas; tabs in a .tsv file expected"),
        ("c.csv", "video", "there is only 'video'. Name the right ones with --video-column"),
        ("c.csv", "video,caption;x", "there are video, caption;x. Name the right ones with --video-column"),
    ],
)
def test_another_separator_is_seen(name: str, header: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=re.escape(hint)):
        read_captions(written(tmp_path, f"{header}\na;run\n", name))


@pytest.mark.parametrize("field", ["where", "queries"])
def test_a_missing_column_of_a_filter_points_to_the_filters(field: str, tmp_path: Path) -> None:
    path = written(tmp_path, "video,caption\na,run\n")
    filters: Any = {field: (("split", "test"),)}
    with pytest.raises(InputError, match=r"no column split; .*Name the right ones in --where and --queries"):
        read_captions(path, CaptionColumns(**filters))


@pytest.mark.parametrize(
    ("columns", "missing"),
    [
        (CaptionColumns(), "caption, video"),
        (CaptionColumns(video="video_id"), "caption"),
        (CaptionColumns(video="{task}/{id}", caption="sentence"), "id, task"),
        (CaptionColumns(video="video_id", caption="sentence", start="start"), "start"),
        (CaptionColumns(video="video_id", caption="sentence", where=(("split", "test"),)), "split"),
        (CaptionColumns(video="video_id", caption="sentence", queries=(("seen", "0"),)), "seen"),
    ],
)
def test_a_missing_column_is_named_with_those_that_are_there(
    columns: CaptionColumns, missing: str, tmp_path: Path
) -> None:
    path = written(tmp_path, MSRVTT)
    with pytest.raises(InputError) as refused:
        read_captions(path, columns)
    expected = f"{path}: no column {missing}; there are key, vid_key, video_id, sentence. Name the right ones "
    assert str(refused.value).startswith(expected)


def test_filters_that_leave_nothing_say_what_there_is(tmp_path: Path) -> None:
    path = written(tmp_path, "video,caption,split\n" + "".join(f"v{i},c{i},s{i}\n" for i in range(12)))
    with pytest.raises(
        InputError, match=r"no row with split=test, as --where asks for; split has 's0', .*'s9', \.\.\."
    ):
        read_captions(path, CaptionColumns(where=(("split", "test"),)))
    with pytest.raises(InputError, match="no row with split=S1, as --queries asks for; split has 's0'"):
        read_captions(path, CaptionColumns(queries=(("split", "S1"),)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty; a first line with the names of the columns expected"),
        (b"\n", "its first line is blank; a first line with"),
        (b"\nvideo,caption\n", "its first line is blank; a first line with"),
        (b"video,caption,,\na,b,,\n", "2 columns have no name; name or remove them"),
        (b"video,caption\n", "no rows under the header"),
        (b"video,caption,video\na,b,c\n", "column video is there twice"),
        (b"video,caption\na,caf\xe9\n", "not UTF-8 .*; save it as UTF-8"),
        (b'video,caption\na,"run\n', r"line 2 is no CSV \(unexpected end of data\)"),
        (b'video,caption\na,"run"x\n', "line 2 is no CSV"),
        (b"video,caption\na," + b"x" * 200_000 + b"\n", "line 2 is no CSV .*field larger than field limit"),
        (b"video,caption\na,\n", "row 1: its caption is empty"),
    ],
)
def test_a_file_that_is_no_table_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.csv"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message) as refused:
        read_captions(path)
    assert str(refused.value).startswith(str(path))


def test_nothing_left_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, f"{HEADER}a,2,1,run\n")
    with pytest.raises(InputError, match="no caption is left to ask; 1 bad rows are left out"):
        read_captions(path, skip_bad_rows=True)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"suffix '\.json' given; a captions file ends in \.csv, \.tsv, \.parquet"):
        read_captions(tmp_path / "captions.json")
    with pytest.raises(InputError, match="no such captions file"):
        read_captions(tmp_path / "captions.csv")
    with pytest.raises(InputError, match="no such captions file"):
        read_captions(tmp_path / f"{'n' * 300}.csv")
    damaged = tmp_path / "captions.parquet"
    damaged.write_bytes(b"PAR1 nonsense")
    with pytest.raises(InputError, match="damaged, or not Parquet"):
        read_captions(damaged)


def test_parquet_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path, video=["a"], caption=["run"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "milnce\[parquet\]"'):
        read_captions(path)


def test_a_pattern_reads_columns_and_nothing_else(tmp_path: Path) -> None:
    path = written(tmp_path, "video,caption\na,run\n")
    with pytest.raises(InputError, match=r"no column video\.__class__; there are video, caption"):
        read_captions(path, CaptionColumns(video="{video.__class__}"))
