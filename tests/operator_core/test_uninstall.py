"""Taking the operator away: refused while there is what only it can end, else after it has let go of its pools.

And what `helm test` asks. Both against an API server that the test plays.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web

from terrahalt_operator import installed, uninstall
from terrahalt_operator.adapters.cluster import Cluster
from terrahalt_operator.core import names
from terrahalt_operator.core.identity import label_value
from terrahalt_operator.core.uninstall import SHOWN, Release, Thing, leftover, objection
from tests.operator_core.test_cluster import api_server

OURS = Release("terrahalt", "terrahalt-system")
HELD = frozenset({names.AGENT_FINALIZER})
POOL = Thing(namespace="team-a", name="default", release=OURS)


def a_task(name: str = "network", phase: str = "Applying", **changes: Any) -> Thing:
    return Thing(namespace="team-a", name=name, phase=phase, **changes)


def an_agent(**changes: Any) -> Thing:
    return Thing(namespace="team-a", name="default-agent-1", **{"finalizers": HELD, **changes})


def refusal(tasks: tuple[Thing, ...] = (), pools: tuple[Thing, ...] = (), agents: tuple[Thing, ...] = ()) -> str | None:
    found = objection(tasks, pools, agents, OURS)
    return None if found is None else found.text


@pytest.mark.parametrize("phase", ["", "Queued", "Applying", "AwaitingApproval", "Cancelling", "OfALaterVersion"])
def test_a_task_that_has_not_ended_forbids_it_and_is_named_with_what_cancels_it(phase: str) -> None:
    text = refusal(tasks=(a_task(phase=phase),), pools=(POOL,))
    assert text is not None
    assert f"  task team-a/network: {phase or 'not seen yet'}\n" in text
    cancel = "--type merge --patch 'spec: {cancel: true}'"
    assert f"kubectl --namespace team-a patch terraformtask network {cancel}\n" in text
    assert '"' not in text, "helm writes it with a backslash"
    assert "helm uninstall terrahalt --namespace terrahalt-system --no-hooks" in text


def test_what_has_ended_and_pools_that_wait_do_not_forbid_it() -> None:
    ended = tuple(a_task(phase, phase) for phase in ("Succeeded", "Failed", "Cancelled"))
    assert refusal(ended, (POOL,), (an_agent(), an_agent(run="01J", finalizers=frozenset()))) is None


def test_an_ended_task_whose_deletion_waits_for_the_operator_forbids_it() -> None:
    assert "task team-a/network: Succeeded" in str(refusal(tasks=(a_task(phase="Succeeded", is_deleting=True),)))


def test_the_agent_of_a_task_that_has_just_ended_does_not_forbid_it_unless_that_was_only_given_up() -> None:
    agent = an_agent(run="01J", task="network")
    assert refusal(tasks=(a_task(phase="Cancelled", run="01J"),), agents=(agent,)) is None
    for ended in (a_task(phase="Failed", run="01J", is_abandoned=True), a_task(phase="Failed", run="01K")):
        text = str(refusal(tasks=(ended,), agents=(agent,)))
        assert "agent team-a/default-agent-1: run 01J of a task that is gone or was abandoned" in text
        assert "Wait for what runs to end.\nThen again:" in text, "there is nothing to type"


def test_a_run_whose_task_is_gone_forbids_it_and_one_that_is_told_of_is_not_told_of_twice() -> None:
    agent = an_agent(run="01J", task="network")
    assert "agent team-a/default-agent-1: run 01J of a task that is gone or was abandoned" in str(
        refusal(agents=(agent,))
    )
    assert "01J" not in str(refusal(tasks=(a_task(),), agents=(agent,)))
    long = "n" * 100
    labelled = an_agent(run="01J", task=label_value(long))
    assert "01J" not in str(refusal(tasks=(a_task(long, run="01J"),), agents=(labelled,)))


@pytest.mark.parametrize("release", [None, Release("terrahalt", "elsewhere"), Release("second", "terrahalt-system")])
def test_a_pool_that_helm_would_leave_forbids_it_and_no_waiting_helps(release: Release | None) -> None:
    found = objection((a_task(),), (POOL, Thing(namespace="team-b", name="big", release=release)), (), OURS)
    assert found is not None
    assert not found.may_pass
    assert "pool team-b/big: not of this release" in found.text
    assert "kubectl --namespace team-b delete agentpool big" in found.text
    assert "team-a/default" not in found.text


def test_of_many_tasks_the_first_are_named_and_the_others_counted() -> None:
    text = str(refusal(tasks=tuple(a_task(f"task-{number:02}") for number in reversed(range(SHOWN + 3)))))
    assert text.count("  task team-a/") == text.count(" patch terraformtask ") == SHOWN
    assert "team-a/task-00" in text
    assert "  and 3 more" in text


def test_pools_and_agents_that_the_operator_holds_are_left_over_and_ended_pods_are_not() -> None:
    assert leftover((), (an_agent(finalizers=frozenset()),)) == ""
    text = leftover((POOL,), (an_agent(run="01J"),))
    assert "pool team-a/default" in text
    assert "agent team-a/default-agent-1: run 01J" in text


# ---- the program


class Api:
    """Objects by their plural; `on_delete` plays the operator, and `on_list` what happens meanwhile.

    `conflicts`: of so many patches it says that somebody else came first."""

    def __init__(self) -> None:
        self.objects: dict[str, list[dict[str, Any]]] = {"terraformtasks": [], "agentpools": [], "pods": []}
        self.requests: list[str] = []
        self.on_delete: Callable[[], None] = self.let_go
        self.on_list: Callable[[], None] = lambda: None
        self.conflicts = 0

    def finalizers(self, plural: str) -> dict[str, list[str]]:
        return {obj["metadata"]["name"]: obj["metadata"].get("finalizers", []) for obj in self.objects[plural]}

    def add(self, plural: str, name: str, *, status: Any = None, **meta: Any) -> None:
        metadata = {"namespace": "team-a", "name": name, "resourceVersion": "7", **meta}
        self.objects[plural].append({"metadata": metadata, **({"status": status} if status else {})})

    def add_pool(self) -> None:
        helm = {"meta.helm.sh/release-name": OURS.name, "meta.helm.sh/release-namespace": OURS.namespace}
        self.add("agentpools", "default", annotations=helm)
        self.add("pods", "default-agent-1", finalizers=[names.AGENT_FINALIZER], labels={names.POOL_LABEL: "default"})

    def let_go(self) -> None:
        self.objects["agentpools"].clear()
        self.objects["pods"].clear()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        *_, plural = path = request.path.strip("/").split("/")
        self.requests.append(f"{request.method} {request.path}")
        if request.method == "DELETE":
            if path[-2] != "agentpools":
                assert not self.objects["pods"], "what its agents need goes before them"
                return web.json_response({"message": "not found"}, status=404)
            assert path[-1] == "default"
            self.on_delete()
            return web.json_response({})
        if request.method == "PATCH":
            return self.patched(path[-2], path[-1], json.loads(await request.read())["metadata"])
        assert request.method == "GET"
        if plural not in self.objects:
            return web.json_response({"message": "page not found"}, status=404)
        if plural == "pods":
            assert request.query["labelSelector"] == "app.kubernetes.io/name=terrahalt-agent"
        self.on_list()
        return web.json_response({"metadata": {"resourceVersion": "1"}, "items": self.objects[plural]})

    def patched(self, plural: str, name: str, patch: dict[str, Any]) -> web.StreamResponse:
        (found,) = [obj["metadata"] for obj in self.objects[plural] if obj["metadata"]["name"] == name]
        assert patch["resourceVersion"] == found["resourceVersion"], "what somebody has changed since may be undone"
        if self.conflicts:
            self.conflicts -= 1
            found["resourceVersion"] += "1"
            return web.json_response({"message": "the object has been modified"}, status=409)
        found["finalizers"] = patch["finalizers"]
        return web.json_response({"metadata": found})

    @property
    def deletes(self) -> list[str]:
        """Of pools."""
        return [request for request in self.requests if request.startswith("DELETE") and "/agentpools/" in request]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (uninstall, installed):
        monkeypatch.setattr(module, "LOOKS_EVERY_S", 0.001)


async def made_way(api: Api, wait_s: float = 0, watched: tuple[str, ...] = ()) -> str:
    async with api_server(api.answer) as cluster:
        return await uninstall.make_way(cluster, uninstall.Settings(OURS, watched, wait_s, "job"))


async def test_with_a_running_task_nothing_is_deleted() -> None:
    api = Api()
    api.add_pool()
    api.add("terraformtasks", "network", status={"phase": "Planning"})
    assert "task team-a/network: Planning" in await made_way(api)
    assert api.deletes == []


@pytest.mark.parametrize("reason", ["CancelledByUser", "Abandoned"])
async def test_an_agent_that_has_not_gone_yet_is_seen_to_be_of_a_task_that_has_ended(reason: str) -> None:
    api = Api()
    api.add_pool()
    api.objects["pods"][0]["metadata"]["labels"] |= {names.RUN_LABEL: "01J", names.TASK_LABEL: "network"}
    api.add("terraformtasks", "network", status={"phase": "Failed", "runID": "01J", "result": {"reason": reason}})
    assert ("run 01J" in await made_way(api)) == (reason == "Abandoned")
    assert bool(api.deletes) == (reason != "Abandoned")


async def test_it_waits_for_tasks_to_end_as_long_as_it_is_told_to() -> None:
    api = Api()
    api.add_pool()
    api.add("terraformtasks", "network", status={"phase": "Planning"})

    def end_after_some_looks() -> None:
        if len(api.requests) > 8:
            api.objects["terraformtasks"][0]["status"]["phase"] = "Succeeded"

    api.on_list = end_after_some_looks
    assert await made_way(api, wait_s=60) == ""
    assert len(api.deletes) == 1


async def test_the_pools_of_the_release_go_while_the_operator_can_let_go_of_their_agents() -> None:
    api = Api()
    api.add_pool()
    api.on_delete = lambda: None
    looks_after: list[int] = []

    def let_go_later() -> None:
        if api.deletes:
            looks_after.append(1)
        if len(looks_after) == 5:
            api.let_go()

    api.on_list = let_go_later
    assert await made_way(api) == ""
    assert api.deletes == ["DELETE /apis/terrahalt.dev/v1alpha1/namespaces/team-a/agentpools/default"]
    assert len(looks_after) > 5, "it did not wait for the operator"


async def test_what_a_pool_leaves_goes_though_the_operator_may_not_have_come_to_it() -> None:
    api = Api()
    api.add_pool()
    assert await made_way(api) == ""
    assert {request for request in api.requests if request.startswith("DELETE")} - {*api.deletes} == {
        "DELETE /api/v1/namespaces/team-a/configmaps/terrahalt-agents-default",
        "DELETE /apis/policy/v1/namespaces/team-a/poddisruptionbudgets/terrahalt-agents-default",
    }


async def test_what_the_operator_does_not_let_go_of_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uninstall, "GONE_WITHIN_S", 0.01)
    api = Api()
    api.add_pool()
    api.on_delete = api.objects["agentpools"].clear
    text = await made_way(api)
    assert "agent team-a/default-agent-1" in text
    assert "whether an operator is ready" in text


async def test_a_task_that_has_ended_can_be_deleted_without_the_operator() -> None:
    api = Api()
    api.add_pool()
    for name, phase in (("old", "Succeeded"), ("older", "Failed"), ("oldest", "Cancelled")):
        api.add("terraformtasks", name, finalizers=["other", names.TASK_FINALIZER], status={"phase": phase})
    api.add("terraformtasks", "let-go", finalizers=["other"], status={"phase": "Failed"})
    assert await made_way(api) == ""
    assert api.finalizers("terraformtasks") == {name: ["other"] for name in ("old", "older", "oldest", "let-go")}
    assert sorted(request for request in api.requests if request.startswith("PATCH")) == [
        f"PATCH /apis/terrahalt.dev/v1alpha1/namespaces/team-a/terraformtasks/{name}"
        for name in ("old", "older", "oldest")
    ]


async def test_one_that_somebody_changes_meanwhile_is_let_go_of_as_it_is_then() -> None:
    api = Api()
    api.add("terraformtasks", "old", finalizers=[names.TASK_FINALIZER], status={"phase": "Failed"})
    api.conflicts = 1
    assert await made_way(api) == ""
    assert api.finalizers("terraformtasks") == {"old": []}


async def test_a_task_that_begins_meanwhile_is_not_let_go_of() -> None:
    api = Api()
    api.add_pool()

    def begin() -> None:
        api.let_go()
        api.add("terraformtasks", "new", finalizers=[names.TASK_FINALIZER], status={"phase": "Applying"})

    api.on_delete = begin
    assert await made_way(api) == ""
    assert api.finalizers("terraformtasks") == {"new": [names.TASK_FINALIZER]}


async def test_without_the_crds_there_is_nothing_to_wait_for() -> None:
    api = Api()
    del api.objects["terraformtasks"], api.objects["agentpools"]
    assert await made_way(api) == ""


async def test_only_the_namespaces_that_are_served_are_looked_at() -> None:
    api = Api()
    assert await made_way(api, watched=("team-a", "team-b")) == ""
    namespaces = {request.partition("/namespaces/")[2].partition("/")[0] for request in api.requests}
    assert namespaces == {"team-a", "team-b"}


# ---- helm test

RESOURCES = ["terraformtasks", "terraformtasks/status", "agentpools", "agentpools/status", "agentpools/scale"]


def a_deployment(ready: int = 2, *, updated: int = 2, seen: int = 3) -> dict[str, Any]:
    status = {"observedGeneration": seen, "readyReplicas": ready, "updatedReplicas": updated}
    return {"metadata": {"name": "operator", "generation": 3}, "spec": {"replicas": 2}, "status": status}


async def problem(resources: list[str] | None, *deployments: dict[str, Any], within_s: float = 0) -> str:
    """The last of them stays."""
    left = list(deployments)

    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.method == "GET"
        if request.path == "/apis/apps/v1/namespaces/ops/deployments/operator":
            return web.json_response(left.pop(0) if len(left) > 1 else left[0])
        assert request.path == "/apis/terrahalt.dev/v1alpha1"
        if resources is None:
            return web.Response(status=404, text="404 page not found")
        return web.json_response({"resources": [{"name": name} for name in resources]})

    async with api_server(answer) as cluster:
        return await installed.wait_until_it_works(cluster, "ops", "operator", within_s)


async def test_an_installation_works_where_the_crds_are_served_and_every_operator_is_ready() -> None:
    assert await problem(RESOURCES, a_deployment()) == ""


@pytest.mark.parametrize(
    ("deployment", "says"),
    [
        (a_deployment(ready=1), "1 of 2 operators are ready"),
        (a_deployment(updated=0), "0 of 2 operators are ready"),
        (a_deployment(seen=2), "not seen yet"),
        ({**a_deployment(), "status": {}}, "not seen yet"),
    ],
)
async def test_an_operator_that_is_not_ready_is_told_of(deployment: dict[str, Any], says: str) -> None:
    assert says in await problem(RESOURCES, deployment)


async def test_it_waits_for_operators_that_are_about_to_be_ready() -> None:
    assert await problem(RESOURCES, a_deployment(0), a_deployment(1), a_deployment(), within_s=60) == ""


@pytest.mark.parametrize("missing", RESOURCES)
async def test_what_the_api_server_does_not_serve_is_told_of(missing: str) -> None:
    served = [name for name in RESOURCES if name != missing]
    assert f"does not serve {missing} of terrahalt.dev/v1alpha1: apply the CRDs" in await problem(
        served, a_deployment()
    )
    assert "does not serve agentpools, " in await problem(None, a_deployment())


async def test_an_api_server_that_does_not_answer_the_hook_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    async def forbid(request: web.Request) -> web.StreamResponse:
        return web.json_response({"message": "forbidden"}, status=403)

    for name, value in {
        "RELEASE": "a",
        "NAMESPACE": "b",
        "WATCH_NAMESPACES": "x,y",
        "UNINSTALL_WAIT_SECONDS": "7",
        "UNINSTALL_JOB": "c",
    }.items():
        monkeypatch.setenv(f"TERRAHALT_{name}", value)
    settings = uninstall.Settings.from_environment()
    assert settings == uninstall.Settings(Release("a", "b"), ("x", "y"), 7.0, "c")
    async with api_server(forbid) as cluster:

        async def connect() -> Cluster:
            return cluster

        monkeypatch.setattr(Cluster, "connect", connect)
        text = await uninstall._run(settings)
    assert text.startswith("helm uninstall is refused, as it can't be seen what needs the operator: GET /apis/")
    assert "forbidden" in text
    assert uninstall.told(text, settings).endswith("read it by:\n  kubectl --namespace b logs job/c")
