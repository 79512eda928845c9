"""`make bench-scale`: one real operator against a real API server, with tasks by the thousand and simulated agents.

    python -m tests.bench.scale [--tasks N] [--agents N] [--steps N] [--write FILE] [--json FILE] [--profile FILE]

Real: the operator's process (on this machine, so that /proc tells its memory and its CPU), the API server, the
scheduler, mutual TLS, identity tokens, the protocol. Simulated, by one other process: the kubelet of a node that is
only an object, and on its pods the agents. What agents write themselves (state, locks, logs) is not there.
"""
