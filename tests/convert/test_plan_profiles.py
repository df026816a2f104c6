"""What sizes plans are built for: the bundle's own, those asked for, and those refused before anything is built."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Any

import pytest

from helpers.tiny_bundle import write_tiny_bundle
from milnce.bundle import Bundle
from milnce.errors import InputError
from milnce_convert.plan_profiles import LARGEST_VOLUME, PlanSizes, Span, make_profiles, parse_pictures, parse_spans

if TYPE_CHECKING:
    from pathlib import Path

    from milnce.plans import Shape


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return the tiny bundle: clips of 4 frames and 32 pixels, from 4 frames and 16 pixels on in steps of 2."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    write_tiny_bundle(path, largest_batch=256)
    return Bundle.open(path)


def shapes(tiny: Bundle, module: str, form: str | None = None, **sizes: Any) -> list[tuple[Shape, Shape, Shape]]:  # noqa: ANN401 - fields of PlanSizes
    graph = tiny.graph(module, input_form=form)
    found = make_profiles(graph, tiny.manifest, PlanSizes(**sizes))
    assert all(set(profile.shapes) == {graph.inputs[0].name} for profile in found)
    return [profile.shapes[graph.inputs[0].name] for profile in found]


def test_by_default_there_is_a_fixed_profile_for_each_bucket(tiny: Bundle) -> None:
    assert shapes(tiny, "video") == [((n, 4, 32, 32, 3),) * 3 for n in (1, 2, 4, 8, 16, 32)]
    assert shapes(tiny, "video", "float32")[-1] == ((32, 3, 4, 32, 32),) * 3
    assert shapes(tiny, "text") == [((n, 16),) * 3 for n in (1, 8, 32, 256)]
    assert shapes(tiny, "projection") == [((n, 12),) * 3 for n in (1, 8, 32, 256)]


def test_lists_and_ranges_are_combined_with_each_other(tiny: Bundle) -> None:
    found = shapes(
        tiny,
        "video",
        batch=parse_spans("1,2:8", "--batch"),
        frames=parse_spans("4,8:16", "--frames"),
        pictures=parse_pictures("32,20x40", "--size"),
    )
    assert len(found) == 8
    assert found[0] == ((1, 4, 32, 32, 3),) * 3
    assert found[1] == ((2, 4, 32, 32, 3), (8, 4, 32, 32, 3), (8, 4, 32, 32, 3))
    assert found[2] == ((1, 4, 20, 40, 3),) * 3
    assert found[-1] == ((2, 8, 20, 40, 3), (8, 16, 20, 40, 3), (8, 16, 20, 40, 3))


def test_a_range_is_tuned_for_the_bundles_own_size_where_it_holds_that(tiny: Bundle) -> None:
    assert shapes(tiny, "video", batch=(Span.fixed(1),), pictures=parse_pictures("16:64", "--size")) == [
        ((1, 4, 16, 16, 3), (1, 4, 32, 32, 3), (1, 4, 64, 64, 3))
    ]
    one = (Span.fixed(1),)
    assert shapes(tiny, "video", batch=one, pictures=parse_pictures("40:64", "--size"))[0][1][2:4] == (64, 64)
    batches, words = parse_spans("1:8:32", "--text-batch"), parse_spans("1:32", "--words")
    assert shapes(tiny, "text", text_batch=batches, words=words) == [((1, 1), (8, 16), (32, 32))]
    assert shapes(tiny, "projection", text_batch=parse_spans("1:64", "")) == [((1, 12), (64, 12), (64, 12))]


def test_a_range_is_not_tuned_for_a_size_that_the_graph_does_not_take(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", sampling={"preset": "milnce-native", "size": 33, "frames": 5})
    bundle = Bundle.open(tmp_path / "b")
    frames, pictures = parse_spans("4:8", "--frames"), parse_pictures("16:64", "--size")
    assert shapes(bundle, "video", batch=(Span.fixed(1),), frames=frames, pictures=pictures) == [
        ((1, 4, 16, 16, 3), (1, 8, 64, 64, 3), (1, 8, 64, 64, 3))
    ]
    with pytest.raises(InputError, match=r"frames 5 asked for; .* takes frames=4\.\. step 2 there"):
        shapes(bundle, "video")


def test_the_same_profile_is_made_once(tiny: Bundle) -> None:
    assert len(shapes(tiny, "video", batch=parse_spans("4,4,4:4", "--batch"))) == 1


def test_text_takes_no_batches_of_clips(tiny: Bundle) -> None:
    assert len(shapes(tiny, "text", batch=(Span.fixed(3),), frames=(Span.fixed(8),))) == 4


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"frames": "5"}, r"frames 5 asked for; video uint8 fp32 .* takes frames=4\.\. step 2 there"),
        ({"frames": "2:5"}, r"frames 2, 5 asked for; "),
        ({"frames": "4:5:6"}, r"frames 5 asked for; "),
        ({"pictures": "14"}, r"size 14 asked for; .* takes height=16\.\. step 2 there"),
        (
            {"pictures": "32x33"},
            r"size 33 asked for; .* takes width=16\.\. step 2 there \(video uint8 \(batch=",
        ),
        ({"batch": "1,300"}, r"batch 300 asked for; .* takes batch=1\.\.256 there"),
    ],
)
def test_sizes_that_the_graph_does_not_take_are_refused(sizes: dict[str, str], said: str, tiny: Bundle) -> None:
    asked: dict[str, Any] = {
        name: parse_pictures(text, "--size") if name == "pictures" else parse_spans(text, name)
        for name, text in sizes.items()
    }
    with pytest.raises(InputError, match=said):
        shapes(tiny, "video", **asked)


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            {"batch": "1:256", "frames": "8192", "pictures": "224"},
            "256 x 8192 x 224 x 224 x 3 asked for, which is 3156",
        ),
        (
            {"batch": "1", "pictures": "20000"},
            "1 x 4 x 20000 x 20000 x 3 asked for, which is 4800000000 elements; a te",
        ),
        ({"batch": "1", "frames": "4:1000000"}, "1 x 1000000 x 32 x 32 x 3 asked for, which is 3072000000 elements; "),
    ],
)
def test_tensors_that_end_the_builders_process_are_refused(sizes: dict[str, str], said: str, tiny: Bundle) -> None:
    asked = {
        name: parse_pictures(text, name) if name == "pictures" else parse_spans(text, name)
        for name, text in sizes.items()
    }
    for form in ("uint8", "float32"):
        with pytest.raises(InputError, match=r"elements; a tensor of TensorRT has 2147483647 at most") as caught:
            shapes(tiny, "video", form, **asked)
        assert form == "float32" or said in str(caught.value)


def test_the_largest_tensor_that_is_allowed_is_taken(tiny: Bundle) -> None:
    def largest(frames: int) -> tuple[Shape, Shape, Shape]:
        side = Span.fixed(1024)
        (found,) = shapes(tiny, "video", batch=(Span.fixed(1),), frames=(Span.fixed(frames),), pictures=((side, side),))
        return found

    frames = LARGEST_VOLUME // (1024 * 1024 * 3) // 2 * 2
    assert largest(frames)[2] == (1, frames, 1024, 1024, 3)
    with pytest.raises(InputError, match="elements; a tensor of TensorRT has"):
        largest(frames + 2)


def test_axes_that_the_export_fixed_are_kept(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", largest_batch=1)
    bundle = Bundle.open(tmp_path / "b")
    with pytest.raises(InputError, match=r"batch 2 asked for; .* takes 1 there"):
        shapes(bundle, "video")
    assert shapes(bundle, "video", batch=(Span.fixed(1),)) == [((1, 4, 32, 32, 3),) * 3]


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "a", "1,", "1:", ":1", "4:2", "1:9:8", "1:2:3:4", "1.5", "1x2", "²", "9999999999", "1;2"]
)
def test_sizes_that_cannot_be_read_are_named(text: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_spans(text, "--batch")
    assert str(caught.value) == (
        f"--batch {shlex.quote(text)} given; sizes from 1 expected: 8, or several (1,8,32), or a range (1:32, or "
        "1:8:32 tuned for 8)"
    )


def test_an_empty_size_is_seen() -> None:
    with pytest.raises(InputError, match=r"^--batch '' given; "):
        parse_spans("", "--batch")


@pytest.mark.parametrize("text", ["", "1x2x3", "x", "224x", "0x5", "224:200", "10x20:20x10"])
def test_pictures_that_cannot_be_read_are_named(text: str) -> None:
    with pytest.raises(InputError, match=r"^--size .* given; sizes from 1 .* or 240x320 \(height x width\)$"):
        parse_pictures(text, "--size")
