"""Fixtures that several test folders share live in tests/support."""

pytest_plugins: list[str] = []
