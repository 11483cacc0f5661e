"""Reading run folders for a report. Their content is untrusted: it is checked here, and escaped where it is written.

A finished run says what it is in `summary.json`; one that was killed, or still runs, is recognised by its metrics.
"""

from __future__ import annotations

import json
import math
import os
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .errors import UserError, explain_os_errors
from .statistics import Interval, paired_difference, wilson

COMMANDS = ("demos", "pretrain", "finetune", "evaluate")
FILM_NAME = re.compile(r"(?P<policy>.+)-(?P<seed>\d+)-(?P<outcome>success|failure)")  # as video.film names them
FILM_LIMIT = 24 * 2**20  # bytes of one film or filmstrip; a page of larger ones opens in no browser
HEADER_LIMIT = 16 * 2**20  # bytes of a checkpoint's header that we are willing to read


@dataclass(frozen=True)
class Film:
    """One filmed episode; either part may be missing."""

    policy: str
    seed: int
    success: bool
    mp4: bytes | None
    strip: bytes | None


@dataclass(frozen=True)
class Policy:
    """One evaluated policy: every seed's outcome."""

    role: str  # policy | baseline
    checkpoint: str
    digest: str
    seeds: list[int]
    success: list[bool]

    @property
    def rate(self) -> Interval:
        """Success rate with Wilson's 95 % interval."""
        return wilson(sum(self.success), len(self.success))


@dataclass
class Run:
    """What one run folder holds."""

    path: Path
    name: str
    command: str  # one of COMMANDS, or "" where nothing tells
    config: dict[str, Any]
    config_text: str
    summary: dict[str, Any]  # empty: unfinished
    metrics: list[dict[str, Any]]
    policies: dict[str, Policy] = field(default_factory=dict)
    films: list[Film] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was left out of the report, and why
    provenance: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether it came to its end."""
        return bool(self.summary)

    @property
    def seconds(self) -> float:
        """Wall-clock time so far; of a resumed run, since it was resumed."""
        last = self.metrics[-1] if self.metrics else {}
        return number(self.summary.get("seconds")) or number(last.get("seconds")) or 0.0

    @property
    def difference(self) -> Interval | None:
        """Success rate of the policy minus the baseline's, paired by seed."""
        policy, baseline = self.policies.get("policy"), self.policies.get("baseline")
        if policy is None or baseline is None or policy.seeds != baseline.seeds:
            return None
        return paired_difference(baseline.success, policy.success)

    def curve(self, name: str, x: str = "step", having: str = "") -> tuple[np.ndarray, np.ndarray]:
        """(n,) x and (n,) values of a metric; lines without it, and those where `having` is 0, are left out."""
        lines = [line for line in self.metrics if not having or number(line.get(having))]
        points = [(number(line.get(x)), number(line.get(name))) for line in lines]
        kept = [(a, b) for a, b in points if a is not None and b is not None]
        return np.array([a for a, _ in kept]), np.array([b for _, b in kept])

    def setting(self, dotted: str) -> Any:
        """An option of config.yaml, or None."""
        value: Any = self.config
        for part in dotted.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value


def number(value: Any) -> float | None:
    """A finite number, or None for anything else that JSON may hold."""
    if not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def read_runs(paths: list[Path]) -> list[Run]:
    """Every folder once, under the shortest names that tell them apart."""
    unique = list({path.resolve(): Path(os.path.abspath(path)) for path in paths}.values())
    depth = 1
    while len({p.parts[-depth:] for p in unique}) < len(unique):
        depth += 1
    return [read_run(path, "/".join(path.parts[-depth:])) for path in unique]


def read_run(path: Path, name: str) -> Run:
    """One run folder, checked."""
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give the run_dir of a `d2ppo` command")
    if not (path / "config.yaml").exists() and not (path / "summary.json").exists():
        raise UserError(f"{path} is no run folder (no config.yaml, no summary.json); give a run_dir of d2ppo")
    text, config = _config(path / "config.yaml")
    run = Run(path, name, "", config, text, _json(path / "summary.json"), _metrics(path / "metrics.jsonl"))
    run.policies = _policies(path / "evaluation.json")
    run.command = _command(run)
    run.films = _films(run)
    run.provenance = _provenance(path)
    return run


def _command(run: Run) -> str:
    said = run.summary.get("command")
    if said is None:
        keys = {key for line in run.metrics for key in line}
        marks = (("finetune", "rollout/"), ("pretrain", "train/"), ("demos", "tried"))
        found = [command for command, mark in marks if any(key.startswith(mark) for key in keys)]
        return found[0] if found else "evaluate" if run.policies else ""
    if said not in COMMANDS:
        raise UserError(f"{run.path} is a run of '{said}', not of {', '.join(COMMANDS)}; leave it out of the report")
    return said


def _read(path: Path) -> bytes:
    with explain_os_errors("reading", path):
        return path.read_bytes() if path.exists() else b""


def _damaged(path: Path, why: object) -> UserError:
    return UserError(f"{path} is damaged ({why}); copy it again, or leave this run out of the report")


def _json(path: Path) -> dict[str, Any]:
    content = _read(path)
    if not path.exists():
        return {}
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error) from error
    if not isinstance(value, dict) or not value:
        raise _damaged(path, "it holds no JSON object")
    return value


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last line cut off by a kill is left out, damage elsewhere is refused."""
    lines, result = _read(path).splitlines(), []
    for n, line in enumerate(lines):
        try:
            value = json.loads(line)
            if not isinstance(value, dict):
                raise ValueError("not a JSON object")
            result.append(value)
        except (ValueError, RecursionError) as error:
            if n + 1 < len(lines):
                raise _damaged(path, f"line {n + 1}: {error}") from error
    return result


def _config(path: Path) -> tuple[str, dict[str, Any]]:
    """The text, and the values as plain YAML: no interpolation, so that no file can read our environment."""
    try:
        text = _read(path).decode()
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError("aliases, which d2ppo never writes")
        value = yaml.safe_load(text) or {}
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise _damaged(path, " ".join(str(error).split())) from error
    if not isinstance(value, dict):
        raise _damaged(path, "it holds no settings")
    return text, value


def _policies(path: Path) -> dict[str, Policy]:
    """The outcomes that `d2ppo evaluate` wrote; rates and intervals are computed from them, not believed."""
    policies = {}
    for role, entry in _json(path).items():
        try:
            seeds, success = entry["seeds"], entry["success"]
            right = all(type(s) is int for s in seeds) and all(type(s) is bool for s in success)
            if not right or not seeds or len(seeds) != len(success):
                raise ValueError(f"'{role}' needs one outcome for each seed")
            policies[role] = Policy(role, str(entry["checkpoint"]), str(entry.get("digest", "")), seeds, success)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _damaged(path, error) from error
    return policies


def _films(run: Run) -> list[Film]:
    """Films by seed, the policies of one seed side by side. A file of another kind is left out, with a note."""
    found: dict[str, dict[str, bytes]] = {}
    for path in sorted((run.path / "videos").glob("*")) if (run.path / "videos").is_dir() else []:
        if path.suffix in (".mp4", ".png") and FILM_NAME.fullmatch(path.stem):
            content = _film_bytes(path)
            if content is None:
                kind = path.suffix[1:].upper()
                run.notes.append(f"videos/{path.name} is not shown: it is no whole {kind} file, or too large")
            else:
                found.setdefault(path.stem, {})[path.suffix] = content
    films = []
    for stem, parts in found.items():
        match = FILM_NAME.fullmatch(stem)
        assert match is not None
        success = match["outcome"] == "success"
        films.append(Film(match["policy"], int(match["seed"]), success, parts.get(".mp4"), parts.get(".png")))
    return sorted(films, key=lambda f: (f.seed, f.policy))


def _film_bytes(path: Path) -> bytes | None:
    """The file's bytes if they are what its name says: a link to something else must not end in the page."""
    if not path.is_file() or path.stat().st_size > FILM_LIMIT:
        return None
    content = _read(path)
    if path.suffix == ".png":
        return content if content.startswith(b"\x89PNG\r\n\x1a\n") and b"IEND" in content[-16:] else None
    return content if content[4:8] == b"ftyp" and b"moov" in content else None


def _provenance(path: Path) -> dict[str, Any]:
    """How the run's policy came to be, from the JSON header of its file; empty where there is none to read."""
    for name in ("policy.safetensors", "best.safetensors"):
        try:
            with open(path / name, "rb") as file:
                (size,) = struct.unpack("<Q", file.read(8))
                header = json.loads(file.read(size)) if size < HEADER_LIMIT else {}
            provenance = json.loads(header["__metadata__"]["d2ppo_spec"])["provenance"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error):
            continue  # the report does not depend on it
        if isinstance(provenance, dict):
            return provenance
    return {}
