"""What becomes of an operator's process when its time is over; as real processes, as only those can be replaced."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from terrahalt_operator import app

ONE_LIFE = """
import os
from terrahalt_operator import app

async def run(settings):
    print("lives as", os.getpid(), flush=True)
    ending = int(os.environ.pop("ENDING", app.ASKED))
    return ending

app._run = run
app.main()
"""


@pytest.mark.parametrize(("ending", "lives", "code"), [(app.ASKED, 1, 0), (app.FAILED, 1, 1), (app.DEPOSED, 2, 0)])
def test_who_was_deposed_begins_anew_in_its_own_place_and_nobody_else_does(ending: int, lives: int, code: int) -> None:
    settings = {"TERRAHALT_NAMESPACE": "system", "TERRAHALT_AGENT_IMAGE": "agent", "ENDING": str(ending)}
    environment = {**os.environ, **settings, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen([sys.executable, "-c", ONE_LIFE], env=environment, stdout=subprocess.PIPE, text=True)
    said, _ = child.communicate(timeout=60)
    assert said.splitlines() == [f"lives as {child.pid}"] * lives
    assert child.returncode == code


@pytest.mark.parametrize(("value", "scraper"), [(None, None), ("", None), ('{"podSelector":{}}', {"podSelector": {}})])
def test_who_may_scrape_agents_is_what_the_chart_says(
    monkeypatch: pytest.MonkeyPatch, value: str | None, scraper: dict[str, object] | None
) -> None:
    settings = {"TERRAHALT_NAMESPACE": "system", "TERRAHALT_AGENT_IMAGE": "agent"}
    for name, said in (settings | ({"TERRAHALT_AGENT_METRICS_FROM": value} if value is not None else {})).items():
        monkeypatch.setenv(name, said)
    assert app.Settings.from_environment().scraper == scraper
