"""Who the operator is to an agent, and whom it takes for one: certificates that are renewed, CAs that are replaced.

The other end of each handshake is the agent's own context; nothing goes over a network.
"""

from __future__ import annotations

import ssl
import time
from typing import Any, cast

import pytest

from terrahalt_agent.adapters.trust import server_context
from terrahalt_operator.adapters.trust import CLIENT_S, RENEWED_AFTER_S, Trust, new_ca, prove_pod
from terrahalt_operator.core import pod
from terrahalt_operator.errors import AgentUntrusted

CA, CA_KEY = new_ca(time.time())
LATER_CA, LATER_KEY = new_ca(time.time())
"""Of the same name, as every installation's is."""


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def a_trust(ca: bytes = CA, key: bytes = CA_KEY, clock: Clock | None = None) -> Trust:
    return Trust(ca, key, b"secret", clock or Clock(time.time()))


def shake_hands(client: ssl.SSLContext, agent: ssl.SSLContext) -> None:
    """Raises ssl.SSLError where either refuses the other."""
    to_agent, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_agent)
    theirs = agent.wrap_bio(to_agent, to_client, server_side=True)
    waiting = [ours, theirs]
    for _ in range(10):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
    assert not waiting


def test_an_agent_lets_its_operator_in_and_nobody_of_another_ca_that_has_its_name() -> None:
    agent = server_context(CA.decode(), "agent-0")
    shake_hands(a_trust().tls, agent)
    with pytest.raises(ssl.SSLError, match="certificate verify failed"):
        shake_hands(a_trust(LATER_CA, LATER_KEY).tls, agent)


def test_the_client_certificate_is_renewed_at_half_of_its_life_and_not_before() -> None:
    clock = Clock(time.time())
    trust = a_trust(clock=clock)
    first = trust.tls
    clock.now += RENEWED_AFTER_S - 1
    assert trust.tls is first
    clock.now += 1
    second = trust.tls
    assert second is not first
    clock.now += RENEWED_AFTER_S - 1
    assert trust.tls is second


def test_a_certificate_that_was_not_renewed_would_be_refused_and_the_renewed_one_is_not() -> None:
    agent = server_context(CA.decode(), "agent-0")
    clock = Clock(time.time() - CLIENT_S - 60)
    trust = a_trust(clock=clock)
    with pytest.raises(ssl.SSLError, match="certificate verify failed"):
        shake_hands(trust.tls, agent)
    clock.now = time.time()
    shake_hands(trust.tls, agent)


def test_a_clock_that_was_set_back_gets_a_certificate_that_is_valid_by_it() -> None:
    clock = Clock(time.time() + 10 * CLIENT_S)
    trust = a_trust(clock=clock)
    clock.now = time.time()
    shake_hands(trust.tls, server_context(CA.decode(), "agent-0"))


@pytest.mark.parametrize("ahead_h", [-11, 23])
def test_an_operator_whose_clock_is_not_its_agents_reaches_them_from_its_start_on(ahead_h: int) -> None:
    clock = Clock(time.time() + ahead_h * 3600)
    ca, key = new_ca(clock.now)
    shake_hands(a_trust(ca, key, clock).tls, server_context(ca.decode(), "agent-0"))


def test_while_a_ca_is_replaced_agents_of_before_and_after_accept_the_operator() -> None:
    """Both certificates are given to new agents; the key is exchanged when none of the old ones is left."""
    old_agent, new_agent = server_context(CA.decode(), "old"), server_context((CA + LATER_CA).decode(), "new")
    before, after = a_trust(CA + LATER_CA, CA_KEY), a_trust(CA + LATER_CA, LATER_KEY)
    shake_hands(before.tls, old_agent)
    shake_hands(before.tls, new_agent)
    shake_hands(after.tls, new_agent)
    with pytest.raises(ssl.SSLError, match="certificate verify failed"):
        shake_hands(after.tls, old_agent)


def test_a_key_without_its_certificate_is_told_by_its_name() -> None:
    with pytest.raises(ValueError, match=r"terrahalt-trust: none of the certificates in ca\.crt belongs to ca\.key"):
        a_trust(CA, LATER_KEY)


def test_a_proof_is_of_one_pod_and_of_one_installation() -> None:
    proof = pod.proof(b"secret", "pod-uid")
    assert pod.is_proven(proof, b"secret", "pod-uid")
    assert not pod.is_proven(proof, b"secret", "another-pod")
    assert not pod.is_proven(proof, b"another secret", "pod-uid")
    assert not pod.is_proven("", b"secret", "pod-uid")
    assert not pod.is_proven("é", b"secret", "pod-uid")


class Reviewer:
    def __init__(self, **status: Any) -> None:
        self._status = status

    async def review_token(self, token: str, audience: str) -> dict[str, Any]:
        return self._status


def of_pod(*uids: str) -> dict[str, Any]:
    return {"extra": {"authentication.kubernetes.io/pod-uid": list(uids)}}


OURS = ["terrahalt.dev/agent"]


async def test_a_token_counts_for_the_pod_that_it_was_given_to() -> None:
    reviewer = Reviewer(authenticated=True, audiences=OURS, user=of_pod("pod-uid"))
    await prove_pod(cast(Any, reviewer), "token", "pod-uid")


@pytest.mark.parametrize(
    ("token", "review", "why"),
    [
        ("", {}, "no identity token"),
        ("t", {"authenticated": False, "error": "expired"}, "refuses"),
        ("t", {"authenticated": True, "audiences": ["https://kubernetes"], "user": of_pod("pod-uid")}, "refuses"),
        ("t", {"authenticated": True, "audiences": OURS, "user": of_pod("stolen-from")}, "of another pod"),
        ("t", {"authenticated": True, "audiences": OURS, "user": {}}, "of another pod"),
    ],
)
async def test_no_other_token_counts(token: str, review: dict[str, Any], why: str) -> None:
    with pytest.raises(AgentUntrusted, match=why):
        await prove_pod(cast(Any, Reviewer(**review)), token, "pod-uid")
