"""Fixtures that several test folders share live in tests/support."""

pytest_plugins = ["tests.support.component_processes", "tests.support.inference_server"]
