"""The directory of a run, with sources and values as a small API server gives them."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from terrahalt_agent.adapters import cluster_api
from terrahalt_agent.adapters.backend import LocalBackend, OtherBackend
from terrahalt_agent.adapters.descendants import Descendants
from terrahalt_agent.adapters.git import Git
from terrahalt_agent.adapters.workdir import Environment, PreparationError, Prepared, Workdir, errored_state
from terrahalt_agent.core.source import BACKEND_OVERRIDE
from terrahalt_protocol.messages import Backend, ConfigFrom, EnvFrom, Source, Start, Values
from tests.agent.builders import RUN_ID, a_start
from tests.agent.fake_api import FakeApi, a_fake_api, asking

NOTHING = Environment({}, ())
LOCAL = LocalBackend(Path("/states"))


@pytest.fixture
async def fake() -> AsyncIterator[FakeApi]:
    async with a_fake_api() as fake:
        yield fake


@pytest.fixture
async def workdir(tmp_path: Path, fake: FakeApi, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Workdir]:
    monkeypatch.setattr(cluster_api, "_PAUSE_S", 0.001)
    (tmp_path / "work").mkdir()
    async with asking(fake, tmp_path) as api:
        yield Workdir(tmp_path / "work", api, Git(Descendants()), {"PATH": "/bin"})


@contextmanager
def refused(reason: str, words: str) -> Iterator[None]:
    with pytest.raises(PreparationError, match=words) as caught:
        yield
    assert caught.value.reason == reason


def module(prepared: Prepared) -> Path:
    return Path(prepared.paths.module)


async def test_inline_files_lie_in_the_module_and_variables_outside_of_it(workdir: Workdir, tmp_path: Path) -> None:
    source = Source(inline={"main.tf": "x", "modules/net/main.tf": "ü"})
    start = a_start(source=source, variables={"a": [1, {"b": None}]})
    prepared = await workdir.prepare(start, NOTHING, LOCAL, inputs=await workdir.read_variables(start))
    assert module(prepared) == tmp_path / "work" / RUN_ID / "module"
    assert (module(prepared) / "main.tf").read_text() == "x"
    assert (module(prepared) / "modules/net/main.tf").read_text() == "ü"
    assert json.loads((module(prepared) / BACKEND_OVERRIDE).read_text()) == {"terraform": {"backend": {"local": {}}}}
    assert prepared.paths.variables == str(tmp_path / "work" / RUN_ID / "variables.tfvars.json")
    variables = tmp_path / "work" / RUN_ID / "variables.tfvars.json"
    assert json.loads(variables.read_text()) == {"a": [1, {"b": None}]}
    assert stat.S_IMODE(variables.stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "work" / RUN_ID).stat().st_mode) == 0o700
    assert workdir.environment(start, NOTHING, LOCAL)["HOME"] == str(tmp_path / "work" / RUN_ID / "home")
    assert prepared.init_args == ("-backend-config=path=/states/network.tfstate",)
    assert errored_state(prepared.paths) is None
    (module(prepared) / "errored.tfstate").touch()
    assert errored_state(prepared.paths) == str(module(prepared) / "errored.tfstate")


async def test_settings_of_a_backend_lie_outside_of_the_module_where_only_the_agent_reads_them(
    workdir: Workdir, tmp_path: Path
) -> None:
    async def ask(words: Sequence[str]) -> str:
        raise AssertionError(words)

    source = Source(inline={"main.tf": "x"})
    start = a_start(source=Source(), backend=Backend(type="pg", source=source))
    pg = OtherBackend("pg", 'conn_str = "x"\n', (), "agent-0", "terraform", ask)
    prepared = await workdir.prepare(start, NOTHING, pg)
    settings = tmp_path / "work" / RUN_ID / "backend.hcl"
    assert prepared.init_args == (f"-backend-config={settings}",)
    assert settings.read_text() == 'conn_str = "x"\n'
    assert stat.S_IMODE(settings.stat().st_mode) == 0o600
    assert (module(prepared) / "main.tf").read_text() == "x"
    assert json.loads((module(prepared) / BACKEND_OVERRIDE).read_text()) == {"terraform": {"backend": {"pg": {}}}}
    assert workdir.environment(start, NOTHING, pg)["TF_WORKSPACE"] == "network"


async def test_a_config_map_is_a_source(workdir: Workdir, fake: FakeApi) -> None:
    fake.put("configmaps", "src", data={"main.tf": "x"}, binaryData={"logo": base64.b64encode(b"\xff\0").decode()})
    prepared = await workdir.prepare(a_start(source=Source(config_map="src")), NOTHING, LOCAL)
    assert (module(prepared) / "main.tf").read_text() == "x"
    assert (module(prepared) / "logo").read_bytes() == b"\xff\0"
    assert fake.tokens == ["Bearer a-token"]


async def test_a_source_that_is_missing_or_empty_is_named(workdir: Workdir, fake: FakeApi) -> None:
    with refused("SourceInvalid", "ConfigMap gone was not found in namespace team-a"):
        await workdir.prepare(a_start(source=Source(config_map="gone")), NOTHING, LOCAL)
    fake.put("configmaps", "empty", data=None)
    with refused("SourceInvalid", "no files"):
        await workdir.prepare(a_start(source=Source(config_map="empty")), NOTHING, LOCAL)
    with refused("SourceInvalid", "names no source"):
        await workdir.prepare(a_start(source=Source()), NOTHING, LOCAL)


async def test_a_path_that_leaves_the_module_is_refused_before_anything_is_written(
    workdir: Workdir, tmp_path: Path
) -> None:
    with refused("SourceInvalid", r"\.\./x"):
        await workdir.prepare(a_start(source=Source(inline={"../x": ""})), NOTHING, LOCAL)
    assert list((tmp_path / "work").iterdir()) == []


async def test_a_run_never_takes_over_a_directory(workdir: Workdir) -> None:
    await workdir.prepare(a_start(), NOTHING, LOCAL)
    with refused("WorkdirNotWritable", "File exists"):
        await workdir.prepare(a_start(), NOTHING, LOCAL)


async def test_a_directory_that_cannot_be_made_is_refused_with_its_name(workdir: Workdir, tmp_path: Path) -> None:
    (tmp_path / "work").rmdir()
    with refused("WorkdirNotWritable", f"{tmp_path / 'work'}/{RUN_ID}: No such file or directory"):
        await workdir.prepare(a_start(), NOTHING, LOCAL)


async def test_env_from_reads_in_order_and_tells_what_is_secret(workdir: Workdir, fake: FakeApi) -> None:
    encoded = {name: base64.b64encode(value).decode() for name, value in {"A": b"s3cret!", "B": b"two\n"}.items()}
    fake.put("secrets", "s", data=encoded)
    fake.put("configmaps", "c", data={"A": "plain", "C": "3", "bad=name": "x"})
    sources = (
        EnvFrom(secret="s"),
        EnvFrom(config_map="c", prefix="P_"),
        EnvFrom(secret="absent", optional=True),
        EnvFrom(config_map="c"),
    )
    found = await workdir.read_environment(a_start(env_from=sources))
    assert found.values == {"A": "plain", "B": "two\n", "C": "3", "P_A": "plain", "P_C": "3"}
    assert found.secrets == ("s3cret!", "two\n")
    env = workdir.environment(a_start(), found, LOCAL)
    assert (env["A"], env["PATH"]) == ("plain", "/bin")


def variables_from(*sources: ConfigFrom, **variables: Any) -> Start:
    values = Values(source=Source(inline={"main.tf": "x"}), variables_from=sources)
    return a_start(source=Source(), values=values, variables=variables)


async def test_variables_come_in_order_and_the_task_s_own_win(workdir: Workdir, fake: FakeApi, tmp_path: Path) -> None:
    fake.put_secret("s", A="s3cret!", B="of the Secret", C="of the Secret", **{"list.json": '["s3cret 1"]'})
    fake.put("configmaps", "c", data={"B": "of the map", "C": "of the map", "size.json": "0.10"})
    sources = (ConfigFrom(secret="s"), ConfigFrom(secret="gone", optional=True), ConfigFrom(config_map="c"))
    start = variables_from(*sources, C=["of", "the", "task"])
    inputs = await workdir.read_variables(start)
    assert set(inputs.secrets) == {"s3cret!", "of the Secret", '["s3cret 1"]', "s3cret 1"}
    prepared = await workdir.prepare(start, NOTHING, LOCAL, inputs=inputs)
    assert (module(prepared) / "main.tf").read_text() == "x"
    file = tmp_path / "work" / RUN_ID / "variables.tfvars.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.read_text().count('"size":0.10') == 1, "the number was written anew"
    assert json.loads(file.read_text()) == {
        "A": "s3cret!",
        "B": "of the map",
        "C": ["of", "the", "task"],
        "list": ["s3cret 1"],
        "size": 0.1,
    }


async def test_variables_from_that_can_not_be_had_are_named_without_their_values(
    workdir: Workdir, fake: FakeApi
) -> None:
    with refused("VariablesInvalid", "variablesFrom: Secret net was not found in namespace team-a"):
        await workdir.read_variables(variables_from(ConfigFrom(secret="net")))
    fake.put_secret("net", **{"zones.json": "hunter2hunter2"})
    with refused("VariablesInvalid", r"Secret net: key zones\.json is not JSON \(line 1, column 1\)$"):
        await workdir.read_variables(variables_from(ConfigFrom(secret="net")))
    fake.put("configmaps", "map", data={"a": "1", "a.json": "1"})
    with refused("VariablesInvalid", "ConfigMap map: variable a has two values"):
        await workdir.read_variables(variables_from(ConfigFrom(config_map="map")))


async def test_a_plan_that_is_made_gets_no_variables(workdir: Workdir, tmp_path: Path) -> None:
    await workdir.prepare(a_start(variables={"a": 1}), NOTHING, LOCAL)
    assert not list((tmp_path / "work" / RUN_ID).glob("variables*"))


async def test_env_from_that_is_missing_or_forbidden_is_named(workdir: Workdir, fake: FakeApi) -> None:
    start = a_start(env_from=(EnvFrom(secret="aws"),))
    with refused("EnvironmentInvalid", "envFrom: Secret aws was not found in namespace team-a"):
        await workdir.read_environment(start)
    fake.statuses = [403]
    with refused("EnvironmentInvalid", "may not read Secret aws .* give its Role the verb get"):
        await workdir.read_environment(start)


async def test_an_api_server_that_stumbles_is_asked_again_and_not_for_ever(workdir: Workdir, fake: FakeApi) -> None:
    fake.put("secrets", "s", data={})
    fake.statuses = [500, 503]
    await workdir.read_environment(a_start(env_from=(EnvFrom(secret="s"),)))
    fake.statuses = [500, 500, 429]
    with refused("EnvironmentInvalid", "could not be read: HTTP 429"):
        await workdir.read_environment(a_start(env_from=(EnvFrom(secret="s"),)))
    assert fake.statuses == []
