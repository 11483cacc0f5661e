"""The simulator house's commands. Importing this module imports neither robosuite nor MuJoCo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from d2ppo_core.conf.schema import Config
from d2ppo_core.errors import UserError
from d2ppo_core.hydra_command import hydra_command
from d2ppo_core.progress import ProgressBar
from d2ppo_core.randomise import randomisation
from d2ppo_core.runs import RunFolder
from d2ppo_core.tasks import observation_spec, require_task


def demos(config: Config) -> None:
    """Record demonstrations with the task's scripted expert."""
    from . import demos as recording

    task, options = require_task(config), config.demos
    if options.episodes < 1 or min(options.first_seed, options.position_noise, options.rotation_noise) < 0:
        raise UserError("demos.episodes must be at least 1; demos.first_seed and both noises must not be negative")
    settings = recording.Settings(
        simulator=task.simulator,
        environment=task.environment,
        first_seed=options.first_seed,
        position_noise=options.position_noise,
        rotation_noise=options.rotation_noise,
        max_steps=options.max_episode_steps or task.max_episode_steps,
        quality=options.quality,
        cameras=[camera.model_dump() for camera in observation_spec(task).cameras],
        randomise=randomisation(config.randomise),
    )
    recording.expert_for(settings)
    recording.require_offered(settings)
    recording.manner_of(settings.quality)
    out = Path(options.out or f"demos/{task.name}.hdf5").absolute()
    # Before the run folder: a command that is refused leaves nothing behind.
    parts = recording.open_parts(out, settings, config.overwrite)
    with RunFolder(config, "demos") as run:
        logged, bar = 0, ProgressBar(f"recording {task.name}", options.episodes)

        def on_trial(trials: list[Any]) -> None:
            nonlocal logged
            kept = min(sum(t.success for t in trials), options.episodes)
            bar.advance(kept - bar.done, f"tried {len(trials)}")
            if kept >= logged + 10 or kept == options.episodes > logged:
                logged = kept
                run.log(kept, {"kept": kept, "tried": len(trials)})

        with bar:
            used = recording.record(
                settings, options.episodes, out, parts=parts, workers=options.workers, on_trial=on_trial
            )
        accepted = recording.acceptance(used)
        _print_acceptance(accepted)
        steps = [t.steps for t in used if t.success]
        print(f"demonstrations: {out}")
        run.finish({
            "file": str(out),
            "kept": len(steps),
            "tried": len(used),
            "acceptance": accepted,
            "control_steps": sum(steps),
            "mean_steps": sum(steps) / len(steps),
        })


def _print_acceptance(accepted: dict[str, dict[str, int]]) -> None:
    """What share of each mode's episodes was kept: discarding failures shifts the data towards the easier modes."""
    table = Table("mode", "kept", "tried", "share")
    for mode, count in accepted.items():
        table.add_row(mode, str(count["kept"]), str(count["tried"]), f"{count['kept'] / count['tried']:.0%}")
    Console().print(table)


DEMOS = hydra_command(
    "demos",
    "record demonstrations with a scripted expert, as a robomimic HDF5 file",
    "d2ppo demos task=lift demos.episodes=60 demos.position_noise=0.3 demos.rotation_noise=0.15",
    demos,
)
