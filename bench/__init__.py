"""Benchmarks: `./dev bench NAME` runs ``bench/NAME.py``. Each prints its figures beside their targets."""
