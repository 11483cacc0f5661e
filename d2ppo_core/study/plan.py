"""What a study consists of: cells, runs and datasets, and the commands of each stage."""

from __future__ import annotations

import fnmatch
import itertools
from dataclasses import dataclass
from pathlib import Path

from .schema import Study

DATASET_OPTIONS = ("demos.", "simulator", "randomise")  # a factor that sets one of these records its own demonstrations
EPISODES_APART = 10_000  # seeds between the demonstrations of two training seeds


@dataclass(frozen=True)
class Cell:
    """One treatment. `mode` "off" is no dispersion."""

    mode: str = "off"
    variant: str = ""
    layer: str = ""
    weight: float = 0.0
    factors: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """normalised-infonce_l2-early-0.1+anneal, or none"""
        parts = (self.mode, self.variant, self.layer, f"{self.weight:g}")
        return "+".join(["none" if self.mode == "off" else "-".join(parts), *self.factors])


@dataclass(frozen=True)
class Run:
    """One training seed of one cell on one task."""

    task: str
    cell: Cell
    seed: int
    finetuned: bool = False

    @property
    def name(self) -> str:
        """task/cell/seed=N: its folder in the study's."""
        return f"{self.task}/{self.cell.name}/seed={self.seed}"


@dataclass(frozen=True)
class Stage:
    """One command with a run folder of its own; it is done when that holds a summary."""

    name: str
    folder: Path
    arguments: tuple[str, ...]

    @property
    def done(self) -> bool:
        """Whether the command came to its end."""
        return (self.folder / "summary.json").exists()


class Plan:
    """All runs of a study, in the order in which they are started: seed by seed, so that a part of it is balanced."""

    def __init__(self, study: Study, file: Path, folder: Path) -> None:
        self.study, self.file, self.folder = study, file.absolute(), folder.absolute()
        self.runs = self._runs()

    def baseline(self, cell: Cell) -> Cell:
        """What a cell is compared with: no dispersion, and what its factors change besides the dispersive loss."""
        kept = [f for f in cell.factors if not all(o.startswith("dispersive.") for o in self.study.factors[f])]
        return Cell(factors=tuple(kept))

    def _runs(self) -> list[Run]:
        found: dict[tuple[str, str, int], Run] = {}
        for grid in self.study.grids.values():
            product = itertools.product(grid.modes, grid.variants, grid.layers, grid.weights)
            cells = [Cell(*values, grid.factors) for values in product]
            cells = [c for c in cells if (c.mode, c.variant) != ("paper", "covariance")]  # the paper has none
            for seed in grid.seeds or self.study.seeds:
                for task in grid.tasks or self.study.tasks:
                    for cell in [self.baseline(Cell(factors=grid.factors)), *cells]:
                        run = Run(task, cell, seed, self._is_finetuned(task, cell, seed))
                        found.setdefault((task, cell.name, seed), run)
        tasks, seeds = list(self.study.tasks), list(self.study.seeds)
        return sorted(found.values(), key=lambda r: (seeds.index(r.seed), tasks.index(r.task), r.cell.mode != "off"))

    def _is_finetuned(self, task: str, cell: Cell, seed: int) -> bool:
        f = self.study.finetune
        if f is None or task not in (f.tasks or self.study.tasks) or seed not in (f.seeds or self.study.seeds):
            return False
        return cell.name in f.cells or cell.name == "none"

    def chosen(self, pattern: str) -> list[Run]:
        """Runs whose name, or study/name, matches a pattern or lies below it."""
        return [r for r in self.runs if any(_below(n, pattern) for n in (r.name, f"{self.study.name}/{r.name}"))]

    # --- commands ---------------------------------------------------------------------------------------------------

    def dataset(self, run: Run) -> str:
        """The name of a run's recorded demonstrations, or "" where the study names a file."""
        if self.study.tasks[run.task].data:
            return ""
        own = [f for f in run.cell.factors if any(o.startswith(DATASET_OPTIONS) for o in self.study.factors[f])]
        seed = f"-seed={run.seed}" if self.study.demonstrations == "each_seed" else ""
        return "+".join([run.task, *own]) + seed

    def data_file(self, run: Run) -> Path:
        """The demonstrations of a run."""
        given = self.study.tasks[run.task].data
        return self.file.parent / given if given else self.folder / "demos" / f"{self.dataset(run)}.hdf5"

    def demos(self, run: Run) -> Stage:
        """How a run's demonstrations are recorded."""
        factors = [o for f in run.cell.factors for o in self.study.factors[f] if o.startswith(DATASET_OPTIONS)]
        position = self.study.seeds.index(run.seed) if self.study.demonstrations == "each_seed" else 0
        folder = self.folder / "demos" / self.dataset(run)
        options = [f"demos.out={quoted(self.data_file(run))}", f"demos.first_seed={EPISODES_APART * position}"]
        return Stage("demos", folder, ("demos", *self._common(run, 0), *factors, *options, *_where(folder)))

    def stages(self, run: Run) -> list[Stage]:
        """Pre-training and evaluation; fine-tuning and evaluation."""
        made = [
            self._stage(run, "pretrain", f"data={quoted(self.data_file(run))}", *_dispersive(run.cell), self._watch()),
            self._evaluation(run, "evaluate", "pretrain"),
        ]
        if run.finetuned and self.study.finetune is not None:
            start = self._checkpoint(run, "pretrain")
            made.append(self._stage(run, "finetune", start, *self.study.finetune.overrides))
            made.append(self._evaluation(run, "evaluate-finetuned", "finetune"))
        return made

    def _evaluation(self, run: Run, name: str, of: str) -> Stage:
        e, position = self.study.evaluation, self.study.seeds.index(run.seed)
        first = e.first_seed + e.episodes * position
        options = [f"evaluation.episodes={e.episodes}", f"evaluation.first_seed={first}"]
        return self._stage(run, name, self._checkpoint(run, of), *options)

    def _stage(self, run: Run, name: str, *options: str) -> Stage:
        folder = self.folder / "runs" / run.name / name
        factors = [o for f in run.cell.factors for o in self.study.factors[f]]
        command = name.partition("-")[0]
        return Stage(name, folder, (command, *self._common(run, run.seed), *factors, *options, *_where(folder)))

    def _checkpoint(self, run: Run, stage: str) -> str:
        return f"checkpoint={quoted(self.folder / 'runs' / run.name / stage / 'policy.safetensors')}"

    def _watch(self) -> str:
        """Every run logs the features of every layer that the study has, so that no dispersion can be compared."""
        layers = dict.fromkeys(layer for grid in self.study.grids.values() for layer in grid.layers if layer != "all")
        return f"dispersive.watch=[{','.join(layers)}]"

    def _common(self, run: Run, seed: int) -> list[str]:
        task = self.study.tasks[run.task]
        workers = [f"{part}.workers=1" for part in ("demos", "rollout", "evaluation")]
        chosen = f"task={task.task or run.task}"
        return [*self.study.overrides, chosen, *task.overrides, *workers, f"seed={seed}", "threads=1"]


def _where(folder: Path) -> tuple[str, str]:
    return f"run_dir={quoted(folder)}", "resume=true"


def quoted(path: Path) -> str:
    """A path as Hydra reads it, whatever signs are in it."""
    text = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _dispersive(cell: Cell) -> list[str]:
    if cell.mode == "off":
        return ["dispersive=off"]
    values = {"variant": cell.variant, "layer": cell.layer, "weight": f"{cell.weight:g}"}
    return [f"dispersive={cell.mode}", *(f"dispersive.{key}={value}" for key, value in values.items())]


def _below(name: str, pattern: str) -> bool:
    parts = name.split("/")
    return any(fnmatch.fnmatchcase("/".join(parts[:n]), pattern.rstrip("/")) for n in range(1, len(parts) + 1))
