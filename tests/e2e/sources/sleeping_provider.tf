# A provider's operation that takes its time, and stops when terraform asks it to.
terraform {
  required_providers {
    time = {
      source = "hashicorp/time"
    }
  }
}

resource "time_sleep" "wait" {
  count           = @COUNT@
  create_duration = "@DURATION@"
  # So that one that a state has already is made anew, and not just changed without any sleep.
  triggers = { duration = "@DURATION@" }
}
