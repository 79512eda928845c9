"""The parts of the bench that need no cluster can be run, and what they hand over makes sense: never its speed."""

from __future__ import annotations

import json

from terrahalt_protocol.codec import MAX_FRAME_BYTES
from tests.bench import agent, floor, machine, sockets
from tests.bench.figures import Part, percentile
from tests.bench.payloads import frames_of, report_of, start_of


async def test_the_floor_has_a_frame_and_a_signal_in_each_sample() -> None:
    part = await floor.measure(rounds=5)
    frame, kill, total = part.rows
    assert [len(row.samples) for row in part.rows] == [5, 5, 5]
    assert all(sample > 0 for sample in (*frame.samples, *kill.samples))
    for of_frame, of_kill, of_both in zip(frame.samples, kill.samples, total.samples, strict=True):
        assert abs(of_frame + of_kill - of_both) < 1e-6


async def test_twenty_sockets_answer_in_every_variant() -> None:
    part = await sockets.measure(20, idle_s=0.2, bursts=2)
    rows = {row.what: row for row in part.rows}
    for variant in ("product", "asyncio loop", "no TLS", "one frame"):
        assert len(rows[f"{variant}: burst, all asked -> received"].samples) == 40
        assert all(sample > 0 for sample in rows[f"{variant}: one cancel until received"].samples)
        assert rows[f"{variant}: cpu to dial one"].median > 0
    assert rows["product: idle cpu"].median >= 0
    # Memory comes in pages: a socket may have taken none.
    assert all(ratio.value > 0 or "memory" in ratio.what for ratio in part.ratios)
    assert json.loads(json.dumps(part.as_json()))["rows"]
    assert "product: rss a socket, idle" in part.as_text()


async def test_each_run_of_an_agent_has_a_signal_and_a_report_after_it() -> None:
    part = await agent.measure(2, idle_s=0.1)
    rows = {row.what: row for row in part.rows}
    assert [len(rows[f"exit -> report, {kind}"].samples) for kind in (agent.LOCAL, agent.KUBERNETES)] == [2, 2]
    assert [len(rows[what].samples) for what in ("frame -> SIGINT", "floor: frame -> signal seen")] == [4, 4]
    spent = rows.pop("idle: CPU time").median  # it may have had nothing to do
    assert spent >= 0
    assert all(sample > 0 for row in rows.values() for sample in row.samples)
    assert rows["idle: memory"].median > 1
    assert sum(note.startswith("aim: ") for note in part.notes) == 6


def test_messages_have_the_wanted_size_and_are_in_parts_only_above_the_limit() -> None:
    for message in (start_of(MAX_FRAME_BYTES), report_of(MAX_FRAME_BYTES)):
        (frame,) = frames_of(message, MAX_FRAME_BYTES)
        assert len(frame.encode()) == MAX_FRAME_BYTES
    assert len(frames_of(start_of(60_000), MAX_FRAME_BYTES)) > 1
    assert len(frames_of(start_of(60_000), 64 * 1024)) == 1


def test_percentiles_are_samples_and_ratios_are_of_medians() -> None:
    assert [percentile([3.0, 1.0, 2.0, 4.0], p) for p in (0, 50, 99)] == [1.0, 2.0, 4.0]
    part = Part("a part", "for a test")
    slow, quick = part.add("slow", "ms", [10.0, 30.0, 20.0]), part.add("quick", "ms", [2.0])
    part.compare("slow : quick", slow, quick)
    part.compare("nothing to divide by", slow, part.add("none", "ms", []))
    assert [(ratio.what, ratio.value) for ratio in part.ratios] == [("slow : quick", 10.0)]


def test_the_machine_says_what_it_is() -> None:
    facts = machine.facts()
    assert facts["cores"] >= 1
    assert facts["libraries"]["aiohttp"]
    assert machine.rss_bytes() > 2**20
