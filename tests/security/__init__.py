"""Attacks on a running product, each of which must fail."""
