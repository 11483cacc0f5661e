"""Messages of the right type and with no sense in them, for every topic that a node listens to."""

from __future__ import annotations

import importlib
import time
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from d2ppo_ros import topics
from d2ppo_ros.records import State
from ros_faults import STRAY, Outcome
from ros_observer import speeds
from ros_rig import Rig

SPEED, TURN = 1.0, 6.0  # m/s, rad/s: what the simulated controller can do at most, its input being clipped
INTEGERS = {f"{sign}int{bits}": (-(2 ** (bits - 1)) if not sign else 0, 2 ** (bits - (not sign)) - 1)
            for sign in ("", "u") for bits in (8, 16, 32, 64)}  # fmt: skip
NOT_OURS = {"/rosout", "/parameter_events", "/clock", "/diagnostics"}
WORDS = st.one_of(
    st.sampled_from(["", "rgb8", "bgr8", "measured", "commanded", "fault-1", "robot0_eef_pos", "{}", "null"]),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=20), st.just("x" * 100_000),
)  # fmt: skip
FLOATS = st.one_of(st.floats(), st.floats(-1, 1), st.sampled_from([float("nan"), float("inf"), -1e300]))


def get_message(kind: str) -> type:
    """package/msg/Type or package/Type as its class."""
    words = kind.split("/")
    return getattr(importlib.import_module(f"{words[0]}.msg"), words[-1])


def field(kind: str) -> st.SearchStrategy[Any]:
    """Values of one field, by its type as ROS writes it."""
    if kind.startswith("sequence<"):
        inner, _, most = kind[len("sequence<") : -1].partition(", ")
        return st.lists(field(inner), max_size=min(int(most or 40), 40))
    if kind.endswith("]"):
        inner, size = kind[:-1].split("[")
        return st.lists(field(inner), min_size=int(size), max_size=int(size))
    if kind in INTEGERS:
        low, high = INTEGERS[kind]
        return st.one_of(st.integers(low, high), st.integers(0, min(high, 100)))
    plain = {"boolean": st.booleans(), "double": FLOATS, "float": st.floats(width=32), "string": WORDS,
             "octet": st.binary(min_size=1, max_size=1)}  # fmt: skip
    return plain[kind] if kind in plain else message(get_message(kind))


def message(kind: type) -> st.SearchStrategy[Any]:
    """Messages of a type: one in three carries a time near the present, so that not all are dropped for their age."""
    if kind.__name__ == "Time":
        present = st.builds(lambda: kind(sec=int(time.time()), nanosec=time.time_ns() % 1_000_000_000))
        wild = st.builds(kind, sec=st.integers(-(2**31), 2**31 - 1), nanosec=st.integers(0, 2**32 - 1))
        return st.one_of(present, wild)
    fields = {name: field(inner) for name, inner in kind.get_fields_and_field_types().items()}
    return st.builds(kind, **fields)


def heard(rig: Rig) -> dict[str, type]:
    """Every topic that one of the graph's nodes listens to, and its type."""
    node, found = rig.observer.node, {}
    for name in rig.graph.wanted:
        for topic, kinds in node.get_subscriber_names_and_types_by_node(name, "/"):
            if topic not in NOT_OURS:
                found[topic] = get_message(kinds[0])
    return found


def spray(system: Rig, times: int) -> None:
    """So many rounds of one message on each topic."""
    node = system.observer.node
    kinds = heard(system)
    qos = topics.LATCHED  # heard by everybody
    publishers = {name: (node.create_publisher(kind, name, qos), message(kind)) for name, kind in kinds.items()}
    assert len(publishers) >= 15, sorted(publishers)

    @settings(max_examples=times, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def throw(data: st.DataObject) -> None:
        for publisher, garbage in publishers.values():
            publisher.publish(data.draw(garbage))

    throw()
    for publisher, _ in publishers.values():
        node.destroy_publisher(publisher)


def survive(system: Rig, times: int) -> Outcome:
    """Garbage while the arm moves, an emergency stop if it went on, and a trial."""
    system.go()
    begin = time.time_ns()  # before it the simulator put the arm to the trial's start
    spray(system, times)
    assert not system.graph.dead(), {name: system.graph.log(name)[-2000:] for name in system.graph.dead()}
    _, linear, angular = speeds([arm for arm in list(system.observer.arms) if arm.stamp > begin])
    assert linear.max() < SPEED and angular.max() < TURN, (linear.max(), angular.max())
    if system.observer.state is not State.STOPPED:
        system.observer.call(topics.ESTOP_CALL)
    since = time.time_ns()
    rest, latched, stalled = system.rest_after(since), system.latched_after(since), system.stalled(since)
    assert rest is not None and latched is not None
    moved = system.travelled(0.3)
    assert moved < STRAY
    cause = system.observer.cause
    system.go()
    return Outcome(rest, latched[0], latched[1], cause, moved, stalled)
