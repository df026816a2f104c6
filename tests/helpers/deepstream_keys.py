"""The keys and values that DeepStream's parsers read, and a reader of key files that knows no others.

Source: github.com/NVIDIA/DeepStream (DeepStream 9.1, Apache-2.0) at 581889d:
src/gst-plugins/gst-nvinfer/gstnvinfer_property_parser.h and .cpp,
src/gst-plugins/gst-nvdspreprocess/nvdspreprocess_property_parser.h and .cpp,
src/apps/sample_apps/deepstream-3d-action-recognition/custom_sequence_preprocess/seq_process_common.h and
sequence_image_process.cpp. Only keys that a configuration like ours may use are listed, each with what it may hold.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from pathlib import Path

Value = TypeVar("Value")

_FLAG = r"[01]"
_COUNT = r"[1-9][0-9]*"
_NATURAL = r"[0-9]+"
_FLOAT = r"[0-9.e-]+"
_NAME = r"[A-Za-z0-9_./]+"


def _list(item: str, *, least: int = 1) -> str:
    return rf"{item}(;{item}){{{least - 1},}}"


INFER = {
    "property": {
        "gpu-id": _NATURAL,
        "gie-unique-id": _COUNT,
        "process-mode": "[12]",
        "interval": _NATURAL,
        "batch-size": _COUNT,
        "network-mode": "[0-3]",  # FP32, INT8, FP16, BEST
        "network-type": "[0-3]|100",
        "onnx-file": _NAME,
        "model-engine-file": _NAME,
        "strongly-typed": _FLAG,
        "input-tensor-from-meta": _FLAG,
        "output-tensor-meta": _FLAG,
        "output-blob-names": _list("[A-Za-z0-9_]+"),
        "tensor-meta-pool-size": _COUNT,
        "workspace-size": _COUNT,
        "infer-dims": rf"{_COUNT};{_COUNT};{_COUNT}",
        "net-scale-factor": _FLOAT,
        "model-color-format": "[0-2]",
    }
}
PREPROCESS = {
    "property": {
        "enable": _FLAG,
        "unique-id": _COUNT,
        "gpu-id": _NATURAL,
        "target-unique-ids": _list(_COUNT),
        "process-on-frame": _FLAG,
        "processing-width": _COUNT,
        "processing-height": _COUNT,
        "maintain-aspect-ratio": _FLAG,
        "symmetric-padding": _FLAG,
        "scaling-buf-pool-size": _COUNT,
        "tensor-buf-pool-size": _COUNT,
        "scaling-filter": "[0-6]",
        "scaling-pool-memory-type": "[0-4]",
        "scaling-pool-compute-hw": "[0-2]",
        "network-input-order": "[0-2]",  # NCHW, NHWC, custom
        "network-input-shape": _list(_COUNT, least=4),
        "network-color-format": "[0-2]",  # RGB, BGR, grey
        "tensor-data-type": "[0-7]",  # 0 is FP32
        "tensor-name": _NAME,
        "custom-lib-path": _NAME,
        "custom-tensor-preparation-function": _NAME,
    },
    "user-configs": {
        "channel-scale-factors": _list(_FLOAT),
        "channel-mean-offsets": _list(_FLOAT),
        "stride": _COUNT,
        "subsample": _NATURAL,
    },
    r"group-[0-9]+": {
        "src-ids": _list(_NATURAL),
        "process-on-roi": _FLAG,
        "draw-roi": _FLAG,
        "interval": _NATURAL,
        r"roi-params-src-[0-9]+": _list(_NATURAL, least=4),
    },
}
# Without all of these the parser refuses the file ("Some preprocess config properties not set").
PREPROCESS_REQUIRED = (
    *("processing-width", "processing-height", "network-input-order", "network-input-shape", "network-color-format"),
    *("tensor-data-type", "tensor-name", "custom-lib-path", "custom-tensor-preparation-function", "scaling-filter"),
    "scaling-pool-memory-type",
)
# Where values are as in NVIDIA's own config_preprocess_3d_custom.txt and config_infer_primary_3d_action.txt.
SAMPLE = {
    "enable": "1",
    "target-unique-ids": "1",
    "process-on-frame": "1",
    "network-color-format": "0",
    "network-input-order": "2",
    "tensor-data-type": "0",
    "custom-lib-path": "/opt/nvidia/deepstream/deepstream/lib/libnvds_custom_sequence_preprocess.so",
    "custom-tensor-preparation-function": "CustomSequenceTensorPreparation",
    "process-on-roi": "1",
    "process-mode": "1",
    "input-tensor-from-meta": "1",
    "output-tensor-meta": "1",
    "gie-unique-id": "1",
}


def read_key_file(path: Path, known: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """Read a GLib key file; assert that every group, key and value is one that the parser knows."""
    groups: dict[str, dict[str, str]] = {}
    group = ""
    for line in path.read_text(encoding="ascii").splitlines():
        if not line:
            continue
        if header := re.fullmatch(r"\[(.+)\]", line):
            group = header[1]
            assert group not in groups, f"group {group} twice"
            groups[group] = {}
            continue
        key, equals, value = line.partition("=")
        assert equals, line
        keys = _matching(known, group)
        assert re.fullmatch(_matching(keys, key), value), line
        assert key not in groups[group], f"{key} twice in {group}"
        groups[group][key] = value
    return groups


def _matching(patterns: dict[str, Value], name: str) -> Value:
    found = [value for pattern, value in patterns.items() if re.fullmatch(pattern, name)]
    assert len(found) == 1, f"{name!r} is not known"
    return found[0]
