"""Single checks of safety, each at its exact threshold: ages, clocks, arms, cameras, workspace."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from d2ppo_core.errors import UserError
from d2ppo_ros.records import SECOND
from d2ppo_ros.safety.arms import ArmWatch, well_formed
from d2ppo_ros.safety.cameras import CameraWatch, changed_options, image_facts
from d2ppo_ros.safety.checks import Clock, Finding, Freshness, Lasting, Reaction, Share, above, worst
from d2ppo_ros.safety.kinematics import LIMITS
from d2ppo_ros.safety.settings import SafetySettings, SimSettings
from d2ppo_ros.safety.workspace import Workspace
from safety_bench import HOME, MS, arm_state

ROBOT = SafetySettings()
PANDA = LIMITS["panda"]


def reactions(findings: list[Finding]) -> dict[str, Reaction]:
    """The strongest of each check."""
    return {finding.check: finding.reaction for finding in sorted(findings, key=lambda finding: finding.reaction)}


@pytest.mark.parametrize(
    ("value", "reaction"),
    [(0.0, None), (1.0, None), (1.0001, Reaction.HOLD), (2.0, Reaction.HOLD), (2.0001, Reaction.STOP),
     (float("nan"), Reaction.STOP), (float("inf"), Reaction.STOP)],
)  # fmt: skip
def test_above(value: float, reaction: Reaction | None) -> None:
    found = above("x", value, "x", hold=1.0, stop=2.0)
    assert [finding.reaction for finding in found] == ([] if reaction is None else [reaction])
    assert above("x", value, "x") == []  # 0 is off


def test_the_strongest_wins_and_of_equals_the_first() -> None:
    a, b, c = (Finding(name, Reaction.HOLD, "") for name in "abc")
    stop = Finding("d", Reaction.STOP, "")
    assert worst([a, b, stop, c]) is stop
    assert worst([a, b, c]) is a
    assert worst([]) is None


class TestFreshness:
    def source(self) -> Freshness:
        return Freshness("age", "thing", hold=0.1, stop=0.3, future=0.005)

    @pytest.mark.parametrize(
        ("age", "reaction"), [(0, None), (100, None), (101, Reaction.HOLD), (300, Reaction.HOLD), (301, Reaction.STOP)]
    )
    def test_thresholds(self, age: int, reaction: Reaction | None) -> None:
        source = self.source()
        assert source.accept(SECOND, SECOND) == ""
        found = source.findings(SECOND + age * MS)
        assert [finding.reaction for finding in found] == ([] if reaction is None else [reaction])

    @pytest.mark.parametrize(
        ("stamp", "answer"), [(0, ""), (5, ""), (6, "future"), (-1, "back"), (-1000, "back"), (10**6, "future")]
    )
    def test_stamps(self, stamp: int, answer: str) -> None:
        source = self.source()
        source.accept(SECOND, SECOND)
        assert source.accept(SECOND + stamp * MS, SECOND) == answer
        assert source.stamp == SECOND + (0 if answer else stamp * MS)  # what is dropped refreshes nothing

    def test_silent_from_the_start_holds(self) -> None:
        assert reactions(self.source().findings(0)) == {"age": Reaction.HOLD}


@pytest.mark.parametrize(
    ("ros", "steady", "found"),
    [
        (10, 10, {}), (50, 50, {}), (51, 51, {"tick": Reaction.WARN}), (101, 101, {"tick": Reaction.STOP}),
        (60, 10, {}), (61, 10, {"clock": Reaction.STOP}), (-41, 10, {"clock": Reaction.STOP}), (-40, 10, {}),
        (3600_000, 10, {"clock": Reaction.STOP}),
    ],
)  # fmt: skip
def test_clock(ros: int, steady: int, found: dict) -> None:
    clock = Clock(jump=0.05, warn=0.05, stop=0.1)
    assert clock.tick(SECOND, 0) == []
    assert reactions(clock.tick(SECOND + ros * MS, steady * MS)) == found


def test_a_slow_drift_is_no_jump() -> None:
    clock = Clock(jump=0.05, warn=0.05, stop=0.1)
    assert not any(clock.tick(int(tick * 10.1 * MS), tick * 10 * MS) for tick in range(2000))


def test_lasting_and_share() -> None:
    lasting = Lasting()
    lasted = [lasting.update(so, now * SECOND) for now, so in enumerate([True, True, True, False, True])]
    assert lasted == [0, 1, 2, 0, 0]
    share = Share()
    for i in range(10):
        share.add(i >= 5, i * 10 * MS)
    assert share.value(90 * MS) == 0.5
    assert share.value(40 * MS + SECOND) == 1.0  # the first five are older than a second
    assert share.value(60 * MS + SECOND) == 0.0  # too few left to say anything


class TestArm:
    def watch(self, state, limits: SafetySettings = ROBOT) -> ArmWatch:
        arm = ArmWatch(0, limits)
        arm.update(state)
        return arm

    def test_at_home_nothing_is_wrong(self) -> None:
        assert self.watch(arm_state()).findings() == []

    @pytest.mark.parametrize(
        "wrong",
        [{"q": np.full(7, np.nan)}, {"dq": np.zeros(6)}, {"position": np.array([0, 0, np.inf])},
         {"rotation": np.zeros((3, 3))}, {"rotation": -np.eye(3)}, {"wrench": np.full(6, np.nan)}],
    )  # fmt: skip
    def test_garbage_is_seen(self, wrong: dict) -> None:
        assert well_formed(arm_state())
        assert not well_formed(replace(arm_state(), **wrong))

    def test_a_fault_of_the_robot_stops(self) -> None:
        (finding,) = self.watch(arm_state(ok=False, fault="cartesian_reflex")).findings()
        assert (finding.check, finding.reaction) == ("robot", Reaction.STOP)
        assert "cartesian_reflex" in finding.text

    @pytest.mark.parametrize(
        ("force", "torque", "found"),
        [(15, 8, {}), (15.1, 0, {"force": Reaction.HOLD}), (30.1, 0, {"force": Reaction.STOP}),
         (0, 8.1, {"torque": Reaction.STOP})],
    )  # fmt: skip
    def test_contact(self, force: float, torque: float, found: dict) -> None:
        wrench = np.array([0, 0, -force, 0, torque, 0], dtype=float)
        assert reactions(self.watch(arm_state(wrench=wrench)).findings()) == found

    def test_contact_is_filtered_at_10_hz(self) -> None:
        arm, push = self.watch(arm_state()), np.array([100.0, 0, 0, 0, 0, 0])
        arm.update(arm_state(MS, wrench=push))  # 1 ms of 100 N: 1 - exp(-2 pi 10 0.001) = 6.1 N
        assert arm.findings() == []
        arm.update(arm_state(20 * MS, wrench=push))
        assert reactions(arm.findings()) == {"force": Reaction.STOP}

    @pytest.mark.parametrize(("out", "found"), [(19, {}), (21, {"outside": Reaction.STOP})])
    def test_outside(self, out: int, found: dict) -> None:
        for axis, face in ((0, ROBOT.box_high[0]), (1, ROBOT.box_low[1]), (2, ROBOT.clearance)):
            position = np.array([0.4, 0.0, 0.4])
            position[axis] = face + (1 if axis == 0 else -1) * out * 1e-3
            assert reactions(self.watch(arm_state(position=position)).findings()) == found

    @pytest.mark.parametrize(
        ("share", "found"), [(0.49, None), (0.51, Reaction.HOLD), (0.79, Reaction.HOLD), (0.81, Reaction.STOP)]
    )
    def test_joint_speed(self, share: float, found: Reaction | None) -> None:
        dq = np.zeros(7)
        dq[6] = share * PANDA.speed[6]  # turns the tool about its axis
        loose = replace(ROBOT, angular_speed=2.4, angular_stop=2.5)
        assert reactions(self.watch(arm_state(dq=dq), loose).findings()).get("joint_speed") == found

    @pytest.mark.parametrize(
        ("speed", "found"), [(0.24, {}), (0.26, {"speed": Reaction.HOLD}), (0.31, {"speed": Reaction.STOP})]
    )
    def test_linear_speed(self, speed: float, found: dict) -> None:
        radius = np.linalg.norm(arm_state().position[:2])
        dq = np.array([speed / radius, 0, 0, 0, 0, 0, 0])
        assert reactions(self.watch(arm_state(dq=dq)).findings()) == found

    @pytest.mark.parametrize(("margin", "stops"), [(0.051, False), (0.049, True)])
    @pytest.mark.parametrize("joint", range(7))
    def test_a_joints_end_stops(self, joint: int, margin: float, stops: bool) -> None:
        for end in (PANDA.low + margin, PANDA.high - margin):
            q = HOME.copy()
            q[joint] = end[joint]
            findings = self.watch(arm_state(q=q)).findings()
            assert (reactions(findings).get("joint_margin") == Reaction.STOP) == stops

    @pytest.mark.parametrize(
        ("margin", "share", "reaction"),
        [(0.151, 1.0, None), (0.125, 0.5, Reaction.CLIP), (0.101, 0.02, Reaction.CLIP), (0.099, 0.0, Reaction.HOLD)],
    )
    def test_slower_towards_a_joints_end_only(self, margin: float, share: float, reaction: Reaction | None) -> None:
        q = HOME.copy()
        q[6] = PANDA.high[6] - margin
        arm = self.watch(arm_state(q=q))
        axis = arm.state.rotation[:, 2]
        towards, finding = arm.slowdown(np.concatenate([np.zeros(3), 0.5 * axis]))
        assert towards == pytest.approx(share, abs=1e-6)
        assert (finding.reaction if finding else None) == reaction
        assert arm.slowdown(np.concatenate([np.zeros(3), -0.5 * axis])) == (1.0, None)

    def test_predicted_joint_speed_is_cut_to_the_limit(self) -> None:
        arm = self.watch(arm_state())
        share, finding = arm.slowdown(np.array([0, 0, 0, 0, 0, 50.0]))
        assert 0 < share < 1
        assert finding.check == "joint_speed"
        assert share * finding.value == pytest.approx(ROBOT.joint_speed_hold)

    def test_singularity(self) -> None:
        far = self.watch(arm_state(q=np.array([0, 0.8, 0, -1.0, 0, 1.9, 0.8])))
        share, finding = far.slowdown(np.array([0.01, 0, 0, 0, 0, 0]))
        assert finding.check == "singular"
        assert share == pytest.approx(1 - (finding.value - 17) / 13)
        stretched = self.watch(arm_state(q=np.array([0, 0.9, 0, -0.6, 0, 1.6, 0.8])))
        assert reactions(stretched.findings())["singular"] == Reaction.STOP
        share, _ = stretched.slowdown(np.array([0.01, 0, 0, 0, 0, 0]))
        assert share == pytest.approx(0.1)  # never none: it must get out again

    def test_the_base_may_be_turned(self) -> None:
        q = np.array([0.3, 0.2, 0.1, -1.9, 0.4, 2.0, 0.3])
        plain = self.watch(arm_state(q=q))
        turned = self.watch(arm_state(q=q), replace(ROBOT, base_yaw=[1.2, 0.0]))
        twist, yaw = np.array([1.0, 2.0, 3.0, 1.0, -2.0, 5.0]), Rotation.from_euler("z", 1.2)
        inside = np.concatenate([yaw.apply(twist[:3]), yaw.apply(twist[3:])])
        assert turned.slowdown(inside)[0] == pytest.approx(plain.slowdown(twist)[0])

    def test_without_a_model_joints_are_not_looked_at(self) -> None:
        arm = self.watch(arm_state(q=PANDA.high, dq=10 * PANDA.speed), SimSettings())
        assert arm.findings() == []
        assert arm.slowdown(np.full(6, 100.0)) == (1.0, None)

    def test_tracking_needs_time(self) -> None:
        arm, away = self.watch(arm_state()), arm_state().position + np.array([0.061, 0, 0])
        rotation = arm_state().rotation
        assert arm.track(away, rotation, 0) == []
        assert arm.track(away, rotation, 200 * MS) == []
        assert reactions(arm.track(away, rotation, 201 * MS)) == {"tracking": Reaction.STOP}
        assert arm.track(away - [0.002, 0, 0], rotation, 300 * MS) == []  # back: counted anew
        assert arm.track(away, rotation, 400 * MS) == []

    def test_tracking_of_rotation(self) -> None:
        arm, state = self.watch(arm_state()), arm_state()
        turned = Rotation.from_rotvec([0, 0, 0.41]).as_matrix() @ state.rotation
        arm.track(state.position, turned, 0)
        (finding,) = arm.track(state.position, turned, 201 * MS)
        assert (finding.value, finding.limit) == (pytest.approx(0.41), 0.4)

    def test_path_counts_ways_and_no_noise(self) -> None:
        arm, start = self.watch(arm_state()), arm_state().position
        for step in range(1, 51):
            arm.update(arm_state(step, position=start + np.array([0.002 * step, 0, 0])))
        assert arm.path == pytest.approx(0.1)
        for step in range(51, 500):
            arm.update(arm_state(step, position=start + np.array([0.1 + 0.0004 * (step % 2), 0, 0])))
        assert arm.path == pytest.approx(0.1, abs=1e-3)


class TestCamera:
    def facts(self, seed: int = 0, **changes):
        image = np.random.default_rng(seed).integers(20, 200, (8, 10, 3), dtype=np.uint8)
        return replace(image_facts("c", 0, image), **changes)

    def test_facts_of_a_frame(self) -> None:
        image = np.full((8, 10, 3), 100, dtype=np.uint8)
        image[:4], image[4:6] = 0, 255
        facts = image_facts("c", 7, image)
        assert (facts.black, facts.saturated, facts.shape, facts.stamp) == (0.5, 0.25, (8, 10, 3), 7)
        other = image.copy()
        other[7, 9, 2] += 1
        assert image_facts("c", 7, other).digest != facts.digest
        mirrored = other[:, ::-1]  # a view that is not contiguous
        assert image_facts("c", 7, mirrored).digest != image_facts("c", 7, other).digest
        assert image_facts("c", 7, np.zeros((0, 0, 3), dtype=np.uint8)).shape == (0, 0, 3)

    def test_five_identical_frames_are_frozen(self) -> None:
        camera = CameraWatch("c", ROBOT)
        for count in range(1, 6):
            camera.update(self.facts(), path=0.0)
            assert bool(camera.findings()) == (count == 5)
        camera.update(self.facts(1), path=0.0)
        assert camera.findings() == []

    def test_without_noise_frames_may_repeat_while_nothing_moves(self) -> None:
        camera = CameraWatch("c", SimSettings())
        for _ in range(50):
            camera.update(self.facts(), path=1.0)
        assert camera.findings() == []
        camera.update(self.facts(), path=1.009)
        assert camera.findings() == []
        camera.update(self.facts(), path=1.011)
        assert reactions(camera.findings()) == {"frozen": Reaction.HOLD}
        camera.update(self.facts(), path=0.0)  # another trial
        assert camera.findings() == []

    @pytest.mark.parametrize(
        ("changes", "found"),
        [({"black": 0.9}, {}), ({"black": 0.91}, {"black": Reaction.HOLD}), ({"saturated": 0.9}, {}),
         ({"saturated": 0.91}, {"saturated": Reaction.HOLD}), ({"shape": (9, 10, 3)}, {"image_size": Reaction.HOLD})],
    )  # fmt: skip
    def test_sanity(self, changes: dict, found: dict) -> None:
        camera = CameraWatch("c", ROBOT)
        camera.update(self.facts(0), path=0.0)
        camera.update(self.facts(1, **changes), path=0.0)
        assert reactions(camera.findings()) == found

    def test_settings_that_somebody_else_changes_hold_the_arm(self) -> None:
        camera = CameraWatch("c", ROBOT)
        text = json.dumps({"driver": {"changed": {"exposure": [120.0, 156.0]}}})
        camera.set_up(changed_options(text))
        assert camera.findings() == []  # no frame yet
        camera.update(self.facts(0), path=0.0)
        (found,) = camera.findings()
        assert (found.check, found.reaction, found.value) == ("setup", Reaction.HOLD, 156.0)
        camera.forget()
        camera.update(self.facts(1), path=0.0)
        assert reactions(camera.findings()) == {"setup": Reaction.HOLD}  # re-arming does not mend it
        camera.set_up(changed_options('{"driver": null}'))
        assert camera.findings() == []
        for broken in ("{", "[]", '{"driver": {"changed": {"exposure": 3}}}'):
            with pytest.raises(UserError, match="cannot be read"):
                changed_options(broken)


class TestWorkspace:
    space = Workspace(replace(ROBOT, table=0.1))

    @settings(max_examples=50, deadline=None)
    @given(st.integers(0, 2**32 - 1))
    def test_everything_is_brought_inside_and_what_is_inside_stays(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        position, rotation = rng.uniform(-2, 2, 3), Rotation.random(random_state=seed).as_matrix()
        p, r = self.space.project(position, rotation)
        assert (p >= [0.2, -0.45, 0.11]).all()
        assert (p <= ROBOT.box_high).all()
        assert np.arccos(np.clip(-r[2, 2], -1, 1)) <= ROBOT.tilt + 1e-6
        np.testing.assert_allclose(r @ r.T, np.eye(3), atol=1e-9)
        again = self.space.project(p, r)
        np.testing.assert_array_equal(again[0], p)
        np.testing.assert_allclose(again[1], r, atol=1e-6)
        assert self.space.outside(p) == 0.0

    def test_straight_up_is_turned_too(self) -> None:
        _, rotation = self.space.project(np.array([0.4, 0, 0.4]), np.eye(3))
        assert -rotation[2, 2] == pytest.approx(np.cos(ROBOT.tilt))

    def test_off_is_everywhere(self) -> None:
        space, far = Workspace(SimSettings()), np.array([50.0, -50.0, -50.0])
        assert space.outside(far) == 0.0
        position, rotation = space.project(far, np.eye(3))
        np.testing.assert_array_equal(position, far)
        np.testing.assert_array_equal(rotation, np.eye(3))
