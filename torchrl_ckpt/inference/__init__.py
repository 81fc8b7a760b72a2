"""The HTTP server that generates with an engine."""
