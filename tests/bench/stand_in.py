"""A program in terraform's place, which says when SIGINT has reached it and when it ends: nothing else of it is real.

terraform's own clock would begin only after Go's runtime has handed the signal on and a line is written; a tracer
would slow down what is measured. So `apply` begins one operation, sleeps in sigtimedwait(2), and leaves its two
stamps (CLOCK_MONOTONIC, which all processes of a machine share) in the file that STAND_IN_STAMPS names. Started by
the agent of `agent`, with an interpreter that imports nothing but this.
"""

import json
import os
import signal
import sys
import time

PATIENCE_S = 60.0


def say(kind: str, message: str, **fields: object) -> None:
    print(json.dumps({"@message": message, "type": kind, **fields}), flush=True)


def hook(kind: str, message: str) -> None:
    say(kind, message, hook={"resource": {"addr": "stand_in.a"}, "action": "create"})


def main(step: str) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    if step == "plan":
        say("change_summary", "Plan: 1 to add", changes={"add": 1, "change": 0, "remove": 0, "operation": "plan"})
    if step != "apply":
        return 0
    say("version", "Terraform 1.11.4")
    hook("apply_start", "stand_in.a: Creating...")
    if signal.sigtimedwait([signal.SIGINT], PATIENCE_S) is None:
        return 2
    seen = time.monotonic()
    say("log", "Interrupt received.")
    hook("apply_errored", "stand_in.a: stopped")
    with open(os.environ["STAND_IN_STAMPS"], "w", encoding="ascii") as file:
        file.write(f"{seen} {time.monotonic()}")
    return 1


if __name__ == "__main__":
    os._exit(main(sys.argv[1]))
