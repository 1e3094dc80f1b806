"""Frames, grid, boxes, pillars and camera-to-BEV tables in pure NumPy: no torch, no files, no configuration."""
