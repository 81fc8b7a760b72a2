"""Plugins by entry point: discover, look up, load, check."""
