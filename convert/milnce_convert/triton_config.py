"""The configuration (config.pbtxt) of one model in a Triton repository.

Fields are those of protobuf/model_config.proto of github.com/triton-inference-server/common. How the backends and the
scheduler read them was looked up in the sources of triton-inference-server/core, tensorrt_backend and
onnxruntime_backend of June and July 2026; comments name what a choice rests on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from milnce.errors import InputError, PlanError
from milnce.plan_rank import own_item_shapes

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from milnce.manifest import GraphFile, Manifest
    from milnce.plans import Plan, PlanProfile
    from milnce.specs import TensorSpec

# Clips at once on a CPU leave the cache and take memory (see milnce.backends.base.Backend.items_per_run); on a GPU
# larger batches are what plans are for.
DEFAULT_MAX_BATCH = {"video": 8, "text": 64}

# Far above what any GPU holds of clips, and within the 32 bits of the field.
LARGEST_MAX_BATCH = 65_536

_TYPES = {"uint8": "TYPE_UINT8", "int32": "TYPE_INT32", "int64": "TYPE_INT64", "float32": "TYPE_FP32"}
# TensorRT 8's parser makes int64 inputs int32; 10 is the first that keeps them.
_FIRST_TENSORRT_WITH_INT64 = 10


class Name(str):
    """A bare word of the text format: an enumerator."""

    __slots__ = ()


def onnx_config(graph: GraphFile, manifest: Manifest, *, name: str, max_batch: int | None = None) -> dict[str, Any]:
    """Return the configuration that runs an ONNX graph in the ONNX Runtime backend, on a GPU or a CPU.

    Args:
        graph: The graph's entry in the manifest.
        manifest: The bundle's manifest, for the sizes of the warm-up and for the parameters.
        name: The model's name in the repository.
        max_batch: Largest batch, 1 to `LARGEST_MAX_BATCH`; a default for the module, within what the graph takes, if
            None.

    Raises:
        InputError: if `max_batch` is out of range.
    """
    if max_batch is not None and not 1 <= max_batch <= LARGEST_MAX_BATCH:
        raise InputError(f"a largest batch of {max_batch} given; 1 to {LARGEST_MAX_BATCH} expected")
    limit = graph.inputs[0].shape[0].maximum
    largest = max_batch or DEFAULT_MAX_BATCH[graph.module]
    largest = largest if limit is None else min(largest, limit)
    # The backend overwrites this key of the accelerator "cuda" with EXHAUSTIVE, the slower to answer of cuDNN's two
    # heuristics; this parameter, its older form, is what it listens to. "1" is HEURISTIC.
    parameters = {"cudnn_conv_algo_search": "1", **_parameters(graph, manifest)}
    optimization = _pinned()
    if graph.precision == "fp32":
        cuda = {"name": "cuda", "parameters": _entries({"use_tf32": "0"})}
        optimization["execution_accelerators"] = {"gpu_execution_accelerator": [cuda]}
    dims = {spec.name: [axis.size or -1 for axis in spec.shape[1:]] for spec in graph.inputs}
    return {
        "name": name,
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        "max_batch_size": largest,
        "input": [_tensor(spec, dims[spec.name]) for spec in graph.inputs],
        "output": _outputs(graph),
        "dynamic_batching": {},
        "instance_group": [{"count": 1, "kind": Name("KIND_AUTO")}],
        "optimization": optimization,
        "model_warmup": [
            _warmup(graph.inputs, {name: (1, *shape) for name, shape in own_item_shapes(graph, manifest).items()})
        ],
        "parameters": _entries(parameters, wrap="string_value"),
    }


def plan_config(
    graph: GraphFile, manifest: Manifest, plan: Plan, files: Mapping[str, str], *, name: str
) -> dict[str, Any]:
    """Return the configuration that runs TensorRT plans of one graph, with every profile they have.

    Args:
        graph: The graph's entry in the manifest.
        manifest: The bundle's manifest, for the parameters.
        plan: One of the plans; all are of its version and have its profiles.
        files: Compute capability ("9.0") -> file name in the version's folder; "" for the file of all others.
        name: The model's name in the repository.

    Raises:
        PlanError: if the profiles take different sizes, or no batch at all is common to them.
    """
    profiles = plan.profiles
    inputs = plan_inputs(graph, plan)
    batches = batch_sizes(profiles)
    preferred = sorted({shapes[1][0] for profile in profiles for shapes in profile.shapes.values()})
    dims = {spec.name: _common_dims(spec, profiles) for spec in inputs}
    config: dict[str, Any] = {
        "name": name,
        "platform": "tensorrt_plan",
        "max_batch_size": max(batches),
        "input": [_tensor(spec, dims[spec.name]) for spec in inputs],
        "output": _outputs(graph),
        # Without a delay the scheduler sends preferred sizes only, as long as each request's own batch is one: with a
        # delay it merges what has waited into any size (dynamic_batch_scheduler.cc, instance_queue.cc).
        "dynamic_batching": {"preferred_batch_size": preferred},
        # One entry each: an instance makes a context for every profile listed, and for the first alone if none is.
        "instance_group": [
            {"count": 1, "kind": Name("KIND_GPU"), "profile": [str(index) for index in range(len(profiles))]}
        ],
        "optimization": _pinned(),
        "model_warmup": [
            _warmup(inputs, {name: shapes[1] for name, shapes in profile.shapes.items()}) for profile in profiles
        ],
        "parameters": _entries(_parameters(graph, manifest), wrap="string_value"),
    }
    if default := files.get(""):
        config["default_model_filename"] = default
    if specific := {capability: file for capability, file in files.items() if capability}:
        config["cc_model_filenames"] = _entries(specific)
    return config


def plan_inputs(graph: GraphFile, plan: Plan) -> tuple[TensorSpec, ...]:
    """Return what a plan of `graph` takes: the graph's inputs, with int32 for int64 before TensorRT 10."""
    if int(plan.library_version.partition(".")[0]) >= _FIRST_TENSORRT_WITH_INT64:
        return graph.inputs
    return tuple(replace(spec, dtype="int32") if spec.dtype == "int64" else spec for spec in graph.inputs)


def batch_sizes(profiles: Iterable[PlanProfile]) -> list[int]:
    """Return the batches that the profiles take together, ascending.

    Raises:
        PlanError: if there are none.
    """
    ranges = [
        range(max(low[0] for low, _, _ in shapes), min(high[0] for _, _, high in shapes) + 1)
        for shapes in (list(profile.shapes.values()) for profile in profiles)
    ]
    sizes = sorted(set(chain.from_iterable(ranges)))
    if not sizes:
        raise PlanError("the profiles of the plan take no batch at all; build it again: milnce build BUNDLE --force")
    return sizes


def takes_every_batch(sizes: Sequence[int]) -> bool:
    """Whether the sizes are 1, 2, 3, ... without a gap."""
    return list(sizes) == list(range(1, len(sizes) + 1))


def to_pbtxt(fields: Mapping[str, Any], *, indent: int = 0) -> str:
    """Return fields as protobuf text.

    Args:
        fields: Field name -> a str, a `Name`, an int or bool, a mapping (a message), or a list of these.
        indent: Levels of indentation.
    """
    return "".join(_field(key, value, "  " * indent, indent) for key, value in fields.items())


def _field(key: str, value: Any, pad: str, indent: int) -> str:  # noqa: ANN401 - any value of `to_pbtxt`
    if isinstance(value, list) and not any(isinstance(item, Mapping) for item in value):
        return f"{pad}{key}: [ {', '.join(map(_scalar, value))} ]\n"
    if isinstance(value, list):
        return "".join(_field(key, item, pad, indent) for item in value)
    if isinstance(value, Mapping):
        body = to_pbtxt(value, indent=indent + 1)
        return f"{pad}{key} {{\n{body}{pad}}}\n" if body else f"{pad}{key} {{ }}\n"
    return f"{pad}{key}: {_scalar(value)}\n"


def _scalar(value: object) -> str:
    if isinstance(value, Name):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    plain = "".join(
        chr(byte) if 0x20 <= byte < 0x7F and byte not in b'"\\' else f"\\{byte:03o}"  # noqa: PLR2004 - printable ASCII
        for byte in str(value).encode()
    )
    return f'"{plain}"'


def _tensor(spec: TensorSpec, dims: list[int]) -> dict[str, Any]:
    return {"name": spec.name, "data_type": Name(_TYPES[spec.dtype]), "dims": dims}


def _outputs(graph: GraphFile) -> list[dict[str, Any]]:
    return [_tensor(spec, [axis.size or -1 for axis in spec.shape[1:]]) for spec in graph.outputs]


def _warmup(specs: Sequence[TensorSpec], shapes: Mapping[str, Sequence[int]]) -> dict[str, Any]:
    """Return a request of zeros: the model is ready only once a batch of these shapes has run."""
    inputs = {
        spec.name: {"data_type": Name(_TYPES[spec.dtype]), "dims": list(shapes[spec.name][1:]), "zero_data": True}
        for spec in specs
    }
    batch = next(iter(shapes.values()))[0]
    sizes = ", ".join("x".join(map(str, shape)) for shape in shapes.values())
    return {"name": f"zeros {sizes}", "batch_size": batch, "inputs": _entries(inputs)}


def _common_dims(spec: TensorSpec, profiles: Sequence[PlanProfile]) -> list[int]:
    """Return each axis after the batch: its size where every profile has just that one, else -1."""
    columns = zip(*(shape[1:] for profile in profiles for shape in profile.shapes[spec.name]), strict=True)
    return [sizes[0] if len(set(sizes)) == 1 else -1 for sizes in columns]


def _parameters(graph: GraphFile, manifest: Manifest) -> dict[str, str]:
    """Return what a client may want to know, which Triton hands out with the configuration."""
    return {
        "milnce_model_digest": manifest.model_digest,
        "milnce_precision": graph.precision,
        "milnce_sampling": str(manifest.sampling["preset"]),
        "milnce_max_words": str(manifest.vocabulary.max_words),
    }


def _pinned() -> dict[str, Any]:
    return {"input_pinned_memory": {"enable": True}, "output_pinned_memory": {"enable": True}}


def _entries(values: Mapping[str, Any], *, wrap: str | None = None) -> list[dict[str, Any]]:
    """Return a map field: an entry with key and value each."""
    return [{"key": key, "value": {wrap: value} if wrap else value} for key, value in values.items()]


def same_profiles(plans: Sequence[Plan]) -> bool:
    """Whether all plans have the same profiles in the same order."""
    return len({repr(plan.profiles) for plan in plans}) <= 1
