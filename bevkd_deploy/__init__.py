"""bevkd: distil a camera+LiDAR BEVFusion teacher into a student that runs as one TensorRT engine."""

__version__ = "0.1.0"
