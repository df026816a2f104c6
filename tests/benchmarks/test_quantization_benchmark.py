"""The benchmark of quantisation: a target for each measure and direction, and an exit code that says one was missed."""

from __future__ import annotations

from typing import Any

import pytest

import quantization


def row(name: str, **changes: float) -> dict[str, Any]:
    """Return a row with recalls of 90; a change is named as in t2v_r1."""
    recall = {
        direction: {measure: changes.get(f"{direction}_{measure}", 90.0) for measure in ("r1", "r5", "r10")}
        for direction in ("t2v", "v2t")
    }
    return {"name": name, "recall": recall}


def test_both_measures_of_both_directions_of_each_precision_are_targets() -> None:
    targets = quantization.falls([row("fp32"), row("bf16", t2v_r1=91.0), row("int8", v2t_r5=89.5)])
    assert [(target.name, target.measured) for target in targets] == [
        ("bf16: points that R@1 falls, text to video", -1.0),
        ("bf16: points that R@5 falls, text to video", 0.0),
        ("bf16: points that R@1 falls, video to text", 0.0),
        ("bf16: points that R@5 falls, video to text", 0.0),
        ("int8: points that R@1 falls, text to video", 0.0),
        ("int8: points that R@5 falls, text to video", 0.0),
        ("int8: points that R@1 falls, video to text", 0.0),
        ("int8: points that R@5 falls, video to text", 0.5),
    ]
    quantization.require_reached(targets)


@pytest.mark.parametrize("place", ["t2v_r1", "t2v_r5", "v2t_r1", "v2t_r5"])
@pytest.mark.parametrize("value", [88.9, float("nan")])
def test_a_fall_of_more_than_a_point_anywhere_ends_with_an_error(place: str, value: float) -> None:
    targets = quantization.falls([row("fp32"), row("bf16"), row("int8", **{place: value})])
    with pytest.raises(SystemExit) as caught:
        quantization.require_reached(targets)
    direction, measure = place.split("_")
    words = {"t2v": "text to video", "v2t": "video to text"}[direction]
    fall = f"{90 - value:.2f}"
    assert caught.value.code == (
        f"recall falls by more than 1 point:\n  - int8: points that {measure.replace('r', 'R@')} falls, {words}: {fall}"
    )


def test_a_fall_of_a_point_is_allowed() -> None:
    quantization.require_reached(quantization.falls([row("fp32"), row("int8", t2v_r1=89.0, v2t_r5=89.0)]))
