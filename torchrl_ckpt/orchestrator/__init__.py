"""Turns problems into rollouts, rollouts into advantages and batches."""
