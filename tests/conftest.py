"""Fixtures for all tests."""

pytest_plugins = ["tests.support.base", "tests.support.sites"]
