"""What the agent decides: `agent` which runs it takes, `run` what happens next in one run.

Pure: no I/O, clock, randomness or logging; `driver` feeds events with a monotonic time and carries
out the instructions that come back.
"""
