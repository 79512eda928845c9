"""How the agent asks the API server: over few connections, to the server that the authority of now vouches for."""

from __future__ import annotations

from pathlib import Path

import pytest

from terrahalt_agent.adapters import cluster_api
from terrahalt_agent.adapters.cluster_api import UnreachableError
from tests.agent.fake_api import a_fake_api, asking
from tests.agent_terraform.certificates import an_authority, server_context

LARGE = "Yg==" * 200_000


async def test_what_is_asked_one_after_the_other_costs_one_handshake(tmp_path: Path) -> None:
    authority = an_authority(tmp_path)
    async with a_fake_api(server_context(authority)) as fake, asking(fake, tmp_path, ca=authority.ca) as api:
        fake.put_secret("s", key="value")
        await api.connect()
        for _ in range(3):
            assert await api.secret("s") == {"key": b"value"}
        (tmp_path / "token").write_text("the next one\n")
        await api.secret("s")
        assert fake.asked[0] == "/version"
        assert len(fake.ports) == 1
        assert fake.tokens[-2:] == ["Bearer a-token", "Bearer the next one"]


async def test_a_server_that_the_authority_of_now_does_not_vouch_for_is_asked_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a connection to it is open, from before."""
    monkeypatch.setattr(cluster_api, "_PAUSE_S", 0.001)
    authority = an_authority(tmp_path)
    async with a_fake_api(server_context(authority)) as fake, asking(fake, tmp_path, ca=authority.ca) as api:
        fake.put_secret("s", key="value")
        await api.secret("s")
        (tmp_path / "ca").write_text(an_authority(tmp_path, "another").ca)
        await api.connect()
        with pytest.raises(UnreachableError, match="certificate"):
            await api.secret("s")
        assert len(fake.asked) == 1


@pytest.mark.parametrize("hangs_up", [1, 2])
async def test_what_was_written_over_a_connection_that_is_gone_is_written_in_whole_over_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs_up: int
) -> None:
    monkeypatch.setattr(cluster_api, "_PAUSE_S", 0.001)
    async with a_fake_api() as fake, asking(fake, tmp_path) as api:
        secret = {"metadata": {"name": "s"}, "data": {"key": "YQ=="}}
        await api.create_secret(secret)
        fake.hangs_up = hangs_up
        await api.replace_secret({"metadata": {"name": "s", "resourceVersion": "1"}, "data": {"key": LARGE}})
        assert fake.secret("s")["data"] == {"key": LARGE}
        fake.hangs_up = hangs_up
        await api.put_secret({"metadata": {"name": "s"}, "data": {"key": "Yw=="}})
        assert fake.secret("s")["data"] == {"key": "Yw=="}
