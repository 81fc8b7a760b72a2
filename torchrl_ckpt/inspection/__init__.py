"""What is inside checkpoints: shown, compared, exported. Here plugins and torch come in, which
`checkpoint` does without."""
