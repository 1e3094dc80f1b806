"""Boxes to nuScenes detection metrics, equal to the official devkit and in NumPy alone."""
