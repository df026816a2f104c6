"""`import milnce` is light, whole and typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import resources

import pytest

import milnce
from milnce.video import Preset, get_preset

HEAVY = (
    "onnxruntime",
    "openvino",
    "torch",
    "onnx",
    "typer",
    "rich",
    "av",
    "PIL",
    "pyarrow",
    "sqlite3",
    "milnce_convert",
)


def run(script: str) -> object:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def test_import_loads_numpy_and_nothing_heavy() -> None:
    modules = run("import sys, json, milnce; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))")
    assert isinstance(modules, list)
    assert "numpy" in modules
    assert set(modules).isdisjoint(HEAVY)


def test_import_adds_little_to_the_time_of_numpy() -> None:
    script = (
        "import time, json, numpy; start = time.process_time(); import milnce; "
        "print(json.dumps(time.process_time() - start))"
    )
    # Processor time, since the machine may be busy: about 0.03 s. A backend would add 0.1 s and more.
    fastest = min(float(str(run(script))) for _ in range(3))
    assert fastest < 0.1


def test_loading_a_preset_by_its_public_name_brings_no_decoder() -> None:
    script = "import sys, json, milnce; milnce.get_preset('milnce-eval'); print(json.dumps('av' in sys.modules))"
    assert run(script) is False


def test_every_public_name_is_there() -> None:
    for name in milnce.__all__:
        assert getattr(milnce, name) is not None
    assert dir(milnce) == sorted(milnce.__all__)
    assert milnce.Preset is Preset
    assert milnce.get_preset is get_preset


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'milnce' has no attribute 'nothing'"):
        _ = milnce.nothing


def test_the_package_is_typed() -> None:
    assert resources.files("milnce").joinpath("py.typed").is_file()
