"""Injects faults into saves, checkpoints and whole jobs, and checks the invariants afterwards."""
