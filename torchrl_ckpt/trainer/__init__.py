"""The trainer: batches, training steps, parallelism, training state, its part of checkpoints."""
