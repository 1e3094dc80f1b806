"""Distillation losses: one idea a file, unweighted, student before teacher, source cited."""
