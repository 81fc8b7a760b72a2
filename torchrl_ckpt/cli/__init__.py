"""The commands: what each takes and prints, and nothing else."""
