"""All of the core that a plugin may import: a file for each kind, and what plugins share."""
