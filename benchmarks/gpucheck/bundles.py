"""The part that gets the bundles ready, and for each the outputs to compare with."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from gpucheck.record import ABSENT, FAILED, PASSED
from gpucheck.settings import ROOT, Settings, Subject, write_subjects
from milnce.bundle import Bundle
from milnce.errors import MilnceError
from milnce_convert import reference
from milnce_convert.reference import Recipe, Reference

if TYPE_CHECKING:
    from collections.abc import Callable

    from gpucheck.record import Recorder

DEMO = ROOT / "engines" / "demo"
COMMITTED = ROOT / "benchmarks" / "references"
_EXPORTERS = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "safetensors")
_SEED = 0


def run(settings: Settings, record: Recorder) -> None:
    """Prepare the bundles given, or the demo and a seeded one at full width, largest first."""
    subjects: list[Subject] = []
    write_subjects(settings, subjects)
    folders = [Path(folder) for folder in settings.bundles]
    if not folders:
        full = settings.folder / "seeded-full-width"
        lacking = [module for module in _EXPORTERS if find_spec(module) is None]
        if lacking:
            detail = f"{', '.join(lacking)} not installed, so none can be exported here; carry one: --bundle DIR"
            record.add("bundle", full.name, ABSENT, detail)
        else:
            folders.append(full)
        folders.append(DEMO)
    for folder in folders:
        with record.guarded("bundle", folder.name):
            if folder.name == "seeded-full-width" and not settings.bundles and not folder.exists():
                _export(folder)
            subjects.append(_prepare(folder, settings, record))
            write_subjects(settings, subjects)


def _export(folder: Path) -> None:
    from milnce_convert.convert import ExportOptions, export_seeded_bundle  # noqa: PLC0415 - needs PyTorch

    # Parity of the export is CI's business; here it is measured once, at a small size.
    options = ExportOptions(parity_sizes=((16, 64, 64),), sampling_size=224)
    export_seeded_bundle(_SEED, folder, options, progress=print)


def _prepare(folder: Path, settings: Settings, record: Recorder) -> Subject:
    bundle = Bundle.open(folder)
    bundle.verify()
    cached = settings.folder / f"reference-{bundle.manifest.model_digest[:16]}-{settings.clips}.npz"
    recipe = Recipe.of(bundle, clips=settings.clips)
    # Files that happen to be there may well be of other bundles; that is worth a word only of those that were given.
    kept = [path for path in [cached, *sorted(COMMITTED.glob("*.npz"))] if _is_of(bundle, path)]
    sources: list[tuple[str, Callable[[], Reference]]] = [
        *((Path(path).name, partial(reference.read, Path(path))) for path in settings.references),
        *((path.name, partial(reference.read, path)) for path in kept),
        ("PyTorch", partial(reference.from_torch, bundle, recipe)),
        ("ONNX Runtime on the CPU", partial(reference.from_onnxruntime, bundle, recipe)),
    ]
    found, passed_over = _first(sources, bundle)
    problems = "; ".join(passed_over)
    data = {"path": str(folder), "digest": bundle.manifest.model_digest, "sampling": dict(bundle.manifest.sampling)}
    if found is None:
        record.add("bundle", folder.name, FAILED, f"nothing to compare with: {problems}", **data)
        raise MilnceError(f"nothing to compare {folder.name} with; carry a reference: --reference FILE")
    reference.write(cached, found)
    record.add("bundle", folder.name, PASSED, problems, **data, reference=found.source, clips=found.recipe.clips)
    return Subject(folder.name, str(folder), str(cached))


def _is_of(bundle: Bundle, path: Path) -> bool:
    """Whether a file is a reference of this bundle."""
    try:
        reference.read(path).check_bundle(bundle)
    except MilnceError:
        return False
    return True


def _first(sources: list[tuple[str, Callable[[], Reference]]], bundle: Bundle) -> tuple[Reference | None, list[str]]:
    """Return the first reference of this bundle, and why those before it were passed over."""
    passed_over: list[str] = []
    for name, make in sources:
        found = _attempt(make, bundle)
        if isinstance(found, Reference):
            return found, passed_over
        passed_over.append(f"{name}: {found}")
    return None, passed_over


def _attempt(make: Callable[[], Reference], bundle: Bundle) -> Reference | str:
    try:
        found = make()
        found.check_bundle(bundle)
        found.make_clips()
    except Exception as error:  # noqa: BLE001 - the next source may do; the reasons are in the report
        return str(error)
    return found
