"""Limits of the safety monitor: profiles, ceilings, and what a robot does not allow."""

from __future__ import annotations

import dataclasses

import pytest

from d2ppo_core.errors import UserError
from d2ppo_ros.parameters import build, table
from d2ppo_ros.safety.settings import LockstepSettings, SafetySettings, SimSettings, settings_class


def test_every_profile_is_valid_and_named() -> None:
    assert settings_class("robot")() == SafetySettings()
    assert settings_class("sim")().profile == settings_class("sim", lockstep=True)().profile == "sim"
    assert settings_class("sim") is SimSettings
    assert settings_class("sim", lockstep=True) is LockstepSettings


@pytest.mark.parametrize(("profile", "lockstep"), [("robot", True), ("careful", False)])
def test_profiles_that_do_not_exist(profile: str, lockstep: bool) -> None:
    with pytest.raises(UserError, match="choose"):
        settings_class(profile, lockstep)


def test_lockstep_looks_at_no_time() -> None:
    settings = LockstepSettings()
    times = [field.name for field in dataclasses.fields(settings) if field.metadata["unit"] == "s"]
    assert len(times) > 15
    assert {name: getattr(settings, name) for name in times if getattr(settings, name)} == {"tracking_time": 0.2}
    assert not settings.tracking  # which is what tracking_time belongs to


def test_variants_have_the_same_parameters_with_the_same_ceilings() -> None:
    fields = {field.name: dict(field.metadata) for field in dataclasses.fields(SafetySettings)}
    for variant in (SimSettings, LockstepSettings):
        assert {field.name: dict(field.metadata) for field in dataclasses.fields(variant)} == fields


def test_every_parameter_has_a_reason_and_every_number_a_ceiling() -> None:
    assert len(table(SafetySettings)) == len(dataclasses.fields(SafetySettings))
    for field in dataclasses.fields(SafetySettings):
        assert field.metadata["why"]
        if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
            assert field.metadata["low"] is not None, field.name
            assert field.metadata["high"] is not None, field.name


@pytest.mark.parametrize(
    "field",
    [f for f in dataclasses.fields(SafetySettings) if isinstance(f.default, (int, float)) and f.metadata["high"]],
    ids=lambda field: field.name,
)
def test_no_parameter_gets_past_its_ceiling(field: dataclasses.Field) -> None:
    beyond = type(field.default)(field.metadata["high"] + 1)
    for settings in (SafetySettings, SimSettings, LockstepSettings):
        with pytest.raises(UserError, match=field.name):
            settings(**{field.name: beyond})
        with pytest.raises(UserError, match=field.name):
            build(settings, {field.name: beyond}, "safety")


@pytest.mark.parametrize(
    "off",
    [
        {"robot_model": ""}, {"needs_arm": False}, {"command_hold": 0.0}, {"command_stop": 0.0}, {"starved_stop": 0.0},
        {"state_stop": 0.0}, {"image_stop": 0.0}, {"clock_jump": 0.0}, {"linear_speed": 0.0}, {"linear_stop": 0.0},
        {"box_low": [], "box_high": []}, {"clearance": 0.0}, {"tilt": 0.0}, {"jump": 0.0}, {"tracking": 0.0},
        {"margin_stop": 0.0}, {"joint_speed_stop": 0.0}, {"singular_stop": 0.0}, {"force_stop": 0.0},
        {"torque_stop": 0.0}, {"max_duration": 0.0}, {"frozen_frames": 0}, {"gripper_spacing": 0.0},
    ],
    ids=lambda off: next(iter(off)),
)  # fmt: skip
def test_a_robot_allows_no_check_to_be_off(off: dict) -> None:
    with pytest.raises(UserError, match=f"{next(iter(off))} is off"):
        SafetySettings(**off)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"command_hold": 0.4}, "command_hold=0.4 must be below command_stop"),
        ({"force_hold": 31.0}, "force_hold=31.0 must be below force_stop"),
        ({"margin_stop": 0.12}, "margin_stop=0.12 must be below margin_hold"),
        ({"linear_speed": 0.3}, "linear_speed=0.3 must be below linear_stop"),
        ({"box_low": [0.0, 0.0]}, "3 numbers each"),
        ({"box_low": [0.8, -0.45, 0.0]}, "box_low must be below box_high"),
        ({"table": 0.9}, "top of the box"),
        ({"base_yaw": [0.0]}, "base_yaw"),
        ({"linear_speed": float("nan")}, "linear_speed"),
        ({"profile": "wild"}, "profile"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_nonsense_is_refused(wrong: dict, match: str) -> None:
    with pytest.raises(UserError, match=match):
        SafetySettings(**wrong)
