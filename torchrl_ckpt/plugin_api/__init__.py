"""All that a plugin may import: a file for each kind of plugin, and what plugins share."""
