"""The display of a running job for the user."""
