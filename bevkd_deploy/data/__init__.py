"""Samples from nuScenes tables, mmdet3d info files or the synthetic world, and batches made of them."""
