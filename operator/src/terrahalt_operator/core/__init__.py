"""Pure decisions: no I/O, no clock, no logging. `decide` is about one task, `schedule` about one pool."""
