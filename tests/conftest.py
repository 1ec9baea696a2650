"""Fixtures for all tests, and CI's rule that nothing is skipped."""

from __future__ import annotations

import os

import pytest

pytest_plugins = [
    "tests.support.base",
    "tests.support.sites",
    "tests.support.line",
    "tests.support.machines",
    "tests.support.kdc",
    "tests.support.doors",
]

SLOW = "INVIRTIBUILDER_TEST_SLOW"
collect_ignore = [] if os.environ.get(SLOW) else ["slow"]


def pytest_report_header() -> str:
    """Nothing is left out in silence."""
    return "" if os.environ.get(SLOW) else "left out: tests/slow (tests/run --slow)"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What makes accounts, or is somebody else for a while, needs root."""
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("needs root")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With INVIRTIBUILDER_TEST_NO_SKIPS (CI) a skipped test fails the run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("INVIRTIBUILDER_TEST_NO_SKIPS") and skipped:
        reporter.write_line(f"{len(skipped)} skipped, which CI forbids", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
