"""Checkpoint backend on torch's Distributed Checkpoint."""
