"""Each row of the table of ends was met by a real process of this session.

Only with `--every-row`, which a whole run of the suite gives; `conftest` puts it last.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from terrahalt_agent.core.classify import ROWS
from tests.agent_terraform.harness import ROWS_MET

pytestmark = pytest.mark.terraform


def test_each_row_of_the_table_of_ends_has_decided_a_real_run(
    request: pytest.FixtureRequest, say: Callable[[str], None]
) -> None:
    if not request.config.getoption("--every-row"):
        pytest.skip("for a run of the whole suite: --every-row")
    for row in ROWS:
        say(f"decided by {row.observed!r}: {ROWS_MET[row.observed]} runs")
    never_met = [row.observed for row in ROWS if not ROWS_MET[row.observed]]
    assert not never_met, f"decided no run of a real process: {'; '.join(never_met)}"
