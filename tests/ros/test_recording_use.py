"""Recorded trials are replayed bit for bit, shown and recovered."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from d2ppo_core import cli
from d2ppo_core.checkpoint import save_policy
from d2ppo_core.errors import UserError
from d2ppo_core.files import sha256
from d2ppo_core.inference import Actor
from d2ppo_ros.grid import ObservationGrid
from d2ppo_ros.recording.observations import Observations
from d2ppo_ros.recording.reader import Trial
from d2ppo_ros.recording.replay import PolicyOptions, options_of, replay
from d2ppo_ros.recording.writer import TrialWriter
from d2ppo_ros.records import SECOND, ChunkRequest, RobotState
from trials_support import (
    OURS,
    STORE,
    TOPICS,
    again,
    chunk,
    image,
    metadata,
    recorded,
    request,
    state,
    tiny_policy,
)

STEP = SECOND // 20


@pytest.fixture
def policy(tmp_path: Path) -> tuple[Path, Actor]:
    path = tmp_path / "policy.safetensors"
    return path, tiny_policy(path)



@pytest.mark.parametrize(("history", "cameras"), [(1, False), (2, False), (1, True), (2, True)])
def test_a_replay_gives_the_same_bits(tmp_path: Path, history: int, cameras: bool) -> None:
    path = tmp_path / "policy.safetensors"
    actor = tiny_policy(path, history, cameras)
    trial = Trial(recorded(tmp_path, (path, actor), cameras=cameras))
    result = replay(trial, options_of(trial))
    assert result.differences == dict.fromkeys(range(4), 0.0)
    assert result.same(0.0)
    assert result.unseen == []
    assert not replay(trial, options_of(trial, seed=1)).same(0.0), "another seed is other noise"


def test_what_differs_is_found(tmp_path: Path, policy: tuple[Path, Actor], capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded(tmp_path, policy)
    assert cli.main(["trials", "replay", str(folder)]) == 0
    assert "4 of 4 chunks replayed, 4 identical in every bit" in capsys.readouterr().out

    def corrupt(message: object, count: int) -> bytes:
        actions = np.array(message.actions)
        actions[3] += 1e-9 if count == 2 else 0.0
        message.actions = actions
        return bytes(STORE.serialize_cdr(message, OURS + "ActionChunk"))

    bad = again(folder, tmp_path / "bad", "/policy/chunk", corrupt)
    assert cli.main(["trials", "replay", str(bad), "--json", "--run-dir", str(tmp_path / "run")]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["compared"], found["identical"], found["worst_chunk"]) == (4, 3, 2)
    assert found["largest_difference"] == pytest.approx(1e-9)
    assert json.loads((tmp_path / "run" / "replay.json").read_text()) == found
    assert cli.main(["trials", "replay", str(bad), "--tolerance", "1e-8"]) == 0


def test_a_lost_observation_is_told(tmp_path: Path, policy: tuple[Path, Actor]) -> None:
    """Chunk 1 looks at state 2; the rest is still compared."""
    folder = recorded(tmp_path, policy)

    def lose(message: object, count: int) -> bytes | None:
        return None if count == 2 else bytes(STORE.serialize_cdr(message, OURS + "StateVector"))

    trial = Trial(again(folder, tmp_path / "holes", "/robot/state", lose))
    result = replay(trial, options_of(trial))
    assert result.missing.keys() == {1}
    assert "no 'position' within" in result.missing[1]
    assert result.differences == {0: 0.0, 2: 0.0, 3: 0.0}
    assert not result.same(1.0)


def test_the_picture_before_is_among_what_the_policy_may_have_seen(tmp_path: Path) -> None:
    """In real time the recorder may have had a picture that the policy had not; the digest then says which it was."""
    path = tmp_path / "policy.safetensors"
    actor = tiny_policy(path, 1, True)
    folder = recorded(tmp_path, (path, actor), cameras=True)

    def a_step_earlier(message: object, count: int) -> bytes:
        at = message.header.stamp.sec * SECOND + message.header.stamp.nanosec - SECOND // 20 - 1
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(at, SECOND)
        return bytes(STORE.serialize_cdr(message, "sensor_msgs/msg/Image"))

    def asked(trial: Trial) -> list[list[dict[str, np.ndarray]]]:
        observations = Observations(trial, actor.policy.spec.observation, SECOND // 20)
        requests = list(trial.records(ChunkRequest, "policy/request"))
        return [observations.at(request.stamp, request.start)[0] for request in requests[1:3]]

    late = Trial(again(folder, tmp_path / "late", "/camera/eye/image", a_step_earlier))
    for (seen,), candidates in zip(asked(Trial(folder)), asked(late), strict=True):
        same = [all(np.array_equal(seen[name], one[name]) for name in seen) for one in candidates]
        assert same == [False, False, True]


def test_an_observation_that_the_policy_did_not_see_is_told(tmp_path: Path, policy: tuple[Path, Actor]) -> None:
    """State 2 was changed after the policy had looked at it."""
    folder = recorded(tmp_path, policy)

    def change(message: object, count: int) -> bytes:
        message.values = np.asarray(message.values) + (1e-3 if count == 2 else 0.0)
        return bytes(STORE.serialize_cdr(message, OURS + "StateVector"))

    trial = Trial(again(folder, tmp_path / "changed", "/robot/state", change))
    result = replay(trial, options_of(trial))
    assert result.unseen == [1]
    assert result.differences[1] > 0


def test_another_policy_is_refused_unless_it_is_wanted(tmp_path: Path, policy: tuple[Path, Actor]) -> None:
    trial = Trial(recorded(tmp_path, policy))
    other = tmp_path / "other.safetensors"
    changed = tiny_policy(other).policy
    for parameter in changed.network.parameters():
        parameter.data += 0.1
    save_policy(other, changed.spec, {"raw": changed.network, "ema": changed.network, "normalizer": changed.normalizer})
    with pytest.raises(UserError, match="is not the policy that ran"):
        replay(trial, PolicyOptions(str(other)))
    assert replay(trial, PolicyOptions(str(other)), any_policy=True).largest > 0
    with pytest.raises(UserError, match="is not here any more"):
        options_of(trial, checkpoint="/nowhere/policy.safetensors")


def test_show_counts_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "policy.safetensors"
    folder = recorded(tmp_path, (path, tiny_policy(path, cameras=True)), cameras=True)

    def lose(message: object, count: int) -> bytes | None:
        return None if count in (2, 3) else bytes(STORE.serialize_cdr(message, OURS + "FrameInfo"))

    holes = again(folder, tmp_path / "holes", "/camera/eye/frame", lose)
    assert cli.main(["trials", "show", str(folder), str(holes), "--json"]) == 0
    whole, torn = json.loads(capsys.readouterr().out)
    assert whole["lossy"] is False
    assert torn["lossy"] is True
    assert torn["topics"]["/camera/eye/frame"]["missing"] == 2
    assert whole["topics"]["/command/applied"] | {"rate": 0} == {
        "type": OURS + "Command", "seen": 8, "written": 8, "dropped": 0, "lost": 0, "missing": None, "rate": 0
    }  # fmt: skip
    assert whole["chunks"]["inference_ms"]["median"] == 2.0
    assert whole["commands"] == {"requested": {"DELTA": 8}, "applied": {"DELTA": 8}}
    assert (whole["success"], whole["episode"]["control_steps"], whole["task"]) == (True, 8, "reach")
    assert cli.main(["trials", "show", str(folder)]) == 0
    assert "inference 2.0 ms" in capsys.readouterr().out


def test_recover_is_a_command(tmp_path: Path, policy: tuple[Path, Actor], capsys: pytest.CaptureFixture[str]) -> None:
    folder = recorded(tmp_path, policy)
    (folder / "metadata.yaml").unlink()
    mcap = folder / "t.mcap"
    mcap.write_bytes(mcap.read_bytes()[:-2000])
    assert cli.main(["trials", "show", str(folder)]) == 2
    assert "d2ppo trials recover" in capsys.readouterr().err
    assert cli.main(["trials", "recover", str(folder)]) == 0
    assert "recovered" in capsys.readouterr().out
    assert cli.main(["trials", "show", str(folder)]) == 0
    assert cli.main(["trials", "replay", str(tmp_path)]) == 2
    assert "is no recorded trial" in capsys.readouterr().err


def test_in_real_time_the_replay_sees_what_had_arrived(tmp_path: Path) -> None:
    """Pictures of a camera with its own rhythm and delay, some received only after the policy had begun."""
    path, now, start = tmp_path / "policy.safetensors", 10**18, 5 * SECOND
    actor = tiny_policy(path, cameras=True)
    spec, rng = actor.policy.spec, np.random.default_rng(0)
    grid = ObservationGrid(spec.observation, STEP, SECOND // 10)
    trial = TrialWriter(tmp_path / "t", TOPICS, metadata(spec, path))
    events = [(start + n * 10_000_000, 1_000_000, "state") for n in range(100)]
    events += [(start + n * 33_000_000, int(rng.integers(5, 60)) * 1_000_000, "eye") for n in range(30)]
    events += [(start + 7 + n * 2 * STEP, 0, "ask") for n in range(8)]
    waiting, index = None, 0
    for stamp, delay, kind in sorted(events, key=lambda event: event[0] + event[1]):
        received = now + stamp + delay
        if kind == "state":
            values = {name: rng.uniform(-1, 1, 2) for name in ("position", "goal")}
            grid.add_state(RobotState(stamp, "t", 0, values))
            trial.write("/robot/state", received, state(stamp, 0, values))
        elif kind == "eye":
            picture = rng.integers(0, 256, (16, 17, 3), dtype=np.uint8)
            grid.add_image("eye", stamp, picture)
            trial.write("/camera/eye/image", received, image(stamp, picture))
        else:
            waiting = stamp
            trial.write("/policy/request", received, request(stamp, index, 3, start))
        if waiting and grid.ready(waiting, start):
            actions = actor.predict(grid.assemble(waiting, start), [3], [index])[0]
            trial.write("/policy/chunk", received + 2_000_000, chunk(waiting, index, actions, 2, sha256(path)))
            waiting, index = None, index + 1
    trial.close({})
    result = replay(Trial(tmp_path / "t"), options_of(Trial(tmp_path / "t")))
    assert len(result.differences) == 8
    assert result.largest == 0.0
