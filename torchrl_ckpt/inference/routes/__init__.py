"""The server's HTTP routes, one file for each group of paths."""
