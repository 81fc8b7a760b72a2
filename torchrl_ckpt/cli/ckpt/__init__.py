"""The commands of `torchrl-ckpt ckpt`: one file for each, with its arguments and its output."""
