"""How the nodes' processes talk: by which profile of Fast DDS, and how far."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from d2ppo_ros.environment import PROFILES, environment, share

FAST, OTHER = {"RMW_IMPLEMENTATION": "rmw_fastrtps_cpp"}, {"RMW_IMPLEMENTATION": "rmw_cyclonedds_cpp"}
RANGE, ONLY = "ROS_AUTOMATIC_DISCOVERY_RANGE", "ROS_LOCALHOST_ONLY"
HUMBLE = {"ROS_DISTRO": "humble"}


@pytest.mark.parametrize(
    ("base", "profile", "far", "only"),
    [
        ({}, "this_machine.xml", "SYSTEM_DEFAULT", None),
        (FAST, "this_machine.xml", "SYSTEM_DEFAULT", None),
        ({RANGE: "LOCALHOST"}, "this_machine.xml", "SYSTEM_DEFAULT", None),
        ({RANGE: "SUBNET"}, "network.xml", "SUBNET", None),
        ({ONLY: "1"}, "this_machine.xml", "SYSTEM_DEFAULT", "0"),
        (HUMBLE, "this_machine.xml", "SYSTEM_DEFAULT", "0"),
        (HUMBLE | {RANGE: "SUBNET"}, "network.xml", "SUBNET", "0"),
        (OTHER, None, "LOCALHOST", None),
        (OTHER | HUMBLE, None, "LOCALHOST", "1"),
        (OTHER | {RANGE: "SUBNET"}, None, "SUBNET", None),
        (OTHER | {ONLY: "0"}, None, None, "0"),
        ({ONLY: "1", RANGE: "SUBNET"}, "network.xml", "SUBNET", "0"),
        ({ONLY: "0"}, "this_machine.xml", "SYSTEM_DEFAULT", "0"),
        ({"ROS_STATIC_PEERS": "10.0.0.2"}, "network.xml", "SUBNET", None),
        ({"RMW_IMPLEMENTATION": "", PROFILES[0]: ""}, "this_machine.xml", "SYSTEM_DEFAULT", None),
        ({PROFILES[0]: str(share() / "params/this_machine.xml"), RANGE: "LOCALHOST"},
         "this_machine.xml", "SYSTEM_DEFAULT", None),
        ({PROFILES[0]: "/mine.xml"}, "mine.xml", "LOCALHOST", None),
        ({PROFILES[0]: "/mine.xml", RANGE: "LOCALHOST"}, "mine.xml", "LOCALHOST", None),
    ],
)
def test_this_machine_alone_unless_somebody_says_otherwise(
    base: dict[str, str], profile: str | None, far: str | None, only: str | None
) -> None:
    found = environment(base)
    assert (found.get(RANGE), found.get(ONLY)) == (far, only)
    assert (Path(found[PROFILES[0]]).name if PROFILES[0] in found else None) == profile
    assert environment(found) == found  # a process that starts others hands on what it was given


def test_what_the_user_says_stays() -> None:
    said = {"OMP_WAIT_POLICY": "ACTIVE", "HOME": "/h"}
    assert environment(said).items() >= said.items()


def test_profiles_are_the_same_but_for_whom_they_reach() -> None:
    """Element by element: the one for this machine alone names its own address."""
    here, far = (ET.parse(share() / "params" / name).getroot() for name in ("this_machine.xml", "network.xml"))
    space = here.tag.removesuffix("profiles")
    for transport in here.iter(f"{space}transport_descriptor"):
        (white,) = transport.findall(f"{space}interfaceWhiteList")
        assert [address.text for address in white] == ["127.0.0.1"]
        transport.remove(white)
    assert [kind.text for kind in here.iter(f"{space}type")] == ["UDPv4"]
    flat = [[(e.tag, (e.text or "").strip()) for e in root.iter()] for root in (here, far)]
    assert flat[0] == flat[1]
