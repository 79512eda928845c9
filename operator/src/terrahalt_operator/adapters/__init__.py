"""One door per library: each module here alone imports what it adapts."""
