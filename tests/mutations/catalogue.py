"""One guard taken out: where, what stands there instead, and which tests have to notice; read from `guards.txt`.

Pure; called by `__main__` and `judge`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


class CatalogueError(Exception):
    """A line of the catalogue can't be read, or does not fit the code any more; the text says which."""


@dataclass(frozen=True, slots=True)
class Mutation:
    what: str
    """The guard, as a person calls it: "ladder: gate"."""
    file: str
    """Below the repository."""
    tests: tuple[str, ...]
    """Files, or single tests: what pytest is given."""
    old: str
    """Comes once in the file."""
    new: str

    def applied(self, text: str) -> str:
        """Raises CatalogueError."""
        if (count := text.count(self.old)) != 1:
            raise CatalogueError(f"{self.what}: its text comes {count} times in {self.file}, it must come once")
        return text.replace(self.old, self.new)


def read(catalogue: str) -> Iterator[Mutation]:
    """In their order. What comes before the first area is for people. Raises CatalogueError."""
    for section in ("\n" + catalogue).split("\n== ")[1:]:
        head, *guards = section.split("\n# ")
        where, *tests = head.splitlines()
        area, _, file = where.partition(": ")
        for guard in guards:
            name, *lines = guard.splitlines()
            old = [line[1:] for line in lines if line.startswith("-")]
            new = [line[1:] for line in lines if line.startswith("+")]
            if not old or len(old) + len(new) != sum(map(bool, lines)):
                raise CatalogueError(f"{area}: {name}: after its name only lines with - and then + can come")
            paths = tuple(test.strip() for test in tests if test.strip())
            yield Mutation(f"{area}: {name}", file, paths, "\n".join(old), "\n".join(new))
