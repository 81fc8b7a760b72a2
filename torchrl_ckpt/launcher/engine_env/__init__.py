"""The Python environment of an engine that cannot share the job's own."""
