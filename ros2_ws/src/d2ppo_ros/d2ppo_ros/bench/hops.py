"""Marks of all processes (`d2ppo_ros.trace`) joined to chains: from what was seen to the command that it led to.

A chain belongs to one chunk (and one camera, where the policy looks through some). Its times follow one another:

    source -> [camera_heard -> camera_sent ->] policy_heard ... complete -> begin ... answered -> chunk_heard ...
    tick -> command -> safety_heard -> safety_sent -> robot_heard -> applied

Where it says `...`, something waits by design: until the executor asks (`asked`), for the network (`inference`), and
for the tick at which the first step is due (`due`). All else are hops; `total` is their sum. Times are ns of
CLOCK_MONOTONIC.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from d2ppo_core.errors import UserError

Marks = dict[str, np.ndarray]  # of one node: event -> (N, 3) int64: key, of, time; in order of time
Chain = dict[str, int]  # name of a time -> ns

KEY, OF, TIME = range(3)
CAMERA = "camera_"  # how the names of camera nodes begin
PICTURE_HOPS = (
    ("source to camera node", "source", "camera_heard"),
    ("camera node", "camera_heard", "camera_sent"),
    ("camera node to policy", "camera_sent", "policy_heard"),
)
STATE_HOPS = (("robot state to policy", "source", "policy_heard"),)
LATER_HOPS = (
    ("policy: observation", "complete", "begin"),
    ("chunk to executor", "answered", "chunk_heard"),
    ("executor: command", "tick", "command"),
    ("command to safety", "command", "safety_heard"),
    ("safety", "safety_heard", "safety_sent"),
    ("command to robot", "safety_sent", "robot_heard"),
    ("robot", "robot_heard", "applied"),
)
WAITS = (("asked", "policy_heard", "complete"), ("inference", "begin", "answered"), ("due", "chunk_heard", "tick"))


def hops_of(pictures: bool) -> tuple[tuple[str, str, str], ...]:
    """Name, begin and end of every hop, in order."""
    return (PICTURE_HOPS if pictures else STATE_HOPS) + LATER_HOPS


def read(folder: Path) -> dict[str, Marks]:
    """By node; a node that ran twice has the marks of both."""
    rows: dict[str, dict[str, list[tuple[int, ...]]]] = defaultdict(lambda: defaultdict(list))
    for path in sorted(folder.glob("*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            for event, *numbers in csv.reader(file):
                rows[path.stem.rpartition("-")[0]][event].append(tuple(map(int, numbers)))
    if not rows:
        raise UserError(f"{folder} holds no traces; set D2PPO_TRACE to it before the nodes start")
    return {node: {event: _sorted(found) for event, found in events.items()} for node, events in rows.items()}


def _sorted(rows: Iterable[tuple[int, ...]]) -> np.ndarray:
    found = np.array(list(rows), dtype=np.int64).reshape(-1, 3)
    return found[np.argsort(found[:, TIME], kind="stable")]


def between(nodes: dict[str, Marks], begin: int, end: int) -> dict[str, Marks]:
    """The marks whose time is in [begin, end)."""
    return {
        node: {event: rows[(rows[:, TIME] >= begin) & (rows[:, TIME] < end)] for event, rows in events.items()}
        for node, events in nodes.items()
    }


def _of(marks: Marks, event: str) -> np.ndarray:
    return marks.get(event, np.zeros((0, 3), dtype=np.int64))


def chains(nodes: dict[str, Marks]) -> list[Chain]:
    """Every chain of which each time is known, in order of time."""
    policy, executor = nodes.get("policy", {}), nodes.get("executor", {})
    of_chunk = {
        "complete": _times(policy, "request"), "begin": _times(policy, "inference"),
        "answered": _times(policy, "chunk"), "chunk_heard": _times(executor, "chunk"),
    }  # fmt: skip
    ticks, first, found = _rows(executor, "tick")[:, TIME], {}, []
    for sequence, stamp, time in _rows(executor, "command").tolist():
        first.setdefault(stamp, (sequence, time))
    after, seen = _After(nodes), _Seen(nodes)
    for stamp, (sequence, time) in first.items():
        chain = {name: times[stamp][-1] for name, times in of_chunk.items() if stamp in times}  # asked again: the last
        chain |= after.times(sequence, time)
        if len(chain) < len(of_chunk) + len(_After.EVENTS):
            continue
        begun = ticks[np.searchsorted(ticks, time, "right") - 1] if len(ticks) else 0
        chain |= {"command": time, "tick": max(int(begun), chain["chunk_heard"])}  # it may have had to wait for that
        for source in seen.times(stamp, chain["begin"]):
            complete = max(chain["complete"], source.pop("state"), source["policy_heard"])
            found.append(chain | source | {"complete": complete})
    return found


def _rows(marks: Marks, event: str) -> np.ndarray:
    return marks.get(event, np.zeros((0, 3), dtype=np.int64))


def _times(marks: Marks, event: str) -> dict[int, list[int]]:
    """By key: the times of its marks."""
    found: dict[int, list[int]] = defaultdict(list)
    for key, _, time in _rows(marks, event).tolist():
        found[key].append(time)
    return dict(found)


class _After:
    """What became of commands, by their sequence number."""

    EVENTS = (
        ("safety_heard", "safety", "heard"), ("safety_sent", "safety", "sent"),
        ("robot_heard", "sim", "command"), ("applied", "sim", "applied"),
    )  # fmt: skip

    def __init__(self, nodes: dict[str, Marks]) -> None:
        self._times = {name: _times(nodes.get(node, {}), event) for name, node, event in self.EVENTS}

    def times(self, sequence: int, time: int) -> Chain:
        """From the command at `time` on; what is missing is left out."""
        found: Chain = {}
        for name, times in self._times.items():
            later = [t for t in times.get(sequence, ()) if t >= time]
            if later:
                found[name] = time = later[0]
        return found


class _Seen:
    """What chunks were computed from, chosen as `d2ppo_ros.grid` does: the first state that is not older than the
    request's stamp, and of each camera the newest picture that is not newer than that state.
    """

    def __init__(self, nodes: dict[str, Marks]) -> None:
        self._policy, self._sim = nodes.get("policy", {}), nodes.get("sim", {})
        self._cameras = {
            node.removeprefix(CAMERA): {event: _times(marks, event) for event in ("heard", "sent")}
            for node, marks in nodes.items() if node.startswith(CAMERA)
        }  # fmt: skip
        self._states, self._pictures = _times(self._sim, "state"), _times(self._sim, "image")

    def times(self, stamp: int, begin: int) -> list[Chain]:
        """Of the chunk whose request has `stamp` and whose inference began at `begin`: one for each camera, or one."""
        heard = _rows(self._policy, "state")
        heard = heard[(heard[:, KEY] >= stamp) & (heard[:, TIME] <= begin)]
        if not len(heard):
            return []
        key, _, time = heard[heard[:, KEY].argmin()].tolist()
        if not self._cameras:
            return [{"source": t, "policy_heard": time, "state": time} for t in self._states.get(key, ())[:1]]
        chosen = ((camera, *self._picture(camera, key, begin)) for camera in self._cameras)
        return [
            {"source": self._pictures[picture][0], "camera_heard": self._cameras[camera]["heard"][picture][0],
             "camera_sent": self._cameras[camera]["sent"][picture][0], "policy_heard": when, "state": time}
            for camera, picture, when in chosen
            if picture in self._pictures and picture in self._cameras[camera]["sent"]
        ]  # fmt: skip

    def _picture(self, camera: str, state: int, begin: int) -> tuple[int, int]:
        """Stamp of the picture that was taken, and when it was heard."""
        heard = _rows(self._policy, f"image {camera}")
        heard = heard[(heard[:, KEY] <= state) & (heard[:, TIME] <= begin)]
        if not len(heard):
            return -1, 0
        key, _, time = heard[heard[:, KEY].argmax()].tolist()
        return key, time


# --- numbers ----------------------------------------------------------------------------------------------------------


def durations(found: list[Chain], pictures: bool) -> dict[str, np.ndarray]:
    """By name, (chains,) ms: every hop, every wait, `total` (the sum of the hops), and `end to end`."""
    hops = hops_of(pictures)
    spans = {name: _span(found, begin, end) for name, begin, end in (*hops, *WAITS)}
    total = np.sum([spans[name] for name, *_ in hops], axis=0)
    return spans | {"total": total, "end to end": _span(found, "source", "applied")}


def _span(found: list[Chain], begin: str, end: str) -> np.ndarray:
    return np.array([(chain[end] - chain[begin]) / 1e6 for chain in found])


def step_lateness(executor: Marks, step: int) -> tuple[np.ndarray, int]:
    """Of the policy's steps after the first of each chunk: how late each was sent, (n,) ms, and how many never were.

    The first step that was sent sets the time of the others, `step` ns from one to the next.
    """
    sent: dict[int, dict[int, int]] = defaultdict(dict)
    for number, stamp, time in _rows(executor, "step").tolist():
        sent[stamp].setdefault(number, time)  # poses: the first command of the step
    late, lost = [], 0
    for times in sent.values():
        first, begin = next(iter(times.items()))
        late += [(time - begin - (number - first) * step) / 1e6 for number, time in list(times.items())[1:]]
        lost += max(times) - first + 1 - len(times)
    return np.array(late), lost
