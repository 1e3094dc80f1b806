"""Measure artefacts: latency, memory, parity, gates, and the result file they make."""
