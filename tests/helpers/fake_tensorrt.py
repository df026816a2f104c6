"""A stand-in for the TensorRT modules: what a runtime needs of them, on the simulated GPUs of `fake_cuda`.

    fake = fake_cuda.install(monkeypatch, policy="random")
    trt = fake_tensorrt.install(monkeypatch, fake, "tensorrt", flavour="10")
    plan = make_fake_plan(onnx_bytes, [{"video": ((1, 4, 16, 16, 3),) * 3}], version=trt.__version__)

Plans really compute: their ONNX runs in ONNX Runtime on the CPU. The flavours differ in what is there to be found:

- "8.5": TensorRT 8.5 (JetPack 5). A profile belongs to one context at a time; int64 is int32.
- "10": what TensorRT 10.13 and 11.1 have in common.
- "rtx": TensorRT-RTX 1.7, "10" and its own calls.

Names and refusals are those of NVIDIA's bindings (python/src/infer/pyCore.cpp and include/NvInferRuntime.h of
https://github.com/NVIDIA/TensorRT at 8.5.3, 10.13.3 and 11.1) and of the installed tensorrt_rtx; `tests/runtime/
test_fakes.py` compares them.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal

from helpers import fake_tensorrt_flavours as flavours
from helpers import fake_tensorrt_types as types
from helpers.fake_tensorrt_engine import EngineInspector
from helpers.fake_tensorrt_flavours import VERSIONS, Flavour
from helpers.fake_tensorrt_plan import make_fake_plan

if TYPE_CHECKING:
    import pytest

    from helpers.fake_cuda import FakeCuda

__all__ = ["VERSIONS", "Flavour", "install", "make_fake_plan"]

_COMMON: dict[str, Any] = {
    "ILogger": types.ILogger,
    "Logger": types.Logger,
    "Dims": types.Dims,
    "IHostMemory": types.IHostMemory,
    "TensorIOMode": types.TensorIOMode,
    "TensorLocation": types.TensorLocation,
    "LayerInformationFormat": types.LayerInformationFormat,
    "EngineInspector": EngineInspector,
    "nptype": types.nptype,
    "volume": types.volume,
}
_TEN: dict[str, Any] = {
    "DataType": types.DataType,
    "ExecutionContextAllocationStrategy": types.ExecutionContextAllocationStrategy,
}
_FLAVOURS: dict[Flavour, dict[str, Any]] = {
    "8.5": {
        "Runtime": flavours.Runtime85,
        "ICudaEngine": flavours.Engine85,
        "IExecutionContext": flavours.Context85,
        "DataType": types.DataType85,
    },
    "10": {
        **_TEN,
        "Runtime": flavours.Runtime10,
        "ICudaEngine": flavours.Engine10,
        "IExecutionContext": flavours.Context10,
        "IRuntimeConfig": flavours.RuntimeConfig,
    },
    "rtx": {
        **_TEN,
        "Runtime": flavours.RuntimeRtx,
        "ICudaEngine": flavours.EngineRtx,
        "IExecutionContext": flavours.ContextRtx,
        "IRuntimeConfig": flavours.RuntimeConfigRtx,
        "IRuntimeCache": flavours.RuntimeCache,
        "CudaGraphStrategy": types.CudaGraphStrategy,
        "DynamicShapesKernelSpecializationStrategy": types.DynamicShapesKernelSpecializationStrategy,
        "EngineValidity": types.EngineValidity,
        "EngineInvalidityDiagnostics": types.EngineInvalidityDiagnostics,
    },
}
_ALIASES = {"float32": "FLOAT", "float16": "HALF", "int8": "INT8", "int32": "INT32", "int64": "INT64", "uint8": "UINT8"}


def install(
    monkeypatch: pytest.MonkeyPatch,
    fake: FakeCuda,
    name: Literal["tensorrt", "tensorrt_lean", "tensorrt_rtx"] = "tensorrt",
    *,
    flavour: Flavour | None = None,
    version: str | None = None,
) -> ModuleType:
    """Put a TensorRT module in place for a test, and return it.

    Args:
        monkeypatch: undoes it.
        fake: the simulated GPUs it runs on.
        name: the module.
        flavour: which generation; "rtx" for tensorrt_rtx and "10" for the others if not given.
        version: its `__version__`; that of the flavour if not given.
    """
    flavour = flavour or ("rtx" if name == "tensorrt_rtx" else "10")
    version = version or VERSIONS[flavour]
    module = ModuleType(name)
    contents = {**_COMMON, **_FLAVOURS[flavour]}
    contents["Runtime"] = type("Runtime", (contents["Runtime"],), {"_module": name, "_version": version, "_fake": fake})
    dtypes = contents["DataType"].__members__
    contents |= {alias: dtypes[dtype] for alias, dtype in _ALIASES.items() if dtype in dtypes} | {
        "bool": dtypes["BOOL"]
    }
    vars(module).update(contents, __version__=version, __spec__=ModuleSpec(name, None))
    monkeypatch.setitem(sys.modules, name, module)
    return module
