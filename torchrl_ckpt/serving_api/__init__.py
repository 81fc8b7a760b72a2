"""What crosses between processes: rollout batches, published weights, completions."""
