"""What a third party adds to torchrl-ckpt: a loss and a checkpoint backend."""
