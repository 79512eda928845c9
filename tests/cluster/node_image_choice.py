"""Which node image a kind cluster gets: the published one, else one made here by `node_image`.

What is in the engine already is taken without asking anybody; then it is pulled; only when that fails
the parts are built. Called by `kind_cluster`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from tests.cluster import commands, node_image, pins
from tests.cluster.cache import Product
from tests.cluster.engine import Engine
from tests.cluster.progress import Progress
from tests.cluster.speech import say


def ensure(on: Engine, progress: Progress) -> str:
    """The reference of an image that is in the engine after this. Raises ClusterError."""
    for reference in (pins.NODE_IMAGE, node_image.tag()):
        if on.has_image(reference):
            return reference
    with progress.step("pull the node image", cold="1 min"):
        if on.try_to_pull(pins.NODE_IMAGE, log="pull"):
            return pins.NODE_IMAGE
    missing = [part for part in node_image.parts() if not part.is_built]
    if missing:
        say("      it is made here instead, from Go modules and Debian packages: once, then kept")
    progress.expect(len(missing) + 1)
    # The packages come over the network while the compiler keeps the processors busy.
    fetched = [part for part in missing if part.name.startswith("root-")]
    compiled = [part for part in missing if part not in fetched]
    with ThreadPoolExecutor(max_workers=2) as pool, _children_end_early():
        lanes = [pool.submit(_make_each, lane, progress) for lane in (fetched, compiled)]
        for lane in wait(lanes, return_when=FIRST_EXCEPTION).done:
            lane.result()
    with progress.step("put the node image together", cold="20 s"):
        node_image.assemble(on)
    return node_image.tag()


def _make_each(products: list[Product], progress: Progress) -> None:
    for product in products:
        progress.make(product)


@contextlib.contextmanager
def _children_end_early() -> Iterator[None]:
    """One lane that fails, or Ctrl-C, ends the other."""
    try:
        yield
    except BaseException:
        commands.end_all_children()
        raise
