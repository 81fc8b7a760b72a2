"""Plugins of a third party for torchrl-ckpt: a loss and a checkpoint backend."""
