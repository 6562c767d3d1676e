"""TensorRT engines from exported files: build, audit, run."""
