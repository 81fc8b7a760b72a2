"""Composes a job's processes from a resolved recipe, watches them, ends them."""
