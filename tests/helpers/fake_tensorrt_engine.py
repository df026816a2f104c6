"""Engines of the stand-in for TensorRT: what all its flavours have in common."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import onnx

from helpers.fake_tensorrt_execution import EngineState, Machine
from helpers.fake_tensorrt_types import DTYPE_NAMES, Dims, LayerInformationFormat, TensorIOMode, TensorLocation

if TYPE_CHECKING:
    from helpers.fake_tensorrt_context import ContextBase
    from helpers.fake_tensorrt_plan import FakePlan
    from helpers.fake_tensorrt_types import BoundEnum


class EngineBase:
    """An engine: tensors and profiles to ask for."""

    def __init__(self, machine: Machine, plan: FakePlan, weights: int) -> None:
        self._state = EngineState(machine, plan, weights)

    @property
    def name(self) -> str:
        """Return the network's name."""
        return "Unnamed Network 0"

    @property
    def num_io_tensors(self) -> int:
        """Return how many inputs and outputs there are."""
        return len(self._state.plan.tensors)

    @property
    def num_optimization_profiles(self) -> int:
        """Return how many profiles there are."""
        return len(self._state.plan.profiles)

    @property
    def num_layers(self) -> int:
        """Return how many layers there are."""
        return len(onnx.load_from_string(self._state.plan.onnx).graph.node)

    def get_tensor_name(self, index: int) -> str:
        """Return the name of an input or output."""
        return self._state.plan.tensors[index].name

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        """Return what a tensor is; NONE for a name that is none."""
        tensor = self._state.tensors.get(name)
        if tensor is None:
            return TensorIOMode.NONE
        return TensorIOMode.INPUT if tensor.is_input else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> BoundEnum:
        """Return a tensor's dtype; FLOAT for a name that is none."""
        tensor = self._state.tensors.get(name)
        return self._state.machine.dtypes["FLOAT" if tensor is None else DTYPE_NAMES[tensor.dtype]]

    def get_tensor_shape(self, name: str) -> Dims:
        """Return a tensor's shape, -1 where it is open."""
        return Dims(self._state.tensors[name].shape)

    def get_tensor_location(self, name: str) -> TensorLocation:  # noqa: ARG002  no shape tensors here
        """Return where a tensor's memory has to be."""
        return TensorLocation.DEVICE

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[Dims]:
        """Return minimum, optimum and maximum of an input in a profile."""
        return [Dims(shape) for shape in self._state.plan.profiles[profile_index][name]]

    def create_engine_inspector(self) -> EngineInspector:
        """Return what tells the layers."""
        return EngineInspector(self._state.plan)


class EngineInspector:
    """Tells the layers of an engine, or one of them."""

    def __init__(self, plan: FakePlan) -> None:
        self._layers = [f"{node.op_type} {node.name}" for node in onnx.load_from_string(plan.onnx).graph.node]
        self.execution_context: ContextBase | None = None

    def get_engine_information(self, format: LayerInformationFormat) -> str:  # noqa: A002  the binding's name
        """Return all layers."""
        if format is LayerInformationFormat.JSON:
            return json.dumps({"Layers": self._layers})
        return "\n".join(self._layers)

    def get_layer_information(self, layer_index: int, format: LayerInformationFormat) -> str:  # noqa: A002
        """Return one layer."""
        layer = self._layers[layer_index]
        return json.dumps(layer) if format is LayerInformationFormat.JSON else layer
