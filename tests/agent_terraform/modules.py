"""Terraform code of the tests; each is the source of a task."""

from __future__ import annotations


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
