"""Which providers an engine is led to, and what of a shared cache a run may use."""

from __future__ import annotations

import pytest

from terrahalt_agent.core.providers import checksum, cli_config, environment, locked, may_use
from terrahalt_protocol.providers import FilesystemMirror, NetworkMirror, Providers, decode, encode

TIME = "registry.terraform.io/hashicorp/time"
LOCK_FILE = """
# This file is maintained automatically by "terraform init".
provider "registry.terraform.io/hashicorp/aws" {
  version     = "5.1.0"
  constraints = "~> 5.0"
  hashes = [
    "h1:aaa=",
    "h1:bbb=",
    "zh:0123",
  ]
}

provider "registry.terraform.io/hashicorp/time" {
  version = "0.13.0"
  hashes = [
    "zh:4567",
  ]
}
"""


def mirrors(filesystem: tuple[str, ...] | None = None, network: tuple[str, ...] | None = None) -> Providers:
    """With these patterns; None: no such mirror."""
    return Providers(
        filesystem_mirror=FilesystemMirror(path="/mirror", include=filesystem) if filesystem is not None else None,
        network_mirror=NetworkMirror(url="https://mirror/", include=network) if network is not None else None,
    )


def test_without_a_mirror_the_engine_keeps_its_own_configuration() -> None:
    assert cli_config(Providers()) == cli_config(Providers(cache="/cache")) == ""


def test_a_mirror_for_every_provider_leaves_the_registries_out() -> None:
    expected = 'provider_installation {\n  filesystem_mirror {\n    path = "/mirror"\n  }\n}\n'
    assert cli_config(mirrors(())) == expected
    for providers in (mirrors(network=()), mirrors((), ("a/b",)), mirrors(("a/b",), ())):
        assert "direct" not in cli_config(providers)


def test_what_a_mirror_with_patterns_is_for_comes_from_no_registry_and_all_else_does() -> None:
    expected = """provider_installation {
  filesystem_mirror {
    path = "/mirror"
    include = ["a/b", "c/*"]
  }
  network_mirror {
    url = "https://mirror/"
    include = ["d/e"]
  }
  direct {
    exclude = ["a/b", "c/*", "d/e"]
  }
}
"""
    assert cli_config(mirrors(("a/b", "c/*"), ("d/e",))) == expected


def test_the_environment_names_only_what_there_is() -> None:
    assert environment(config="", cache="") == {}
    assert environment(config="/c", cache="") == {"TF_CLI_CONFIG_FILE": "/c"}
    assert set(environment(config="", cache="/p")) == {
        "TF_PLUGIN_CACHE_DIR",
        "TF_PLUGIN_CACHE_MAY_BREAK_DEPENDENCY_LOCK_FILE",
    }


def test_a_provider_that_the_lock_file_names_comes_from_the_cache_only_with_a_checksum_that_stands_there() -> None:
    locks = locked(LOCK_FILE)
    aws = "registry.terraform.io/hashicorp/aws"
    assert locks == {aws: frozenset({"h1:aaa=", "h1:bbb="}), TIME: frozenset()}
    assert may_use(aws, "h1:bbb=", locks)
    assert not may_use(aws, "h1:ccc=", locks)
    assert not may_use(TIME, "h1:aaa=", locks)
    assert may_use("example.com/a/b", "h1:ccc=", locks)
    assert locked("") == {}


def test_a_lock_file_that_somebody_wrote_by_hand_is_read_all_the_same() -> None:
    text = f'provider "{TIME}"{{version="1"\nhashes=["h1:a=","zh:b"]}}\n  provider  "x/y/z" {{ }}'
    assert locked(text) == {TIME: frozenset({"h1:a="}), "x/y/z": frozenset()}


def test_a_checksum_is_of_names_and_contents() -> None:
    files = {"b": "02", "a": "01"}
    assert checksum(files) == checksum(dict(reversed(files.items())))
    assert len({checksum(f) for f in (files, {"b": "01", "a": "02"}, {"a": "01"}, {"b/a": "01", "b": "02"})}) == 4


def test_what_the_operator_writes_the_agent_reads() -> None:
    for providers in (Providers(), mirrors(("a/b",), ()), Providers(cache="/cache")):
        assert decode(encode(providers)) == providers
    with pytest.raises(ValueError, match="TERRAHALT_PROVIDERS can't be read"):
        decode("[]")
