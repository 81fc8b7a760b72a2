"""`torchrl-ckpt ckpt`: lists, shows, verifies, compares, prunes, exports and forks checkpoints."""

from torchrl_ckpt.cli.ckpt.main import add_parser, main

__all__ = ["add_parser", "main"]
