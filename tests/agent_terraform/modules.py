"""Terraform code of the tests; each is the source of a task."""

from __future__ import annotations

import json


def local_exec(command: str, name: str = "a", depends_on: str = "") -> str:
    depends = f"depends_on = [{depends_on}]" if depends_on else ""
    return f"""
resource "terraform_data" "{name}" {{
  {depends}
  provisioner "local-exec" {{
    command = <<-EOT
      {command}
    EOT
  }}
}}
"""


def sleeping(seconds: float = 300) -> dict[str, str]:
    """Says "begun", then sleeps."""
    return {"main.tf": local_exec(f"echo begun; sleep {seconds}")}


def slow_resource(seconds: int = 300) -> dict[str, str]:
    """A resource that is saved at once, and one whose provider sleeps."""
    return {
        "main.tf": f"""
terraform {{
  required_providers {{
    time = {{ source = "hashicorp/time" }}
  }}
}}
resource "terraform_data" "saved" {{}}
resource "time_sleep" "slow" {{
  create_duration = "{seconds}s"
  depends_on      = [terraform_data.saved]
}}
"""
    }


def hanging_read(port: int) -> dict[str, str]:
    """A data source that asks somebody who never answers; terraform itself does that, no provider process."""
    return {
        "main.tf": f"""
data "terraform_remote_state" "other" {{
  backend = "http"
  config = {{ address = "http://127.0.0.1:{port}/state", retry_max = 0 }}
}}
resource "terraform_data" "a" {{
  input = data.terraform_remote_state.other.outputs
}}
"""
    }


def chain(folder: str, length: int, seconds: float) -> dict[str, str]:
    """Resources one after another, each of which leaves a file in `folder` when it is done."""
    parts = [
        local_exec(f"sleep {seconds}; touch {folder}/{n}", f"r{n}", f"terraform_data.r{n - 1}" if n else "")
        for n in range(length)
    ]
    return {"main.tf": "".join(parts)}


def hanging_module(port: int) -> dict[str, str]:
    """A module whose git repository is with somebody who never answers: init waits."""
    return {"main.tf": f'module "m" {{ source = "git::http://127.0.0.1:{port}/m.git" }}'}


Script = list[str] | str
"""Steps of tests/provider/script.go, or an expression that gives them."""


def only_in_apply(script: list[str]) -> str:
    """For the configuration of a provider: the plan is there then, beside the module, and not before."""
    return f'fileexists("../plan.tfplan") ? {json.dumps(script)} : ["finish"]'


def trial(*blocks: str, **scripts: Script) -> dict[str, str]:
    """Blocks that use the provider `trial`, whose own scripts are `scripts`."""
    return {
        "main.tf": f"""
terraform {{
  required_providers {{
    trial = {{ source = "terrahalt/trial" }}
  }}
}}
provider "trial" {{
{_attributes(scripts)}
}}
{"".join(blocks)}
"""
    }


def thing(name: str, depends_on: str = "", **scripts: Script) -> str:
    """A resource of `trial`: its address and the name of its object end with `name`."""
    return _trial_block("resource", "trial_thing", name, depends_on, scripts)


def reading(name: str, depends_on: str = "", **scripts: Script) -> str:
    return _trial_block("data", "trial_reading", name, depends_on, scripts)


def _trial_block(block: str, kind: str, name: str, depends_on: str, scripts: dict[str, Script]) -> str:
    return f"""
{block} "{kind}" "{name}" {{
  name       = "{name}"
  depends_on = [{depends_on}]
{_attributes(scripts)}
}}
"""


def _attributes(scripts: dict[str, Script]) -> str:
    texts = {name: script if isinstance(script, str) else json.dumps(script) for name, script in scripts.items()}
    return "\n".join(f"  {name} = {text}" for name, text in texts.items())
