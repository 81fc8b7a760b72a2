"""What is inside checkpoints: shown, compared, exported. Unlike `checkpoint` it needs torch and
the plugins."""
