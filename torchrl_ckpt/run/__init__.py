"""A run's files but for checkpoints: attempt, `resolved.json`, metrics, logs, rollouts, weights."""
