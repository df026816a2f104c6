"""Reference files: the same outputs anywhere, and a refusal of what they were not made from."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers.tiny_bundle import write_tiny_bundle
from milnce.bundle import Bundle
from milnce.errors import BundleError, InputError, ParityError
from milnce_convert.fixtures import WORDS, as_video, seeded_towers
from milnce_convert.parity import FP32_GATE, compare, require
from milnce_convert.reference import Recipe, Reference, as_input, from_onnxruntime, from_torch, read, write
from milnce_convert.towers import TowersConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("tiny") / "bundle"
    write_tiny_bundle(folder)
    return Bundle.open(folder)


@pytest.fixture(scope="module")
def reference(tiny: Bundle) -> Reference:
    return from_onnxruntime(tiny, Recipe.of(tiny, clips=5, sentences=7))


def test_a_reference_holds_what_the_fp32_graphs_give(tiny: Bundle, reference: Reference, tmp_path: Path) -> None:
    weights = write_tiny_bundle(tmp_path / "again")
    clips, tokens = reference.make_clips(), reference.recipe.make_tokens()
    assert clips.shape == (5, 4, 32, 32, 3)  # as the bundle samples
    assert tokens.shape == (7, tiny.manifest.vocabulary.max_words)
    embedding, mixed = weights.video(clips)
    for name, expected in (
        ("video_embedding", embedding),
        ("mixed_5c", mixed),
        ("text_embedding", weights.text(tokens)),
    ):
        require(compare(expected, reference.outputs[name]), FP32_GATE, name)
    assert reference.source.startswith("FP32 graphs, onnxruntime ")


def test_a_file_gives_the_same_reference_back(reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    write(path, reference)
    again = read(path)
    assert (again.model_digest, again.source, again.recipe) == (
        reference.model_digest,
        reference.source,
        reference.recipe,
    )
    assert all(np.array_equal(again.outputs[name], reference.outputs[name]) for name in reference.outputs)
    assert np.array_equal(again.make_clips(), reference.make_clips())


def test_another_model_is_refused(reference: Reference, tmp_path: Path) -> None:
    write_tiny_bundle(tmp_path / "other", seed=1)
    other = Bundle.open(tmp_path / "other")
    reference.check_bundle(with_manifest(other, reference.model_digest))
    with pytest.raises(ParityError, match=f"the reference is of the model {reference.model_digest[:12]}, .* holds"):
        reference.check_bundle(other)


def test_clips_that_were_made_otherwise_are_refused(reference: Reference) -> None:
    one_pixel = dataclasses.replace(reference, pixel_sums=reference.pixel_sums + 1)
    assert one_pixel.make_clips().shape == (5, 4, 32, 32, 3)
    other_seed = dataclasses.replace(reference, recipe=dataclasses.replace(reference.recipe, seed=1))
    with pytest.raises(ParityError, match="the clips made here are not those of the reference"):
        other_seed.make_clips()


@pytest.mark.parametrize("damage", ["missing", "text", "format", "field"])
def test_what_is_no_reference_file_is_refused(damage: str, reference: Reference, tmp_path: Path) -> None:
    path = tmp_path / "reference.npz"
    if damage == "text":
        path.write_text("not an archive")
    elif damage != "missing":
        write(path, reference)
        with np.load(path) as file:
            arrays = dict(file)
        about = json.loads(str(arrays["about"]))
        about.update({"format": "other-9"} if damage == "format" else {"recipe": {"clips": 5}})
        np.savez(path, **{**arrays, "about": np.array(json.dumps(about))})
    with pytest.raises(InputError, match=r"is not a reference file \(.*\); make one: gpu_check.py --make-reference"):
        read(path)


def test_input_forms_hold_the_same_pixels(reference: Reference) -> None:
    clips = reference.make_clips()
    assert as_input(clips, "uint8") is clips
    floats = as_input(clips, "float32")
    assert floats.flags.c_contiguous
    assert np.array_equal(floats, as_video(clips).numpy())


def test_seeded_weights_are_computed_by_the_towers_and_others_are_refused(tiny: Bundle) -> None:
    towers = seeded_towers(0, TowersConfig.scaled(0.125, rows=len(WORDS) + 1))
    made = {"sources": {"seed": 0, "width": 0.125}}
    recipe = Recipe(clips=2, frames=4, size=32, sentences=3, words=16, rows=len(WORDS) + 1)
    seeded = with_manifest(tiny, towers.digest(), made)
    found = from_torch(seeded, recipe)
    expected = towers.video(as_video(recipe.make_clips()))["mixed_5c"].detach().numpy()
    require(compare(expected, found.outputs["mixed_5c"]), FP32_GATE, "mixed_5c")
    assert found.outputs["text_embedding"].shape == (3, 512)
    assert found.source.startswith("PyTorch towers, FP32, torch ")
    with pytest.raises(BundleError, match="seed 0 gives other weights with torch"):
        from_torch(with_manifest(tiny, "0" * 64, made), recipe)
    with pytest.raises(BundleError, match="was not made from a seed"):
        from_torch(tiny, recipe)


def with_manifest(bundle: Bundle, digest: str, made: dict[str, Any] | None = None) -> Bundle:
    """Return the bundle with another digest and origin in its manifest."""
    manifest = dataclasses.replace(bundle.manifest, model_digest=digest, made=made or bundle.manifest.made)
    return Bundle(bundle.path, manifest)
