"""TOML recipes with includes, flags and layers, each value with its origin."""
