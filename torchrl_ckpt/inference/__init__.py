"""The HTTP server around an engine."""
