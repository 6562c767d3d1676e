"""Export to ONNX and ONNX Runtime."""
