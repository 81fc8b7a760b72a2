"""Plugins by entry point: discover, load, check, explain."""
