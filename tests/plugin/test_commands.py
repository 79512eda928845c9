"""What each command shows and changes, for who may do all and for who may only see."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any

import pytest
import yaml

from tests.crds.api_server import ApiServer, a_pool, eventually
from tests.plugin.program import Program
from tests.plugin.tasks import STAGES, Tasks, a_condition, a_plan

pytestmark = pytest.mark.cluster

VIEWER = "plugin-viewer"
COLOURS = re.compile(r"\x1b\[")


def rows(table: str) -> list[list[str]]:
    """Its cells, the head included; two blanks or more are between columns, none of which is empty here."""
    return [re.split(r" {2,}", line.strip()) for line in table.splitlines() if line.strip()]


def row(table: str, name: str) -> list[str]:
    (found,) = [cells for cells in rows(table) if name in cells]
    return found


# ---- list


def test_list_shows_what_each_task_does(plugin: Program, tasks: Tasks) -> None:
    name = tasks.create("listed")
    tasks.say(
        name,
        phase="Applying",
        agent={"podName": "default-agent-x7k2p"},
        progress={"done": 7, "planned": 12, "summary": "7/12"},
    )
    shown = plugin("list")
    assert rows(shown)[0] == ["NAME", "PHASE", "ACTION", "WORKSPACE", "AGENT", "PROGRESS", "REASON", "AGE"]
    assert row(shown, name)[:-1] == [name, "Applying", "Apply", "network", "default-agent-x7k2p", "7/12"]
    tasks.end(name, "Failed", "ApplyFailed")
    assert row(plugin("list"), name)[6] == "ApplyFailed"
    assert row(plugin("list", "--all-namespaces"), name)[0] == tasks.namespace


def test_list_takes_only_what_the_selector_says_and_prints_it_for_programs(plugin: Program, tasks: Tasks) -> None:
    name = tasks.create("selected", labels={"team": "net"})
    tasks.create("unselected")
    for form, read in (("json", json.loads), ("yaml", yaml.safe_load)):
        listed = read(plugin("list", "-l", "team=net", "-o", form))
        assert listed["kind"] == "List"
        assert [item["metadata"]["name"] for item in listed["items"]] == [name]
        assert "managedFields" not in listed["items"][0]["metadata"]
        assert listed["items"][0]["spec"]["workspace"] == "network"
    assert "no tasks in namespace" in plugin.attempt("list", "-l", "team=none").stderr


def test_colours_are_for_terminals_and_for_those_who_want_them(plugin: Program, tasks: Tasks) -> None:
    name = tasks.create("coloured")
    tasks.end(name, "Succeeded", "Applied", exitCode=0)
    assert not COLOURS.search(plugin("list") + plugin("status", name))
    with plugin.at_a_terminal("list") as terminal:
        assert terminal.until_ended() == 0
    assert "\x1b[32mSucceeded\x1b[0m" in terminal.screen
    with plugin.at_a_terminal("list", NO_COLOR="1") as terminal:
        assert terminal.until_ended() == 0
    assert name in terminal.screen
    assert not COLOURS.search(terminal.screen)


# ---- status


def test_status_has_the_life_of_a_task_in_its_order_with_durations_and_who_asked(plugin: Program, tasks: Tasks) -> None:
    name = tasks.create("lived")
    plugin("cancel", name)
    day = "2099-01-02T"  # after its creation
    stages = {stage: at.replace("2026-01-02T", day) for stage, at in STAGES.items()}
    tasks.say(
        name,
        startedAt=f"{day}03:04:00.000000Z",
        plan={"add": 3, "change": 0, "destroy": 1},
        agent={"podName": "default-agent-x7k2p"},
        cancel={"by": "User", "rung": "Interrupt", **stages},
    )
    tasks.end(
        name, "Cancelled", "CancelledByUser", state="Incomplete", openAddresses=["aws_vpc.main"], openAddressCount=1
    )
    conditions = [
        a_condition("Scheduled", "Assigned", at=f"{day}03:03:59.000000Z", message="agent pod default-agent-x7k2p"),
        a_condition("PlanReady", "Planned", at=f"{day}03:04:02.500000Z", message="3 to add"),
        a_condition("Finished", "CancelledByUser", at=f"{day}03:04:07.000000Z"),
    ]
    tasks.say(name, conditions=conditions, finishedAt=f"{day}03:04:07.000000Z")
    shown = plugin("status", name)
    lines = rows(shown)
    timeline = {
        cells[3]: (cells[0], cells[2])
        for cells in lines
        if re.match(r"\d\d:\d\d:\d\d\.\d", cells[0]) and len(cells) > 3
    }
    assert list(timeline) == [
        *("Scheduled", "started", "PlanReady", "requested", "sent", "signalled", "exited", "swept", "Finished", "ended")
    ]
    assert timeline["PlanReady"] == ("03:04:02.500", "+2.50 s")
    assert timeline["exited"] == ("03:04:06.250", "+1.20 s")
    assert "asked for by User, with kubectl-terrahalt" in shown
    assert "3 to add, 0 to change, 1 to destroy" in shown
    assert "lived: Cancelled, CancelledByUser; exit code 1, state Incomplete, lock Released" in shown
    assert "under way when terraform was killed (1): aws_vpc.main" in shown


def test_status_prints_the_object_for_programs(plugin: Program, tasks: Tasks) -> None:
    name = tasks.create("object")
    assert json.loads(plugin("status", name, "--output=json"))["metadata"]["name"] == name


# ---- queue


def test_queue_is_in_the_order_of_its_positions_and_says_for_what_each_waits(plugin: Program, tasks: Tasks) -> None:
    own = {"labels": {"queue": "test"}, "poolRef": {"name": "busy"}}
    for name, position in (("waits-2", 2), ("waits-1", 1), ("waits-far", 0)):
        tasks.create(name, priority=position, **own)
        place: dict[str, Any] = {"position": position} if position else {}
        tasks.say(name, phase="Queued", queue={"waitingFor": f"reason of {name}", **place})
    runs = tasks.create("waits-no-more", **own)
    tasks.say(runs, phase="Planning")
    tasks.create("waits-unseen", **own)
    shown = rows(plugin("queue", "-l", "queue=test"))
    assert shown[0] == ["POOL", "POSITION", "NAME", "WORKSPACE", "PRIORITY", "AGE", "WAITING FOR"]
    assert [cells[:3] for cells in shown[1:3]] == [["busy", "1", "waits-1"], ["busy", "2", "waits-2"]]
    assert [cells[1] for cells in shown[3:]] == ["waits-far", "waits-unseen"]
    assert [cells[-1] for cells in shown[1:4]] == [f"reason of {name}" for name in ("waits-1", "waits-2", "waits-far")]
    listed = json.loads(plugin("queue", "-l", "queue=test", "-o", "json"))["items"]
    assert [item["metadata"]["name"] for item in listed] == ["waits-1", "waits-2", "waits-far", "waits-unseen"]


# ---- top


@pytest.fixture
def pool(api: ApiServer, tasks: Tasks) -> str:
    made = a_pool("top", minIdle=0, maxAgents=7)
    api.create(made, tasks.namespace, for_real=True)
    status = {"agents": 4, "idle": 1, "busy": 2, "starting": 1, "queued": 9}
    answer = api.patch(made, tasks.namespace, {"status": status}, subresource="/status", for_real=True)
    assert answer.is_accepted, answer.body
    return "top"


def an_agent(name: str, **labels: str) -> dict[str, Any]:
    """A pod that no node takes."""
    own = {"app.kubernetes.io/name": "terrahalt-agent", "terrahalt.dev/pool": "top"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {**own, **{f"terrahalt.dev/{k.replace('_', '-')}": v for k, v in labels.items()}},
        },
        "spec": {
            "nodeSelector": {"terrahalt.dev/none": "none"},
            "containers": [{"name": "agent", "image": "none"}],
        },
    }


def test_top_shows_pools_and_who_runs_what(plugin: Program, api: ApiServer, tasks: Tasks, pool: str) -> None:
    name = tasks.create("on-top", poolRef={"name": pool})
    tasks.say(
        name, phase="Applying", progress={"done": 1, "planned": 2, "summary": "1/2"}, agent={"podName": "top-busy"}
    )
    for pod in (
        an_agent("top-ended", last_task="before"),
        an_agent("top-starting"),
        an_agent("top-idle"),
        an_agent("top-busy", task=name, last_task=name),
    ):
        create = partial(api.create, pod, tasks.namespace, for_real=True)
        # A new namespace has its ServiceAccount a moment later.
        made = eventually(create, lambda answer: answer.is_accepted)
        assert made.is_accepted, made.body
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    merge = "application/strategic-merge-patch+json"
    api.request("PATCH", f"/api/v1/namespaces/{tasks.namespace}/pods/top-idle/status", ready, content=merge)
    shown = plugin("top")
    pools, agents = shown.split("\n\n")
    assert row(pools, pool) == ["top", "Terraform", "4/7", "1", "2", "1", "9"]
    assert [cells[:3] for cells in rows(agents)[1:]] == [
        ["top-busy", "top", "busy"],
        ["top-idle", "top", "idle"],
        ["top-starting", "top", "starting"],
        ["top-ended", "top", "ended"],
    ]
    assert row(agents, "top-busy")[3:6] == [name, "Applying", "1/2"]
    kinds = [item["kind"] for item in json.loads(plugin("top", "-o", "json"))["items"]]
    assert kinds == ["AgentPool", "Pod", "Pod", "Pod", "Pod"]


# ---- cancel


@pytest.mark.parametrize(
    ("flags", "fields"),
    [
        ([], {"cancel": True, "cancelMode": "Graceful", "cancelGraceSeconds": 300}),
        (["--grace=5"], {"cancel": True, "cancelMode": "Graceful", "cancelGraceSeconds": 5}),
        (["--force"], {"cancel": True, "cancelMode": "Force", "cancelGraceSeconds": 300}),
        (["--abandon"], {"cancel": True, "cancelMode": "Abandon", "cancelGraceSeconds": 300}),
    ],
    ids=lambda value: "".join(value) if isinstance(value, list) else "",
)
def test_cancel_sets_what_its_flags_say_and_nothing_else(
    plugin: Program, tasks: Tasks, flags: list[str], fields: dict[str, Any]
) -> None:
    name = tasks.create("cancel" + "".join(flags).replace("=", ""))
    before = tasks.get(name)["spec"]
    assert "kubectl terrahalt cancel" in plugin("cancel", name, *flags)
    assert tasks.get(name)["spec"] == {**before, **fields}


def test_a_cancel_that_the_api_refuses_says_why(plugin: Program, tasks: Tasks) -> None:
    name = tasks.create("lowered")
    plugin("cancel", name, "--force")
    assert "can only be made shorter" in plugin.refused("cancel", name, "--grace=900")


# ---- run


def test_run_creates_the_task_that_the_dry_run_shows(plugin: Program, tasks: Tasks) -> None:
    flags = ["run", "--config-map=net", "--workspace=made", "--var=region=eu", "--name=made", "--output=json"]
    shown = json.loads(plugin(*flags, "--dry-run"))
    created = json.loads(plugin(*flags))
    assert shown["spec"].items() <= created["spec"].items()
    assert tasks.get("made")["metadata"]["uid"] == created["metadata"]["uid"]


def test_run_names_a_task_after_its_workspace(plugin: Program, tasks: Tasks) -> None:
    said = plugin("run", "--config-map=net", "--workspace=named")
    found = re.search(r"task (named-\w{5}) created", said)
    assert found, said
    assert tasks.get(found[1])["spec"]["action"] == "Plan"


def test_a_name_that_is_taken_is_refused_with_what_to_do(plugin: Program, tasks: Tasks) -> None:
    name = tasks.create("taken")
    assert "give another --name" in plugin.refused("run", "--config-map=net", "--workspace=w", f"--name={name}")


# ---- errors


def test_a_task_that_is_not_there_is_named_with_the_namespace_that_was_looked_in(plugin: Program) -> None:
    for command in (["status"], ["cancel"], ["approve"], ["logs"]):
        said = plugin.refused(*command, "nobody")
        assert f"there is no task nobody in namespace {plugin.namespace}" in said
        assert "list -A" in said


def test_completion_knows_the_names_of_tasks(plugin: Program, tasks: Tasks) -> None:
    name = tasks.create("completed")
    asked = ["__complete", f"--namespace={tasks.namespace}", "status", ""]
    program = Program(plugin.path, plugin.environment)
    assert name in program(*asked).splitlines()


def test_a_log_of_a_task_without_an_agent_is_none_and_says_so(plugin: Program, tasks: Tasks) -> None:
    assert "has no agent yet" in plugin.refused("logs", tasks.create("silent"))
    ended = tasks.create("never-ran")
    tasks.end(ended, "Cancelled", "CancelledByUser")
    assert "no agent has run task never-ran" in plugin.refused("logs", ended)
    gone = tasks.create("gone")
    tasks.end(gone, "Failed", "ApplyFailed")
    tasks.say(gone, startedAt=STAGES["requestedAt"], agent={"podName": "default-agent-gone"})
    assert "is gone, and its log was not kept" in plugin.refused("logs", gone)


# ---- who may only see


@pytest.fixture(scope="module")
def viewer(plugin: Program, api: ApiServer, tasks: Tasks) -> str:
    kinds = "--resource=terraformtasks.terrahalt.dev,agentpools.terrahalt.dev"
    api.kubectl("-n", tasks.namespace, "create", "role", VIEWER, "--verb=get,list,watch", kinds)
    api.kubectl("-n", tasks.namespace, "create", "rolebinding", VIEWER, f"--role={VIEWER}", f"--user={VIEWER}")
    may_see = eventually(lambda: plugin.attempt("list", f"--as={VIEWER}"), lambda done: done.returncode == 0)
    assert may_see.returncode == 0, may_see.stderr
    return f"--as={VIEWER}"


def test_who_may_only_see_sees_all_that_tasks_and_pools_tell(
    plugin: Program, tasks: Tasks, viewer: str, pool: str
) -> None:
    name = tasks.create("seen", poolRef={"name": pool})
    tasks.say(name, phase="Applying", agent={"podName": "top-agent-7"})
    assert row(plugin("list", viewer), name)
    assert name in plugin("status", name, viewer)
    assert plugin.attempt("queue", viewer).returncode == 0
    done = plugin.attempt("top", viewer)
    assert done.returncode == 0
    assert "you may not list pods" in done.stderr
    assert row(done.stdout, "top-agent-7")[:4] == ["top-agent-7", pool, "busy", name]


def test_who_may_only_see_changes_nothing_and_reads_which_verb_is_missing(
    plugin: Program, tasks: Tasks, viewer: str
) -> None:
    name = tasks.create("untouched", approval="Manual")
    tasks.say(name, phase="AwaitingApproval", plan=a_plan())
    before = tasks.get(name)["spec"]
    for arguments, verb in (
        (["cancel", name], "patch terraformtasks"),
        (["approve", name, "--yes"], "patch terraformtasks"),
        (["run", "--config-map=net", "--workspace=w"], "create terraformtasks"),
    ):
        said = plugin.refused(*arguments, viewer)
        assert f"you may not {verb} in namespace {tasks.namespace}" in said
        assert "kubectl auth can-i" in said
    assert tasks.get(name)["spec"] == before


def test_who_sees_no_other_namespace_is_told_so(plugin: Program, viewer: str) -> None:
    assert "you may not list terraformtasks in all namespaces" in plugin.refused("list", "-A", viewer)


def test_who_may_get_a_task_and_not_watch_it_still_sees_its_end(plugin: Program, api: ApiServer, tasks: Tasks) -> None:
    user = "plugin-getter"
    api.kubectl(
        *("-n", tasks.namespace, "create", "role", user),
        *("--verb=get,patch,cancel", "--resource=terraformtasks.terrahalt.dev"),
    )
    api.kubectl("-n", tasks.namespace, "create", "rolebinding", user, f"--role={user}", f"--user={user}")
    name = tasks.create("polled")
    eventually(lambda: plugin.attempt("status", name, f"--as={user}"), lambda done: done.returncode == 0)
    with plugin.started("cancel", name, "--wait", f"--as={user}") as child:
        assert child.stdout is not None
        assert "Queued" in child.stdout.readline()
        tasks.end(name, "Cancelled", "CancelledByUser")
        assert "polled: Cancelled" in child.stdout.read()
        assert child.wait(30) == 0
