"""The Python environment that an engine's server runs in."""
