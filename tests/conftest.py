"""For all tests: what they print is searched for secrets, and hypothesis judges values, not the speed of a machine."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from hypothesis import HealthCheck, settings

from tests.support import canaries

# a machine that does four things at once is no finding
settings.register_profile("relayd", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("relayd")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that prints a secret fails: its output is that of relayd's own parts."""
    report = yield
    if report.passed:
        # not the records that pytest's own handler caught: what relayd writes of them has gone through its masks
        text = "".join(content for name, content in report.sections if " log " not in name)
        if found := canaries.leaks(text.encode("utf-8", "surrogateescape")):
            report.outcome = "failed"
            report.longrepr = f"secrets in what was printed: {found}"
    return report
