"""The folder of one run: resolved configuration, metrics, TensorBoard events, checkpoints, summary.

`metrics.jsonl` is append-only. A resume file remembers how many bytes of it were written; resuming cuts it back to
there, so that a killed and resumed run leaves the same lines as one that was not (apart from the `seconds` of each).
"""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from .conf.schema import Config
from .errors import UserError, explain_os_errors
from .files import write_json, write_text

RESUME_FILE = "resume.pt"
FREE = {"run_dir", "resume", "overwrite", "wandb", "cluster"}  # settings that may change when a run goes on
SHOWN = 3  # of the settings that may not
OURS = ("config.yaml", "metrics.jsonl", "summary.json", "evaluation.json", RESUME_FILE, "*.safetensors", ".*.partial",
        "tensorboard", "videos", "wandb")  # fmt: skip # what runs write: all that overwrite=true removes


class RunFolder:
    """Owns `config.run_dir`. Use as a context manager; `finish` writes `summary.json` and prints its path last."""

    def __init__(self, config: Config, command: str, resume_file: Path | None = None) -> None:
        """`resume_file`: elsewhere than in the folder, where several runs go on together."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        self.path = Path(config.run_dir or f"runs/{command}-{config.task.name}-{stamp}").absolute()
        self.command = command
        self.resume_file = resume_file or self.path / RESUME_FILE  # all that is needed to go on (`checkpoint`)
        self.resuming = config.resume and self.resume_file.exists()
        self._prepare(config)
        self._started = time.monotonic()
        self._writers: list[Any] | None = None
        self._project = config.wandb
        self._metrics = open(self.path / "metrics.jsonl", "ab" if self.resuming else "wb")  # noqa: SIM115, see __exit__

    def _prepare(self, config: Config) -> None:
        """Make the folder, or check that what is in it may be continued or replaced."""
        used = (self.path / "config.yaml").exists()
        text = OmegaConf.to_yaml(OmegaConf.structured(config))
        if used:
            self._require_ours()
        if used and config.overwrite:
            self._clear()
        elif used and config.resume:
            self._require_same(config)
            return
        elif used:
            raise UserError(
                f"{self.path} already holds a run; go on with it by resume=true, replace it by overwrite=true, "
                "or choose another run_dir"
            )
        with explain_os_errors("making the run folder", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        write_text(self.path / "config.yaml", text)

    def _require_ours(self) -> None:
        """Other programs have a config.yaml, too."""
        try:
            before = OmegaConf.to_container(OmegaConf.load(self.path / "config.yaml"))
        except (OSError, ValueError, YAMLError, OmegaConfBaseException):
            before = None
        if not isinstance(before, dict) or not {"run_dir", "task", "dispersive"} <= set(before):
            raise UserError(f"{self.path / 'config.yaml'} is not of a run of d2ppo; choose another run_dir")

    def _clear(self) -> None:
        """Remove an earlier run, and nothing that may lie beside it."""
        with explain_os_errors("removing the earlier run in", self.path):
            for path in [path for pattern in OURS for path in self.path.glob(pattern)]:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def _require_same(self, config: Config) -> None:
        """A resumed run must be the same run: only where it lives, who steps it and how it is watched may change."""
        usual, asked = (OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(c))) for c in (Config(), config))
        before = OmegaConf.to_container(OmegaConf.merge(usual, OmegaConf.load(self.path / "config.yaml")))
        now = OmegaConf.to_container(asked)
        before, now = ({k: v for k, v in of.items() if k not in FREE} for of in (before, now))  # type: ignore[union-attr]
        if changed := _changes(before, now):
            more = f" and {len(changed) - SHOWN} more" if len(changed) > SHOWN else ""
            raise UserError(
                f"{self.path} was started with other settings: {', '.join(changed[:SHOWN])}{more}; resume with the "
                "same settings (they are in its config.yaml) or choose another run_dir"
            )

    def saved(self) -> str:
        """What a run that cannot go on leaves behind, as a phrase: its newest policy and its resume file."""
        policies = sorted(self.path.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
        files = [*policies[-1:], *([self.resume_file] if self.resume_file.exists() else [])]
        return " and ".join(map(str, files)) or "nothing was saved yet"

    def position(self) -> dict[str, float]:
        """Bytes of metrics and seconds of work so far; a part of every resume file."""
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        return {"bytes": self._metrics.tell(), "seconds": self.seconds}

    def rewind(self, position: dict[str, float]) -> None:
        """Forget the lines written after the resume file was, and go on counting time from there."""
        self._metrics.truncate(int(position["bytes"]))
        self._metrics.seek(int(position["bytes"]))
        self._started = time.monotonic() - position["seconds"]

    @property
    def seconds(self) -> float:
        """Wall-clock time of this run, what was done before a resume included."""
        return time.monotonic() - self._started

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl and one point to each curve in TensorBoard (and W&B where asked)."""
        line = {"step": step, **metrics, "seconds": round(self.seconds, 3)}
        with explain_os_errors("writing", self.path / "metrics.jsonl"):
            self._metrics.write(json.dumps(line).encode() + b"\n")
            self._metrics.flush()
        for writer in self._open_writers(step):
            for name, value in metrics.items():
                if isinstance(value, (int, float)):
                    writer(name, value, step)

    def _open_writers(self, step: int) -> list[Any]:
        """TensorBoard and W&B, opened at the first line: `inspect` and `--help` need not wait for their import."""
        if self._writers is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)
            self._writers = [self._board.add_scalar]
            if self._project:
                self._writers.append(_wandb_writer(self._project, self.path))
        return self._writers

    def finish(self, summary: dict[str, Any]) -> Path:
        """Write `summary.json`; its path is the last line printed."""
        path = self.path / "summary.json"
        write_json(path, {"command": self.command, "seconds": round(self.seconds, 1), **summary})
        print(path, flush=True)
        return path

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self._metrics.close()
        if self._writers is not None:
            self._board.close()


def _changes(before: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two configurations, `name=value (was value)` each; workers change no result."""
    if not (isinstance(before, dict) and isinstance(now, dict)):
        return [] if before == now else [f"{name}={json.dumps(now)} (was {json.dumps(before)})"]
    keys = [key for key in now | before if key != "workers"]
    return [text for k in keys for text in _changes(before.get(k), now.get(k), f"{name}.{k}" if name else k)]


def _wandb_writer(project: str, path: Path) -> Any:
    try:
        import wandb
    except ImportError as error:
        raise UserError("wandb=... needs Weights & Biases; install the 'wandb' extra or leave it out") from error
    wandb.init(project=project, name=path.name, dir=str(path), resume="allow", id=path.name)
    return lambda name, value, step: wandb.log({name: value}, step=step)
