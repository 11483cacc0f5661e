"""The file that states a study before it runs: question, primary comparison, layer rule, factors, seeds, budget."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import Field, model_validator

from ..dispersive import LAYERS, MODES, VARIANTS
from ..errors import UserError, explain_os_errors
from ..files import sha256
from ..frozen import Frozen, Positive
from ..tasks import validated

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.]+$")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Weight = Annotated[float, Field(gt=0)]
Text = Annotated[str, Field(min_length=1)]
OVERRIDE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=[^$]*")  # no additions, deletions or interpolations
CHOSEN = ("dispersive", "dispersive.mode", "dispersive.variant", "dispersive.layer", "dispersive.weight")
OWN = (  # what the runner itself decides
    *("seed", "seeds", "run_dir", "resume", "overwrite", "data", "checkpoint", "baseline", "threads", "scratch"),
    *("demos.out", "demos.first_seed", "demos.workers", "evaluation.first_seed", "evaluation.episodes"),
    *("evaluation.workers", "rollout.workers", "dispersive.watch", "task", *CHOSEN),
)


class Primary(Frozen):
    """The comparison that was stated before the runs: one paired test for each task."""

    cell: str
    statement: Text
    tasks: tuple[Name, ...] = ()  # (): all


class Budget(Frozen):
    """What the study was expected to cost, and where the estimate is from."""

    cpu_hours: Weight
    measured: Text


class Evaluation(Frozen):
    """Each training seed has its own block of episodes, the same for all cells: first_seed + episodes * position."""

    episodes: Positive = 100
    first_seed: Annotated[int, Field(ge=1_000_000, lt=2**31)] = 2_000_000


class Task(Frozen):
    """A task: where its demonstrations are from, and what its commands are told besides."""

    task: str = ""  # the group file; "": as the entry is called
    steps: Annotated[float, Field(gt=0)] | None = None  # mean length of published demonstrations: its difficulty
    data: str = ""  # robomimic file, relative to the study's file; "": recorded by `d2ppo demos`
    overrides: tuple[str, ...] = ()


class Grid(Frozen):
    """Cells: modes x variants x layers x weights, each with all of `factors`, compared with no dispersion."""

    modes: tuple[str, ...] = ("normalised",)
    variants: tuple[str, ...] = ("infonce_l2",)
    layers: tuple[str, ...]
    weights: tuple[Weight, ...]
    factors: tuple[Name, ...] = ()
    tasks: tuple[Name, ...] = ()  # (): all
    seeds: tuple[Seed, ...] = ()  # (): the study's

    @model_validator(mode="after")
    def _known(self) -> Grid:
        for name, values, allowed in (
            ("modes", self.modes, [m for m in MODES if m != "off"]),
            ("variants", self.variants, VARIANTS),
            ("layers", self.layers, LAYERS),
        ):
            if unknown := [v for v in values if v not in allowed]:
                raise ValueError(f"{name} has '{unknown[0]}'; choose from {', '.join(allowed)}")
        return self


class Finetune(Frozen):
    """Which cells are fine-tuned, too; no dispersion always is."""

    cells: tuple[str, ...]
    tasks: tuple[Name, ...] = ()  # (): all
    seeds: tuple[Seed, ...] = ()  # (): the study's
    overrides: tuple[str, ...] = ()


class Study(Frozen):
    """A whole study."""

    name: Name
    kind: Literal["primary", "exploratory"]
    question: Text
    layer_rule: Text
    budget: Budget
    primary: Primary | None = None
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    demonstrations: Literal["shared", "each_seed"] = "shared"
    evaluation: Evaluation = Evaluation()
    overrides: tuple[str, ...] = ()
    tasks: Annotated[dict[Name, Task], Field(min_length=1)]
    factors: dict[Name, tuple[str, ...]] = Field(default_factory=dict)
    grids: Annotated[dict[Name, Grid], Field(min_length=1)]
    finetune: Finetune | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Study:
        if (self.kind == "primary") != (self.primary is not None):
            raise ValueError("a study of kind primary, and no other, states `primary`")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds names a seed twice")
        parts = [*self.grids.values(), *filter(None, [self.finetune, self.primary])]
        for part in parts:
            _require(part.tasks, self.tasks, "task")
            _require(getattr(part, "seeds", ()), self.seeds, "seed")
            _require(getattr(part, "factors", ()), self.factors, "factor")
        extra = self.finetune.overrides if self.finetune else ()
        _check_overrides([*self.overrides, *extra, *(o for t in self.tasks.values() for o in t.overrides)])
        _check_overrides([o for overrides in self.factors.values() for o in overrides])
        return self


def _require(names: Iterable[object], known: Iterable[object], what: str) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"there is no {what} {name} in this study; it has {', '.join(map(str, known))}")


def _check_overrides(overrides: Iterable[str]) -> None:
    for override in overrides:
        key = override.partition("=")[0]
        if not OVERRIDE.fullmatch(override) or key.startswith("hydra"):
            raise ValueError(f"'{override}' is no plain option=value")
        if key in OWN:
            raise ValueError(f"'{override}' sets what the study itself decides; leave it out")


def read_study(path: str | Path) -> tuple[Study, str]:
    """The checked study of a YAML file, and the file's digest."""
    with explain_os_errors("reading", path):
        text = Path(path).read_text(encoding="utf-8")
    try:
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise UserError(f"{path} holds YAML aliases (*name); write the values out")
        values = yaml.safe_load(text)
        json.dumps(values, allow_nan=False)
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no readable YAML ({' '.join(str(error).split())}); correct it") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings; see docs/study.md for what a study's file says")
    return validated(Study, values, str(path)), sha256(path)


def difficulty(steps: float, easiest: float = 108, hardest: float = 529) -> float:
    """Log-normalised length of a task's demonstrations: Lift, 108 steps, is 0 and Transport, 529, is 1 (D2PPO)."""
    return math.log(steps / easiest) / math.log(hardest / easiest)
