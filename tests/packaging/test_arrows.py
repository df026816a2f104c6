"""The rule of the arrows: cli -> model, pipeline, search -> backends, video, bundle, tokenizer; and never torch.

Every import of every module is read from its source, those inside functions too, so a rule cannot be bent by importing
late. Imports for type checking alone do not count: they are gone when the program runs.
"""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
RUNTIME = ROOT / "runtime"

# What the lower parts may never import, by the module's name or the package it is in.
FORBIDDEN = {
    "milnce.backends": ("video", "tokenizer", "pipeline", "search", "features", "sheet", "cli", "model"),
    # The GPU's layers know tensors and files at most; what is above them is none of their business.
    **dict.fromkeys(
        (
            "milnce.cuda",
            "milnce.cuda_binding",
            "milnce.cuda_kernels",
            "milnce.cuda_resources",
            "milnce.device_arrays",
            "milnce.dlpack",
            "milnce.plans",
            "milnce.own_files",
            "milnce.plan_file",
            "milnce.plan_folder",
            "milnce.plan_rank",
            "milnce.tensorrt_log",
        ),
        ("backends", "video", "tokenizer", "model", "pipeline", "search", "features", "sheet", "cli", "bundle"),
    ),
    # What runs a sentence knows numbers and a graph, and neither words nor who asked.
    **dict.fromkeys(
        ("milnce.protobuf", "milnce.onnx_reader", "milnce.onnx_policy", "milnce.text_tower", "milnce.tower_forms"),
        ("backends", "video", "tokenizer", "model", "pipeline", "search", "features", "sheet", "cli", "bundle"),
    ),
    "milnce.video": ("backends", "bundle", "tokenizer", "model", "pipeline", "search", "features", "sheet", "cli"),
    **dict.fromkeys(
        ("milnce.timing", "milnce.machine", "milnce.heap"),
        (
            "backends",
            "video",
            "tokenizer",
            "model",
            "pipeline",
            "search",
            "features",
            "sheet",
            "cli",
            "bundle",
            "bench",
        ),
    ),
    "milnce.bench": ("video", "pipeline", "search", "features", "sheet", "cli"),
    "milnce.tokenizer": ("backends", "video", "model", "pipeline", "search", "features", "sheet", "cli", "bundle"),
    "milnce.bundle": ("backends", "video", "model", "pipeline", "search", "features", "sheet", "cli"),
    # The model hands files to the pipeline, and knows nothing else above or beside it.
    "milnce.model": ("video", "search", "features", "sheet", "cli"),
    # The batcher is beside the pipeline: it batches what others bring.
    **dict.fromkeys(
        ("milnce.batcher", "milnce.batcher_lane", "milnce.batcher_queue", "milnce.batcher_rows"),
        ("video", "pipeline", "search", "features", "sheet", "cli", "bundle"),
    ),
    "milnce.pipeline": ("search", "features", "sheet", "cli", "backends"),
    # Its processes must start fast: NumPy, PyAV, and what those need of milnce.
    "milnce.decoding": ("backends", "bundle", "tokenizer", "model", "pipeline", "search", "features", "sheet", "cli"),
    "milnce.search": ("backends", "video", "model", "pipeline", "features", "sheet", "cli", "bundle"),
    "milnce.moments": ("backends", "video", "model", "pipeline", "search", "features", "sheet", "cli", "bundle"),
    "milnce.index": ("backends", "video", "model", "pipeline", "features", "sheet", "cli", "bundle"),
    "milnce.index_file": ("backends", "video", "model", "pipeline", "search", "features", "sheet", "cli", "bundle"),
    "milnce.vectors": ("backends", "video", "model", "pipeline", "search", "features", "sheet", "cli", "bundle"),
    "milnce.ranks": ("backends", "video", "model", "pipeline", "search", "features", "sheet", "cli", "bundle"),
    "milnce.metrics": ("backends", "video", "model", "pipeline", "search", "features", "sheet", "cli", "bundle"),
    "milnce.captions": ("backends", "video", "model", "pipeline", "search", "features", "sheet", "cli", "bundle"),
    "milnce.clip_sources": ("backends", "model", "pipeline", "search", "sheet", "cli", "bundle", "evaluation"),
    "milnce.evaluation": ("backends", "search", "sheet", "cli", "bundle", "page"),
    "milnce.evaluation_page": ("backends", "video", "model", "pipeline", "sheet", "cli", "bundle", "page_pictures"),
    "milnce.page": ("backends", "video", "model", "pipeline", "search", "features", "sheet", "cli", "bundle"),
    "milnce.page_pictures": ("backends", "model", "pipeline", "search", "features", "sheet", "cli", "bundle", "page"),
    "milnce.features": ("backends", "video", "model", "search", "sheet", "cli", "bundle"),
    "milnce.sheet": ("backends", "video", "model", "pipeline", "search", "features", "cli", "bundle"),
}
HEAVY = {
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "av",
    "PIL",
    "pyarrow",
    "safetensors",
    "cuda",
    "tensorrt",
    "tensorrt_lean",
    "tensorrt_rtx",
}


class Imports(ast.NodeVisitor):
    """Collects (imported module, whether it is inside a function) of one file."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.found: list[tuple[str, bool]] = []
        self._depth = 0

    def visit_If(self, node: ast.If) -> None:  # noqa: D102 - named by ast
        if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            for child in node.orelse:
                self.visit(child)
        else:
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:  # noqa: D102 - named by ast
        self._depth += 1
        self.generic_visit(node)
        self._depth -= 1

    def visit_Import(self, node: ast.Import) -> None:  # noqa: D102 - named by ast
        self.found += [(alias.name, self._depth > 0) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:  # noqa: D102 - named by ast
        assert node.level == 0, f"relative import in {self.package}"
        module = str(node.module)
        # `from milnce import video` imports milnce.video just as well.
        self.found += [(f"{module}.{alias.name}", self._depth > 0) for alias in node.names]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(RUNTIME).with_suffix("").parts).removesuffix(".__init__")


def imports_of(source: str, name: str) -> list[tuple[str, bool]]:
    visitor = Imports(name)
    visitor.visit(ast.parse(source))
    return visitor.found


def runtime_imports() -> Iterator[tuple[str, str, bool]]:
    """Yield (module, imported, inside a function) over the whole runtime."""
    for path in sorted((RUNTIME / "milnce").rglob("*.py")):
        name = name_of(path)
        for imported, late in imports_of(path.read_text(encoding="utf-8"), name):
            yield name, imported, late


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def test_the_runtime_is_seen_at_all() -> None:
    modules = {module for module, _, _ in runtime_imports()}
    assert {*FORBIDDEN, "milnce.cli.export", "milnce.backends.onnxruntime"} <= modules | {
        "milnce.video",
        "milnce.decoding",
    }


def test_the_reader_of_imports_sees_every_kind() -> None:
    source = (
        "import a.b\nfrom milnce import video\nif TYPE_CHECKING:\n    import never\nelse:\n    import other\n"
        "def f():\n    from milnce.video import decode\n    if x:\n        import late\n"
    )
    expected = [
        ("a.b", False),
        ("milnce.video", False),
        ("other", False),
        ("milnce.video.decode", True),
        ("late", True),
    ]
    assert imports_of(source, "m") == expected


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_lower_parts_do_not_know_the_upper_ones(package: str) -> None:
    wrong = [
        f"{module} imports {imported}"
        for module, imported, _ in runtime_imports()
        for part in FORBIDDEN[package]
        if within(module, package) and within(imported, f"milnce.{part}")
    ]
    assert wrong == []


def test_only_export_and_build_know_the_converter_and_only_inside_their_functions() -> None:
    found = [(module, late) for module, imported, late in runtime_imports() if within(imported, "milnce_convert")]
    assert found
    users = ("export", "export_hosts", "build", "bench", "quantize")
    assert set(found) == {(f"milnce.cli.{user}", True) for user in users}


def test_only_one_module_calls_cuda() -> None:
    users = {module for module, imported, _ in runtime_imports() if within(imported, "cuda")}
    assert users == {"milnce.cuda_binding"}
    users = {module for module, imported, _ in runtime_imports() if within(imported, "milnce.cuda_binding")}
    assert users == {"milnce.cuda", "milnce.cuda_kernels"}


def test_the_runtime_never_imports_what_only_the_converter_needs() -> None:
    never = ("torch", "onnx", "onnxscript", "safetensors")
    wrong = [
        (module, imported) for module, imported, _ in runtime_imports() for name in never if within(imported, name)
    ]
    assert wrong == []


def test_optional_packages_are_imported_inside_functions_only() -> None:
    wrong = [
        f"{module} imports {imported} at its top"
        for module, imported, late in runtime_imports()
        if not late and imported.partition(".")[0] in HEAVY
    ]
    assert wrong == []


def test_only_the_command_line_imports_typer_and_rich() -> None:
    users = {
        module
        for module, imported, _ in runtime_imports()
        if imported.partition(".")[0] in {"typer", "rich"} and not within(module, "milnce.cli")
    }
    assert users == set()


def test_the_converter_does_not_import_the_command_line() -> None:
    wrong = [
        path.name
        for path in (ROOT / "convert").rglob("*.py")
        for imported, _ in imports_of(path.read_text(encoding="utf-8"), path.stem)
        if within(imported, "milnce.cli")
    ]
    assert wrong == []


def test_only_two_packages_are_importable_from_the_roots() -> None:
    roots = [RUNTIME, ROOT / "convert"]
    found = {
        path.name
        for root in roots
        for path in root.iterdir()
        if path.is_dir() and path.name != "__pycache__" and not path.name.endswith(".egg-info")
    }
    assert found == {"milnce", "milnce_convert"}
    assert not [path for root in roots for path in root.glob("*.py")]
    for name in ("runtime", "convert", "benchmarks", "engines", "tests"):
        assert not (ROOT / name / "__init__.py").exists(), f"{name} would become an import name"
