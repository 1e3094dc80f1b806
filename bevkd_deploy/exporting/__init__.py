"""The student as artefacts: typed ONNX, checked for portability and parity, and TensorRT plans."""
