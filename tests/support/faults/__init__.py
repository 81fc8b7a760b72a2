"""Breaks saving, checkpoints and whole jobs on purpose, and checks what was promised of them.

Used by the tests beside it and by `benchmarks/faults.py`.
"""
