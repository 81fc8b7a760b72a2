"""Checkpoints on disk: commit, verification, resume, retention. It knows no tensor format."""
