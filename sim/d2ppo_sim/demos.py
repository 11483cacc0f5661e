"""Recording demonstrations: scripted experts in worker processes, one finished episode a file until all are there.

Which episodes end up in the data depends on the settings alone: seeds first_seed, first_seed + 1, … are tried in order,
failures are discarded, and the first n successes are kept, however many workers there were and whenever they finished.

`obs[t]` is what the simulator's `reset` or `step` returned, that is, exactly what a policy will be given in evaluation;
robosuite samples it at the last physics substep, before that substep's integration reaches the poses (2 ms).
"""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from d2ppo_core.contract import Camera
from d2ppo_core.data.robomimic import RENDERING, Episode, write_demonstrations
from d2ppo_core.errors import UserError, explain_os_errors
from d2ppo_core.files import atomic_path, write_json

from .episode import Observation, Simulation
from .experts import EXPERTS, ActionNoise, Expert, ExpertFactory, manner_of
from .pool import cpu_count, make_pool
from .randomise import parse
from .toy import Reach
from .vector import build_robosuite

STEPS_AFTER_SUCCESS = (5, 10)  # control steps, so that the data show holding the result
RECORDER_VERSION = 5  # raise it whenever an expert or the recording changes: parts of two versions are never mixed


@dataclass(frozen=True)
class Settings:
    """Everything that the recorded episodes depend on."""

    simulator: str
    environment: str
    first_seed: int
    position_noise: float
    rotation_noise: float
    max_steps: int
    quality: str = "better"
    cameras: list[dict[str, Any]] = field(default_factory=list)  # what the task's contract says of each
    randomise: dict[str, Any] = field(default_factory=dict)  # terms of domain randomisation; {}: none
    recorder: int = RECORDER_VERSION


@dataclass(frozen=True)
class Trial:
    """How the expert fared from one seed."""

    seed: int
    mode: str
    success: bool
    steps: int


def build_simulation(settings: Settings) -> Simulation:
    """The one environment in which a worker records."""
    require_offered(settings)
    if settings.simulator == "toy":
        return Reach()
    from .native.simulation import NativeSimulation

    build = build_robosuite if settings.simulator == "robosuite" else NativeSimulation
    return build(settings.environment, [Camera(**c) for c in settings.cameras], settings.randomise)


def require_offered(settings: Settings) -> None:
    """Refuse wrong terms, and what only robosuite's tasks have."""
    parse(settings.randomise)
    asked = "camera images" if settings.cameras else "domain randomisation" if settings.randomise else ""
    if asked and settings.simulator == "toy":
        raise UserError(f"the simulator 'toy' has no {asked}; choose one of robosuite's tasks")


def expert_for(settings: Settings) -> ExpertFactory:
    """The task's expert; a `UserError` where there is none."""
    key = "robosuite" if settings.simulator == "native" else settings.simulator, settings.environment
    if key not in EXPERTS:
        known = ", ".join(environment for _, environment in EXPERTS)
        raise UserError(
            f"there is no scripted expert for {settings.environment} yet (there is one for {known}); "
            "use robomimic's own demonstrations (v1.4.1) with data=FILE instead"
        )
    return EXPERTS[key]


class Recorder:
    """One worker: plays an episode from a seed and leaves it in the folder of parts."""

    def __init__(self, settings: Settings, parts: str) -> None:
        self._settings = settings
        self._parts = Path(parts)
        self._expert = expert_for(settings)
        self._manner = manner_of(settings.quality)
        self._simulation: Any = build_simulation(settings)

    def record(self, seed: int) -> Trial:
        """Play the episode of `seed`. Its expert, noise and mode are drawn from the seed, too."""
        first = self._simulation.reset(seed)
        rng = np.random.default_rng((0xDE05, seed))
        expert = self._expert(rng, getattr(self._simulation, "truth", first), self._manner)
        linger = int(rng.integers(*STEPS_AFTER_SUCCESS, endpoint=True))
        arrays, success = self._play(first, expert, ActionNoise(rng, self._deviations()), linger)
        arrays["model_file"] = np.array(self._simulation.model_xml())  # robosuite draws geometry for each episode
        trial = Trial(seed, expert.mode, success, len(arrays["actions"]))
        save_part(self._parts, trial, arrays if success else {})
        return trial

    def _deviations(self) -> np.ndarray:
        """(Da,) noise of each number of an action; none on the gripper, which only knows open and closed."""
        s, action = self._settings, self._simulation.action
        if action.meaning == "planar_delta":
            return self._manner.noise * np.full(2, s.position_noise)
        return self._manner.noise * np.tile([s.position_noise] * 3 + [s.rotation_noise] * 3 + [0.0], action.arms)

    def _play(
        self, seen: Observation, expert: Expert, noise: ActionNoise, linger: int
    ) -> tuple[dict[str, np.ndarray], bool]:
        """Until `linger` steps after the first success. Success means that it still holds at the end."""
        rows: dict[str, list[Any]] = {name: [] for name in ("actions", "rewards", "states", "successes")}
        observations, last, outcome = [self._with_images(seen)], self._settings.max_steps, None
        while len(rows["actions"]) < last:
            action = noise.perturb(expert.act(getattr(self._simulation, "truth", seen)))  # not noise and delay
            rows["states"].append(self._simulation.state())
            outcome = self._simulation.step(action)
            if outcome.diverged:
                break
            seen = outcome.observation
            observations.append(self._with_images(seen))
            rows["actions"].append(action)
            rows["rewards"].append(outcome.reward)
            if outcome.success and not any(rows["successes"]):
                last = min(last, len(rows["actions"]) + linger)
            rows["successes"].append(outcome.success)
        arrays = {name: np.array(values, dtype=np.float64) for name, values in rows.items()}
        for name in observations[0]:
            arrays[f"obs/{name}"] = np.stack([o[name] for o in observations])  # (T + 1, size); images (T + 1, H, W, 3)
        return arrays, outcome is not None and outcome.success and not outcome.diverged

    def _with_images(self, seen: Observation) -> Observation:
        """The observation, and what each camera sees now: (H, W, 3) uint8."""
        return {**seen, **self._simulation.images(self._simulation.view())} if self._settings.cameras else seen

    def env_args(self) -> dict[str, Any]:
        """robomimic's description of the environment."""
        return self._simulation.env_args()

    def close(self) -> None:
        self._simulation.close()


def record(
    settings: Settings, episodes: int, out: Path, *, parts: Path, workers: int,
    on_trial: Callable[[list[Trial]], None],
) -> list[Trial]:
    """Record until `episodes` succeed and write them to `out`. Goes on where a killed run of the same settings stopped.

    Args:
        parts: from `open_parts`; removed once `out` is in place.
        on_trial: called whenever episodes are done, with all trials so far in the order of their seeds.

    Returns:
        The trials that led to the file: up to and including the last success.
    """
    trials = {trial.seed: trial for trial in map(load_trial, sorted(parts.glob("*.npz")))}
    if settings.simulator == "native" and workers != 1:
        build_simulation(settings).close()  # compiles and builds what is missing once, not in every worker
    pool = make_pool(Recorder, [(settings, str(parts))] * min(cpu_count(workers), episodes), in_process=workers == 1)
    try:
        for _ in _try_seeds(pool, settings, episodes, trials):
            on_trial(sorted(trials.values(), key=lambda t: t.seed))
        pool.send(0, "env_args")
        env_args = pool.receive(0)
    finally:
        pool.close()
    used = _prefix(trials, settings.first_seed, episodes)
    kept = [trial for trial in used if trial.success]
    attrs = {"settings": json.dumps(asdict(settings)), "acceptance": json.dumps(acceptance(used))}
    attrs |= {RENDERING: json.dumps(settings.cameras)} if settings.cameras else {}
    write_demonstrations(out, (load_episode(parts, t) for t in kept), env_args, attrs)
    shutil.rmtree(parts)
    return used


def _try_seeds(pool: Any, settings: Settings, episodes: int, trials: dict[int, Trial]) -> Iterator[None]:
    """Give each free worker the next untried seed until the first seeds hold enough successes; fills `trials`."""
    seed, busy, idle = settings.first_seed, set(), set(range(pool.size))
    while len([t for t in _prefix(trials, settings.first_seed, episodes) if t.success]) < episodes:
        while idle:
            while seed in trials:
                seed += 1
            worker = idle.pop()
            pool.send(worker, "record", seed)
            busy.add(worker)
            seed += 1
        for worker in pool.ready():
            trial = pool.receive(worker)
            trials[trial.seed] = trial
            busy.discard(worker)
            idle.add(worker)
        _require_some_success(trials, settings)
        yield
    for worker in busy:  # what they are at is beyond the last seed needed
        pool.receive(worker)


def _require_some_success(trials: dict[int, Trial], settings: Settings) -> None:
    """Stop a recording that would never end."""
    if len(trials) >= 50 and not any(t.success for t in trials.values()):
        raise UserError(
            f"the expert failed {len(trials)} times in a row on {settings.environment}; use less noise "
            "(demos.position_noise, demos.rotation_noise) or more steps (demos.max_episode_steps)"
        )


def _prefix(trials: dict[int, Trial], first_seed: int, episodes: int) -> list[Trial]:
    """Trials of consecutive seeds from the first one, up to and including the n-th success."""
    used: list[Trial] = []
    wins = 0
    while wins < episodes and first_seed + len(used) in trials:
        used.append(trials[first_seed + len(used)])
        wins += used[-1].success
    return used


def acceptance(trials: list[Trial]) -> dict[str, dict[str, int]]:
    """By mode: how many were tried and how many kept. Discarding failures shifts the modes; this says by how much."""
    tried, kept = Counter(t.mode for t in trials), Counter(t.mode for t in trials if t.success)
    return {mode: {"tried": tried[mode], "kept": kept[mode]} for mode in sorted(tried)}


def open_parts(out: Path, settings: Settings, overwrite: bool) -> Path:
    """The folder of finished episodes beside `out`; refuses one that other settings made, unless told to overwrite."""
    parts = out.with_name(out.name + ".parts")
    if overwrite:
        shutil.rmtree(parts, ignore_errors=True)
    elif out.exists():
        raise UserError(f"{out} exists; choose another demos.out, or replace it by overwrite=true")
    about = parts / "settings.json"
    with explain_os_errors("reading", about):
        before = json.loads(about.read_text()) if about.exists() else None
    if before not in (None, asdict(settings)):
        changed = [name for name, value in asdict(settings).items() if before.get(name) != value]
        raise UserError(
            f"{parts} holds episodes of an unfinished recording with another {', '.join(changed)}; "
            "repeat its settings to go on with it, or start afresh by overwrite=true"
        )
    write_json(about, asdict(settings))
    return parts


def save_part(parts: Path, trial: Trial, arrays: dict[str, np.ndarray]) -> None:
    """One episode's arrays (none after a failure), whole or not at all."""
    with atomic_path(parts / f"{trial.seed:010d}.npz") as partial, open(partial, "wb") as file:
        np.savez(file, trial=np.array(json.dumps(asdict(trial))), **arrays)


def load_trial(path: Path) -> Trial:
    """How the episode in a part went."""
    with _open_part(path) as part:
        return Trial(**json.loads(str(part["trial"])))


def _open_part(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}); remove it and run the same command again") from error


def load_episode(parts: Path, trial: Trial) -> Episode:
    """A part as robomimic's layout wants it. Images are not stored a second time, one step later, under next_obs."""
    with _open_part(parts / f"{trial.seed:010d}.npz") as part:
        seen = {name[4:]: part[name] for name in part.files if name.startswith("obs/")}
        done = part["successes"].astype(np.int64)
        done[-1] = 1
        actions, rewards, states = part["actions"], part["rewards"], part["states"]
        model_file = str(part["model_file"])
    return Episode(
        obs={name: value[:-1] for name, value in seen.items()},
        actions=actions,
        rewards=rewards,
        dones=done,
        states=states,
        next_obs={name: value[1:] for name, value in seen.items() if value.dtype != np.uint8},
        model_file=model_file,
        attrs={"seed": trial.seed, "mode": trial.mode, "model_digest": hashlib.sha256(model_file.encode()).hexdigest()},
    )
