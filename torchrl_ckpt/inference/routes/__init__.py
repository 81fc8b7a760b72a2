"""The server's HTTP routes, a file for each."""
