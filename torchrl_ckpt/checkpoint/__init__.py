"""When to save, commit, verify, resume and retain. It knows no storage format."""
