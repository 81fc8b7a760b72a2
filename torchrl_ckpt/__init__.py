"""torchrl-ckpt: reinforcement learning of language models whose checkpoints can be trusted.

The core looks plugins up by name and never imports one; see docs/architecture.md for the house.
"""
