"""Measures expirer side by side with what people would use instead: `python -m benchmarks`, or `make bench`."""
