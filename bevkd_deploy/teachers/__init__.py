"""Frozen networks to distil from."""
