"""`make mutations`: each guard of the agent is taken out in turn, and a test has to fail.

    python -m tests.mutations [--only WORDS]... [--jobs N] [--json FILE]

`guards.txt` names the guards, `judge` tries one in a copy of the tree. A guard whose loss no test notices is a
missing test; one that is not found in its file is a line of `guards.txt` to correct.
"""
