"""The providers that the suites use, compiled once for each content, where an engine finds them without a registry.

`time` is a published one, `trial` is that of tests/provider. Called by fixtures.
"""

from __future__ import annotations

from pathlib import Path

from tests.cluster import golang, pins
from tests.cluster.architecture import ours
from tests.cluster.cache import PROJECT, Product
from tests.cluster.images import REGISTRIES, time_provider
from tests.cluster.progress import program_of

_TRIAL_VERSION = "1.0.0"


def trial_provider() -> Product:
    return golang.compiled("terraform-provider-trial", PROJECT / "tests" / "provider", cold="45 s")


def mirrored(folder: Path) -> dict[str, str]:
    """The environment with which an engine takes all its providers from `folder`, which is filled here."""
    for source, version, product in (
        ("hashicorp/time", pins.TIME_PROVIDER, time_provider()),
        ("terrahalt/trial", _TRIAL_VERSION, trial_provider()),
    ):
        program = program_of(product)
        for registry in REGISTRIES.values():
            home = folder / "mirror" / registry / source / version / f"linux_{ours().debian}"
            home.mkdir(parents=True)
            (home / f"{product.name}_v{version}").symlink_to(program)
    config = folder / "terraformrc"
    config.write_text(f'provider_installation {{\n  filesystem_mirror {{\n    path = "{folder}/mirror"\n  }}\n}}\n')
    return {"TF_CLI_CONFIG_FILE": str(config)}
