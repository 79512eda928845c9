"""What the kubelet is told: alive from the beginning, ready once it could lead, and always the facts."""

from __future__ import annotations

from aiohttp.test_utils import TestClient, TestServer

from terrahalt_operator.adapters.health import MAX_LAG_S, Health
from tests.operator_core import builders as b


async def test_it_is_alive_before_it_is_ready_and_tells_the_facts_either_way() -> None:
    health = Health(lambda: {"leads": False, "leader": "other", "renewalAgeSeconds": None}, b.metrics().page)
    async with TestClient(TestServer(health.application())) as kubelet:
        for path, status in (("/healthz", 200), ("/readyz", 503)):
            answer = await kubelet.get(path)
            assert answer.status == status
            told = await answer.json()
            assert told == {"leads": False, "leader": "other", "renewalAgeSeconds": None, "loopLagSeconds": 0.0}
        health.is_ready = True
        assert (await kubelet.get("/readyz")).status == 200


async def test_a_loop_that_lags_is_replaced() -> None:
    health = Health(dict, b.metrics().page)
    async with TestClient(TestServer(health.application())) as kubelet:
        health.lag_s = MAX_LAG_S
        assert (await kubelet.get("/healthz")).status == 503
        health.lag_s = MAX_LAG_S - 1
        assert (await kubelet.get("/healthz")).status == 200


async def test_prometheus_reads_what_is_counted_by_its_own_type_of_text() -> None:
    health = Health(dict, b.metrics().page)
    async with TestClient(TestServer(health.application())) as prometheus:
        answer = await prometheus.get("/metrics")
        assert answer.content_type == "text/plain"
        assert "version=0.0.4" in answer.headers["Content-Type"]
        assert "terrahalt_leader 1.0\n" in await answer.text()
