"""Which of several plans that fit a GPU is the better one to run."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from milnce.manifest import GraphFile, Manifest
    from milnce.plan_file import Plan, Shape


def own_item_shapes(graph: GraphFile, manifest: Manifest) -> dict[str, Shape]:
    """Return the shape of one item of each input, without the batch, at the sizes that the bundle itself makes.

    Args:
        graph: The graph's entry in the manifest.
        manifest: The bundle's manifest, whose clips and sentences are meant.
    """
    own = {
        "frames": int(manifest.sampling["frames"]),
        "height": int(manifest.sampling["size"]),
        "width": int(manifest.sampling["size"]),
        "words": manifest.vocabulary.max_words,
    }
    return {
        spec.name: tuple(axis.size or max(axis.minimum, own.get(axis.name or "", 1)) for axis in spec.shape[1:])
        for spec in graph.inputs
    }


def takes_items(plan: Plan, item_shapes: Mapping[str, Shape]) -> bool:
    """Whether a profile of the plan takes items of these shapes, in batches of any size."""
    return any(
        all(
            len(low) == len(shape) + 1
            and all(a <= size <= b for a, size, b in zip(low[1:], shape, high[1:], strict=True))
            for name, shape in item_shapes.items()
            for low, _, high in (profile.shapes[name],)
        )
        for profile in plan.profiles
    )


def largest_batch(plan: Plan) -> int:
    """Return the most items that a profile of the plan takes at once."""
    return max(high[0] for profile in plan.profiles for _, _, high in profile.shapes.values())
