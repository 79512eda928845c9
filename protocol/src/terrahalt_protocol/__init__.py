"""The words that operator and agent speak over the control socket.

Decides what a message may hold and when one is refused; never does I/O. `messages` has the
types, `codec` their JSON form, `signing` the proof that a report came from the run it names.
Both sides import it, and nothing else of each other. docs/protocol.md tells it in prose.
"""
