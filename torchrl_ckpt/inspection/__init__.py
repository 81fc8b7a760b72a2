"""What is inside checkpoints: shown, compared, exported; and trials of plugins. Unlike `checkpoint`
and `registry` it needs torch and the plugins."""
