"""The training loop: data, parallelism, optimiser, training state."""
