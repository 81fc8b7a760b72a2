"""TOML recipes with includes, flags, layers, origins, and the schema of every option."""
