"""Triton's own definition of config.pbtxt: the protobuf module in NVIDIA's client wheel, loaded without its client.

`tritonclient` (BSD-3-Clause) is built from protobuf/model_config.proto of github.com/triton-inference-server/common.
Its package `tritonclient.grpc` wants grpcio, which no test needs; the module of the messages wants protobuf alone.
"""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import text_format  # type: ignore[import-untyped]  # no stubs are installed

ParseError: type[Exception] = text_format.ParseError


@cache
def model_config_class() -> Any:  # noqa: ANN401 - a class that protobuf makes at run time
    """Return the message class ModelConfig; skip the test where tritonclient is not installed."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        pytest.skip("tritonclient is not installed: pip install --no-deps tritonclient")
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelConfig


def parse_config(text: str) -> Any:  # noqa: ANN401 - as above
    """Read a config.pbtxt as Triton does; an unknown field, enumerator or type is a ParseError."""
    return text_format.Parse(text, model_config_class()())


def check_config(config: Any, folder: Path) -> None:  # noqa: ANN401 - a ModelConfig
    """Hold a model's configuration and folder against what Triton refuses to load.

    The rules are those of src/model_config_utils.cc (ValidateModelConfig, ValidateModelIOConfig,
    ValidateInstanceGroup) and src/backend_model_instance.cc (GenerateWarmupData) in triton-inference-server/core
    73aad7c, of GetProfileIndices in src/model_state.cc of tensorrt_backend e2ef6d7, and of the repository layout in
    docs/user_guide/model_repository.md of server e1db8a6.
    """
    assert config.name == folder.name
    assert re.fullmatch("[A-Za-z0-9_]+", config.name)
    assert config.max_batch_size > 0
    versions = [path for path in folder.iterdir() if path.is_dir()]
    assert [path.name for path in versions] == ["1"]
    named = {config.default_model_filename, *config.cc_model_filenames.values()} - {""}
    assert named
    assert named == {path.name for path in versions[0].iterdir()}
    for capability in config.cc_model_filenames:
        assert re.fullmatch(r"[0-9]+\.[0-9]", capability)
    for tensor in [*config.input, *config.output]:
        assert tensor.name
        assert tensor.data_type
        assert all(size == -1 or size > 0 for size in tensor.dims)
        assert tensor.dims
    for size in config.dynamic_batching.preferred_batch_size:
        assert 0 < size <= config.max_batch_size
    inputs = {tensor.name: tensor for tensor in config.input}
    for sample in config.model_warmup:
        assert 1 <= sample.batch_size <= config.max_batch_size
        assert set(sample.inputs) == set(inputs)
        for name, value in sample.inputs.items():
            assert value.data_type == inputs[name].data_type
            assert value.WhichOneof("input_data_type") == "zero_data"
            assert len(value.dims) == len(inputs[name].dims)
            assert all(given > 0 for given in value.dims)
            assert all(said in (-1, given) for said, given in zip(inputs[name].dims, value.dims, strict=True))
    for group in config.instance_group:
        assert group.count >= 1
        assert not group.profile or config.platform == "tensorrt_plan"
        assert all(index.isdecimal() for index in group.profile)
