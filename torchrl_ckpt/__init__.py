"""torchrl-ckpt: reinforcement learning and fine-tuning of language models in plain PyTorch.

The core looks plugins up by name and never imports one; see docs/architecture.md.
"""
