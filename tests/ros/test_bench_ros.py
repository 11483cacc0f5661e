"""Traces joined across processes, on traces whose answer is known; and both benchmarks' command lines."""

from __future__ import annotations

import csv
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from d2ppo_core.errors import UserError
from d2ppo_ros.bench import hops
from d2ppo_ros.trace import Trace

MS = 1_000_000  # ns
NAMES = {  # of a chain's times: which node marks it, as what
    "source": ("sim", "state"), "policy_heard": ("policy", "state"), "begin": ("policy", "inference"),
    "answered": ("policy", "chunk"), "chunk_heard": ("executor", "chunk"), "tick": ("executor", "tick"),
    "command": ("executor", "command"), "safety_heard": ("safety", "heard"), "safety_sent": ("safety", "sent"),
    "robot_heard": ("sim", "command"), "applied": ("sim", "applied"),
}  # fmt: skip


class World:
    """Marks of nodes that talk to one another, and the hops that were put into them."""

    def __init__(self, seed: int, camera: bool = False) -> None:
        self.draw, self.camera = random.Random(seed), camera
        self.rows: dict[str, dict[str, list[tuple[int, int, int]]]] = {}
        self.truth: list[dict[str, int]] = []
        self.sequence = 0

    def mark(self, node: str, event: str, key: int, time: int, of: int = 0) -> int:
        self.rows.setdefault(node, {}).setdefault(event, []).append((key, of, time))
        return time

    def gap(self) -> int:
        return self.draw.randrange(1, 5 * MS)

    def see(self, now: int) -> dict[str, int]:
        """A picture and a state, sent and heard."""
        hop = [self.gap() for _ in range(4)]
        found, time = {"source to camera node": hop[0], "camera node": hop[1], "camera node to policy": hop[2]}, now
        if self.camera:
            time = self.mark("sim", "image", now, time) + hop[0]
            time = self.mark("camera_hand", "heard", now, time) + hop[1]
            time = self.mark("camera_hand", "sent", now, time) + hop[2]
            found["policy_heard"] = self.mark("policy", "image hand", now, time)
        self.mark("sim", "state", now + 1, now)
        state = self.mark("policy", "state", now + 1, now + hop[3])
        return found | {"robot state to policy": hop[3], "state": state}

    def act(self, seen: dict[str, int], stamp: int) -> None:
        """From the request to the command that is applied."""
        asked = self.mark("policy", "request", stamp, stamp + self.gap())
        time, found = max(asked, *(seen[name] for name in ("state", "policy_heard") if name in seen)), dict(seen)

        def hop(name: str, node: str, event: str, key: int, of: int = 0) -> None:
            nonlocal time
            found[name] = self.gap()
            time = self.mark(node, event, key, time + found[name], of)

        hop("policy: observation", "policy", "inference", stamp)
        hop("inference", "policy", "chunk", stamp)
        hop("chunk to executor", "executor", "chunk", stamp)
        hop("due", "executor", "tick", 0)
        self.sequence += 1
        hop("executor: command", "executor", "command", self.sequence, stamp)
        hop("command to safety", "safety", "heard", self.sequence)
        hop("safety", "safety", "sent", self.sequence)
        hop("command to robot", "sim", "command", self.sequence)
        hop("robot", "sim", "applied", self.sequence)
        self.mark("executor", "command", self.sequence + 1000, time, stamp)  # a later step of the same chunk
        self.truth.append(found)

    def write(self, folder: Path) -> dict[str, hops.Marks]:
        for node, events in self.rows.items():
            rows = [(event, *row) for event, found in events.items() for row in found]
            with open(folder / f"{node}-{self.draw.randrange(9999)}.csv", "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows(self.draw.sample(rows, len(rows)))  # in no order
        return hops.read(folder)


@pytest.mark.parametrize("camera", [False, True])
def test_every_hop_and_their_sum_as_they_were_put_in(tmp_path: Path, camera: bool):
    world = World(3, camera)
    for n in range(40):
        world.act(world.see(1000 * MS * (n + 1)), 1000 * MS * (n + 1))
    found = hops.durations(hops.chains(world.write(tmp_path)), pictures=camera)
    names = [name for name, *_ in hops.hops_of(camera)]
    for name in (*names, "inference", "due"):
        assert found[name] == pytest.approx([row[name] / MS for row in world.truth], abs=1e-9), name
    assert found["total"] == pytest.approx([sum(row[name] for name in names) / MS for row in world.truth], abs=1e-9)
    whole = sum(found[name] for name in ("total", "asked", "inference", "due"))
    assert found["end to end"] == pytest.approx(whole, abs=1e-9)
    assert len(names) == (10 if camera else 8)


def test_the_picture_is_the_newest_that_is_no_newer_than_the_state_and_was_there(tmp_path: Path):
    world, second = World(0, camera=True), 1000 * MS
    world.see(9 * second)
    wanted = world.see(10 * second)
    world.mark("sim", "image", 10 * second + MS, 10 * second + MS)  # newer than the state
    world.mark("camera_hand", "heard", 10 * second + MS, 10 * second + MS)
    world.mark("camera_hand", "sent", 10 * second + MS, 10 * second + MS)
    world.mark("policy", "image hand", 10 * second + MS, 10 * second + MS)
    world.act(wanted, 10 * second)
    (chain,) = hops.chains(world.write(tmp_path))
    assert (chain["source"], chain["policy_heard"]) == (10 * second, wanted["policy_heard"])


def test_a_chain_with_a_gap_is_left_out_and_a_repeated_request_counts_once(tmp_path: Path):
    world = World(1)
    for n in (1, 2, 3):
        world.act(world.see(1000 * MS * n), 1000 * MS * n)
    del world.rows["sim"]["applied"][1]
    world.mark("policy", "request", 3000 * MS, 3000 * MS - MS)  # the first time it was asked
    nodes = world.write(tmp_path)
    assert [chain["source"] for chain in hops.chains(nodes)] == [1000 * MS, 3000 * MS]
    assert hops.chains(hops.between(nodes, 2500 * MS, 4000 * MS))[0]["source"] == 3000 * MS


def executor_steps(rows: list[tuple[int, int, float]]) -> hops.Marks:
    """(chunk, step, ms) as marks."""
    return {"step": np.array([(step, chunk, round(ms * MS)) for chunk, step, ms in rows], dtype=np.int64)}


def test_lateness_counts_from_a_chunks_first_step_and_lost_steps_are_found():
    rows = [(7, 0, 1000), (7, 1, 1051), (7, 3, 1162), (8, 2, 2000), (8, 2, 2010), (8, 3, 2049)]
    late, lost = hops.step_lateness(executor_steps(rows), 50 * MS)
    assert late.tolist() == pytest.approx([1, 12, -1])
    assert lost == 1


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=8), max_size=5))
def test_steps_are_sent_or_lost(sent: list[list[bool]]):
    rows = [(c, s, 1000 * c + 50 * s) for c, steps in enumerate(sent) for s, was in enumerate(steps) if was]
    late, lost = hops.step_lateness(executor_steps(rows), 50 * MS)
    kept = [[s for s, was in enumerate(steps) if was] for steps in sent]
    assert lost == sum(steps[-1] - steps[0] + 1 - len(steps) for steps in kept if steps)
    assert late.tolist() == [0.0] * sum(max(0, len(steps) - 1) for steps in kept)


def test_a_trace_is_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("D2PPO_TRACE", str(tmp_path))
    trace = Trace("camera_hand")
    trace.mark("heard", 5)
    trace.mark("sent", 5, 4)
    trace.write()
    marks = hops.read(tmp_path)["camera_hand"]
    assert marks["heard"][0, :2].tolist() == [5, 0]
    assert marks["sent"][0, :2].tolist() == [5, 4]
    assert marks["heard"][0, hops.TIME] <= marks["sent"][0, hops.TIME]


def test_without_the_variable_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("D2PPO_TRACE", raising=False)
    monkeypatch.chdir(tmp_path)
    trace = Trace("executor")
    trace.mark("tick", 1)
    trace.write()
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="holds no traces"):
        hops.read(tmp_path)
