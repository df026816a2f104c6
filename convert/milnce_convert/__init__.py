"""Build-time half of milnce: official weights to ONNX bundles. Needs the extra `convert` (torch, onnx, onnxscript)."""
