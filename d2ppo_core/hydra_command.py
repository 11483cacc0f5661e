"""A training command: Hydra's composition behind the dispatcher, with our help and our error messages."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.core_plugins.basic_launcher import BasicLauncherConf
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from .cli import Command
from .conf import schema
from .errors import UserError, choose, did_you_mean

CONF = str(Path(__file__).parent / "conf")
GROUPS = ("task", "policy", "dispersive", "algorithm", "randomise", "rollout", "experiment")
ConfigStore.instance().store(name="schema", node=schema.Config)
# Hydra's own launcher composes the jobs of a sweep also where Ray runs them (scale/sweep.py).
ConfigStore.instance().store(group="hydra/launcher", name="ray", node=BasicLauncherConf)


def hydra_command(name: str, summary: str, example: str, main: Callable[[schema.Config], Any]) -> Command:
    """Make `main(config)` a command of the dispatcher, with overrides, `-m` sweeps and `--help`."""

    def run(arguments: list[str]) -> int:
        if "--help" in arguments or "-h" in arguments:
            print(help_text(name, summary, example))
            return 0
        if flags := [a for a in arguments if a in ("-m", "--multirun")]:  # Hydra wants it before the overrides
            arguments = [flags[0], *(a for a in arguments if a not in flags)]
            if not any(a.startswith("run_dir=") for a in arguments):
                arguments.append(f"run_dir=runs/{name}-sweep")
        swept = {a.partition("=")[0] for a in arguments if re.search(r"=.*(,|range\(|choice\(|glob\()", a)}
        mistakes: list[UserError] = []
        for_ray: list[schema.Config] = []

        def job(config: Any) -> None:
            try:
                ready = typed(config, swept)
                for_ray.append(ready) if _on_ray() else main(ready)
            except UserError as error:  # raised below: inside, Hydra would print a heading of its own
                mistakes.append(error)

        os.environ["HYDRA_FULL_ERROR"] = "1"  # other exceptions reach us instead of being printed and lost
        sys.argv = [f"d2ppo {name}", *arguments]
        try:
            hydra.main(version_base="1.3", config_path=CONF, config_name="config")(job)()
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(f"{explain(error)} (`d2ppo {name} --help` lists every option)") from error
        if for_ray and not mistakes:
            from .scale.sweep import run_jobs

            mistakes += run_jobs(main, for_ray)
        if mistakes:
            raise mistakes[0]
        return 0

    return Command(summary, run, "interrupted; the same command with resume=true goes on")


def _on_ray() -> bool:
    """Whether this is a job of a sweep with hydra/launcher=ray."""
    hydra_config = HydraConfig.get()
    return _is_sweep(hydra_config) and hydra_config.runtime.choices["hydra/launcher"] == "ray"


def _is_sweep(hydra_config: Any) -> bool:
    return hydra_config.mode is not None and hydra_config.mode.name == "MULTIRUN"


def typed(config: Any, swept: set[str]) -> schema.Config:
    """The composed configuration as plain dataclasses; a job of a sweep gets a folder named by its swept options."""
    result = OmegaConf.to_object(config)
    if result.resume and result.overwrite:
        raise UserError("resume=true and overwrite=true exclude one another; give only one of them")
    hydra_config = HydraConfig.get()
    if _is_sweep(hydra_config):
        chosen = [o for o in hydra_config.overrides.task if o.partition("=")[0] in swept]
        result.run_dir = str(Path(result.run_dir) / (",".join(chosen).replace("/", "_") or str(hydra_config.job.num)))
    return result


def explain(error: Exception) -> str:
    """Hydra's complaint in one line, with its reason, and with the options that look like the one given."""
    text = " ".join(str(error).split()).split(" Config search path")[0].rstrip(".")
    if found := re.match(r"Could not override '([^']+)'", text):
        return f"there is no option '{found[1]}'" + did_you_mean(found[1], [*GROUPS, *_option_names(schema.Config())])
    if (found := re.search(r"Could not find '([^']+)/([^'/]+)'", text)) and (Path(CONF) / found[1]).is_dir():
        return f"there is no {found[1]}={found[2]}" + choose(found[2], _choices(found[1]))
    if isinstance(error.__cause__, OmegaConfBaseException):
        text += ": " + str(error.__cause__).splitlines()[0]
    return text[:1].lower() + text[1:]


def _option_names(value: Any, prefix: str = "") -> list[str]:
    """Every option as it is written on the command line."""
    names = []
    for f in dataclasses.fields(value):
        item = getattr(value, f.name)
        names += _option_names(item, f"{prefix}{f.name}.") if dataclasses.is_dataclass(item) else [prefix + f.name]
    return names


def help_text(name: str, summary: str, example: str) -> str:
    """Teach the command: what it does, an example, the groups to choose from, every option with its default."""
    config, lines = schema.Config(), []
    for field_name in schema.PARTS[name]:
        lines += _describe(field_name, getattr(config, field_name), _help_of(schema.Config, field_name))
    for field_name in ("seed", "device", "threads", "run_dir", "resume", "overwrite", "wandb"):
        lines += _describe(field_name, getattr(config, field_name), _help_of(schema.Config, field_name))
    groups = [f"  {group}={'|'.join(_choices(group))}" for group in GROUPS]
    return (
        f"d2ppo {name}: {summary}\n\nexample:\n  {example}\n\ngroups to choose from (files in conf/):\n"
        + "\n".join(groups)
        + "\n\noptions, as key=value (default in brackets):\n"
        + "\n".join(lines)
        + "\n\nSeveral runs: -m seed=0,1,2 (each gets its own folder under run_dir); side by side: hydra/launcher=ray."
        "\nShow the whole configuration without running: --cfg job"
    )


def _choices(group: str) -> list[str]:
    return sorted(str(p.relative_to(Path(CONF) / group).with_suffix("")) for p in (Path(CONF) / group).rglob("*.yaml"))


def _help_of(owner: Any, field_name: str) -> str:
    return next(f.metadata.get("help", "") for f in dataclasses.fields(owner) if f.name == field_name)


def _describe(name: str, value: Any, text: str) -> list[str]:
    """Lines for one option, or for each option of a section."""
    if dataclasses.is_dataclass(value):
        return [
            line
            for f in dataclasses.fields(value)
            for line in _describe(f"{name}.{f.name}", getattr(value, f.name), f.metadata.get("help", ""))
        ]
    shown = value.value if isinstance(value, Enum) else value
    return [f"  {name:<34} {text} [{'' if shown in ('', {}) else shown}]"]
