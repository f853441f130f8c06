"""Benchmarks: programs run by hand and by `make bench`, compared as ratios within one run; no timed assertions."""
