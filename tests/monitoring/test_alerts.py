"""Each alert fires where it should, and nowhere else, by Prometheus' own reckoning; each has its runbook."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from tests.monitoring.promtool import complaints
from tests.monitoring.test_metrics_page import of_an_agent
from tests.operator_core.measured import of_a_busy_day

ROOT = Path(__file__).parents[2]
FILE = ROOT / "charts/terrahalt/files/alerts.yaml"
TEXT = (ROOT / "docs/monitoring.md").read_text()
RULES = {rule["alert"]: rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]}

LED = 'terrahalt_leader{namespace="terrahalt-system",pod="a"}'
OTHER = 'terrahalt_leader{namespace="terrahalt-system",pod="b"}'
OF_POOL = 'namespace="team-a",pool="default"'
POOL = {"namespace": "team-a", "pool": "default"}
WRITES = 'terrahalt_status_writes_total{namespace="terrahalt-system",pod="a",kind="task"}'
WATCH = 'terrahalt_watch_age_seconds{namespace="terrahalt-system",pod="a"}'
LOOKS = 'terrahalt_reconcile_duration_seconds_bucket{kind="task",le="%s"}'

Series = dict[str, str]
"""Each with a value a minute, in promtool's words."""


@dataclass(frozen=True)
class Case:
    alert: str
    fires: Series
    after: str
    summary: str
    silent: tuple[Series, ...]
    labels: dict[str, str] = field(default_factory=dict)
    """Beside its severity."""


CASES = (
    Case(
        "TerrahaltOperatorDown",
        fires={LED: "1 1 1 _x20"},
        after="16m",
        summary="No operator of Terrahalt is to be seen",
        silent=({LED: "0x20"}, {OTHER: "1x20"}),
    ),
    Case(
        "TerrahaltNoLeader",
        fires={LED: "1 0x20", OTHER: "0x20"},
        after="5m",
        summary="None of the operators in terrahalt-system leads",
        labels={"namespace": "terrahalt-system"},
        # Another one takes over within seconds: one scrape may see none.
        silent=({LED: "1x20", OTHER: "0x20"}, {LED: "1 1 1 1 0 0x9", OTHER: "0 0 0 0 0 1x9"}),
    ),
    Case(
        "TerrahaltCancelPending",
        fires={"terrahalt_cancel_pending_seconds": "0 60 120 180 240 300 360 420 480 540 600 660"},
        after="11m",
        summary="A run that was cancelled 11m 0s ago has not ended",
        silent=({"terrahalt_cancel_pending_seconds": "0x5 300 410 0x5"},),
    ),
    Case(
        "TerrahaltStateNotSaved",
        fires={f'terrahalt_states_in_doubt_total{{{OF_POOL},state="Corrupt"}}': "0x5 1x10"},
        after="7m",
        summary="A run of pool team-a/default left a state that is Corrupt",
        labels={**POOL, "state": "Corrupt"},
        silent=(
            {f'terrahalt_states_in_doubt_total{{{OF_POOL},state="NotPersisted"}}': "3x20"},
            {f'terrahalt_states_in_doubt_total{{{OF_POOL},state="Incomplete"}}': "0x5 1x10"},
        ),
    ),
    Case(
        "TerrahaltLockLeaked",
        fires={f'terrahalt_leaked_locks_total{{{OF_POOL},pod="a"}}': "0x5 1x10"},
        after="7m",
        summary="A run of pool team-a/default left the lock of its state behind",
        labels=POOL,
        # A new operator begins at 0, which is no rise.
        silent=({f'terrahalt_leaked_locks_total{{{OF_POOL},pod="a"}}': "7x5 0x10"},),
    ),
    Case(
        "TerrahaltAgentLost",
        fires={f"terrahalt_agents_lost_total{{{OF_POOL}}}": "0x5 1x10"},
        after="7m",
        summary="An agent of pool team-a/default died with its run",
        labels=POOL,
        silent=({f"terrahalt_agents_lost_total{{{OF_POOL}}}": "2x20"},),
    ),
    Case(
        "TerrahaltForcedEnds",
        fires={f"terrahalt_forced_ends_total{{{OF_POOL}}}": "0x5 1x5 2x5 4x30"},
        after="30m",
        summary="Runs of pool team-a/default often have to be ended by force",
        labels=POOL,
        silent=({f"terrahalt_forced_ends_total{{{OF_POOL}}}": "0x5 1x60"},),
    ),
    Case(
        "TerrahaltPoolNotReady",
        fires={f"terrahalt_pool_ready{{{OF_POOL}}}": "0x30", f"terrahalt_tasks_waiting{{{OF_POOL}}}": "3x30"},
        after="12m",
        summary="Tasks wait for pool team-a/default, whose agents don't start",
        labels=POOL,
        silent=(
            {f"terrahalt_pool_ready{{{OF_POOL}}}": "0x30", f"terrahalt_tasks_waiting{{{OF_POOL}}}": "0x30"},
            {f"terrahalt_pool_ready{{{OF_POOL}}}": "1x30", f"terrahalt_tasks_waiting{{{OF_POOL}}}": "3x30"},
            {
                f"terrahalt_pool_ready{{{OF_POOL}}}": "0x30",
                'terrahalt_tasks_waiting{namespace="team-a",pool="other"}': "3x30",
            },
        ),
    ),
    Case(
        "TerrahaltWatchStalled",
        fires={WATCH: "0+60x30", WRITES: "0+2x30"},
        after="15m",
        summary="An operator's watch of the cluster has told nothing for 15m 0s",
        labels={"namespace": "terrahalt-system", "pod": "a"},
        # A quiet cluster; and one whose writes come back.
        silent=({WATCH: "0+60x30", WRITES: "7x30"}, {WATCH: "5x30", WRITES: "0+2x30"}),
    ),
    Case(
        "TerrahaltReconcileSlow",
        fires={LOOKS % "1.0": "0+50x30", LOOKS % "2.5": "0+100x30", LOOKS % "+Inf": "0+100x30"},
        after="20m",
        summary="The operator takes 2.47s for one look at a task",
        labels={"kind": "task"},
        silent=({LOOKS % "0.01": "0+100x30", LOOKS % "1.0": "0+100x30", LOOKS % "+Inf": "0+100x30"},),
    ),
)


def tried(folder: Path, alert: str, series: Series, moments: list[str], expected: list[dict[str, Any]]) -> str:
    """promtool's complaint; empty: it is as expected at each moment."""
    test = {
        "rule_files": [str(FILE)],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": name, "values": values} for name, values in series.items()],
                "alert_rule_test": [
                    {"eval_time": moment, "alertname": alert, "exp_alerts": expected} for moment in moments
                ],
            }
        ],
    }
    (folder / "test.yaml").write_text(yaml.safe_dump(test))
    return complaints("test", "rules", folder / "test.yaml")


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_it_fires_and_says_what_is_wrong(case: Case, tmp_path: Path) -> None:
    rule = RULES[case.alert]
    alert = {
        "exp_labels": {**case.labels, **rule["labels"]},
        "exp_annotations": {**rule["annotations"], "summary": case.summary},
    }
    assert tried(tmp_path, case.alert, case.fires, [case.after], [alert]) == ""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.alert)
def test_it_is_silent_where_nothing_is_wrong(case: Case, tmp_path: Path) -> None:
    for series in case.silent:
        moments = [f"{minute}m" for minute in range(31)]
        if case.alert == "TerrahaltOperatorDown":
            moments = moments[:20]  # the series end
        assert tried(tmp_path, case.alert, series, moments, []) == "", series


def test_every_alert_is_tried() -> None:
    assert [case.alert for case in CASES] == list(RULES)


def test_promtool_has_nothing_to_say_of_the_rules() -> None:
    assert complaints("check", "rules", FILE) == ""


def test_each_alert_has_its_runbook_and_no_other_is_there() -> None:
    runbooks = TEXT.partition("\n## Runbooks\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", runbooks, re.MULTILINE) == list(RULES)
    for name, rule in RULES.items():
        assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{name.lower()}"
        assert rule["labels"]["severity"] in ("critical", "warning")


def columns(kind: str) -> list[str]:
    """Paths that the runbooks show of a kind."""
    shown = re.findall(rf"kubectl (?:-n team-a )?get {kind} (?:-A )?-o custom-columns='(.*?)'", TEXT)
    return [column.partition(":")[2] for found in shown for column in found.split(",")]


@pytest.mark.parametrize("kind", ["terraformtasks", "agentpools"])
def test_the_runbooks_show_fields_that_there_are(kind: str) -> None:
    crd = yaml.safe_load((ROOT / f"crds/{kind}.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert columns(kind)
    for path in columns(kind):
        below = schema
        for name in path.removeprefix(".").replace('[?(@.type=="Ready")]', "").split("."):
            below = below.get("items", below)
            if name in ("metadata", "name", "namespace") and "properties" not in below.get(name, {}):
                break  # what every object has
            assert name in below["properties"], path
            below = below["properties"][name]


def described() -> dict[str, set[str]]:
    """Metric -> its labels, and those of the pod that it was scraped from."""
    rows = re.findall(r"\| `(terrahalt_\w+)` \| \w+ \| (.*?) \|", TEXT)
    return {name: {"namespace", "pod", "le", *re.findall(r"`(\w+)`", labels)} for name, labels in rows}


def named(text: str) -> set[str]:
    """Metrics in a query, as docs/monitoring.md names them."""
    return {re.sub("_(bucket|count|sum)$", "", name) for name in re.findall(r"\bterrahalt_\w+", text)}


def test_what_the_alerts_are_tried_with_has_the_labels_of_what_is_scraped() -> None:
    known = described()
    for series in (series for case in CASES for series in (case.fires, *case.silent)):
        for text in series:
            (metric,) = named(text)
            assert set(re.findall(r"(\w+)=", text)) <= known[metric], text


DASHBOARD = json.loads((ROOT / "charts/terrahalt/files/dashboard.json").read_text())
TARGETS = [target for panel in DASHBOARD["panels"] for target in panel.get("targets", ())]


def test_each_query_asks_for_metrics_and_labels_that_there_are() -> None:
    known = described()
    rules = [{"expr": rule["expr"], "legendFormat": str(rule["annotations"])} for rule in RULES.values()]
    assert len(TARGETS) > 20
    for target in (*TARGETS, *rules):
        labels = set(re.findall(r"(\w+)=~?\"", target["expr"]))
        for group in re.findall(r"(?:by|on|group_left) \((.*?)\)", target["expr"]):
            labels |= {label for label in group.split(", ") if label}
        labels |= set(re.findall(r"{{(?: \$labels\.)?(\w+) ?}}", target["legendFormat"]))
        metrics = named(target["expr"])
        assert metrics <= set(known)
        assert labels <= set().union(*(known[metric] for metric in metrics)), target


def test_prometheus_answers_every_query_of_the_dashboard(tmp_path: Path) -> None:
    """From what both sides print, as it is scraped: nothing that is asked for has another name, label or word."""
    pages = {"operator-a": of_a_busy_day().page()[0], "agent-a": of_an_agent()}
    series = [
        {"series": sample_text(sample, pod), "values": f"{sample.value}x30"}
        for pod, page in pages.items()
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    ]
    at_risk = {"series": 'terrahalt_pool_ready{namespace="team-b",pool="default"}', "values": "0x30"}
    queries = [
        target["expr"].replace("$__rate_interval", "5m").replace("$namespace", ".*").replace("$pool", ".*")
        for target in TARGETS
    ]
    asked = [
        {"expr": f"count({query}) > bool 0", "eval_time": "20m", "exp_samples": [{"labels": "{}", "value": 1}]}
        for query in queries
    ]
    test = {
        "evaluation_interval": "1m",
        "tests": [{"interval": "1m", "input_series": [*series, at_risk], "promql_expr_test": asked}],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    assert complaints("test", "rules", tmp_path / "test.yaml") == ""


def sample_text(sample: Sample, pod: str) -> str:
    labels = {"namespace": "terrahalt-system", "pod": pod, **sample.labels}
    return sample.name + "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"
