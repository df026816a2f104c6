"""What a plan takes, held against what a bundle makes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from helpers.sidecars import make_sidecar
from helpers.tiny_bundle import write_tiny_bundle
from milnce.bundle import Bundle
from milnce.plan_file import PlanProfile
from milnce.plan_rank import largest_batch, own_item_shapes, takes_items

if TYPE_CHECKING:
    from pathlib import Path

    from helpers.tiny_bundle import Tiny
    from milnce.plans import Plan, Shape

ITEM = (4, 32, 32, 3)


@pytest.fixture(scope="module")
def bundle(tiny: Tiny) -> Bundle:
    return Bundle.open(tiny.path)


def plan_of(bundle: Bundle, *profiles: tuple[Shape, Shape]) -> Plan:
    made = tuple(PlanProfile({"video": (low, high, high)}) for low, high in profiles)
    return make_sidecar(bundle.graph("video"), profiles=made)


@pytest.mark.parametrize(
    ("low", "high", "takes"),
    [
        ((1, 4, 32, 32, 3), (1, 4, 32, 32, 3), True),
        ((8, 4, 32, 32, 3), (64, 4, 32, 32, 3), True),  # whatever the batch
        ((1, 2, 16, 16, 3), (8, 4, 64, 32, 3), True),
        ((1, 4, 16, 16, 3), (1, 4, 16, 16, 3), False),
        ((1, 4, 48, 48, 3), (1, 4, 48, 48, 3), False),
        ((1, 4, 16, 32, 3), (1, 4, 30, 32, 3), False),
        ((1, 4, 32), (1, 4, 32), False),  # no clip at all
    ],
)
def test_items_are_taken_by_a_profile_that_holds_every_size(
    low: Shape, high: Shape, takes: bool, bundle: Bundle
) -> None:
    assert takes_items(plan_of(bundle, (low, high)), {"video": ITEM}) is takes
    # One profile is enough.
    other = (1, 2, 8, 8, 3)
    assert takes_items(plan_of(bundle, (other, other), (low, high)), {"video": ITEM}) is takes
    assert takes_items(plan_of(bundle, (low, high)), {})


def test_the_largest_batch_is_that_of_any_profile(bundle: Bundle) -> None:
    shapes = [((low, *ITEM), (high, *ITEM)) for low, high in ((1, 2), (3, 16), (1, 8))]
    assert largest_batch(plan_of(bundle, *shapes)) == 16


def test_sizes_below_what_the_graph_takes_are_its_smallest(tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "b", sampling={"preset": "milnce-native", "size": 8, "frames": 2})
    bundle = Bundle.open(tmp_path / "b")
    assert own_item_shapes(bundle.graph("video", input_form="uint8"), bundle.manifest) == {"video": (4, 16, 16, 3)}
