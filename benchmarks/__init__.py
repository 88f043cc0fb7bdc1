"""Benchmarks, and the demo: python -m benchmarks.language_model."""
