"""Every kind of command of a study is composed once before anything runs: a typo is found now, not at night."""

from __future__ import annotations

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ..dispersive import DispersiveLoss
from ..errors import UserError
from ..hydra_command import CONF, explain
from .plan import Plan, Run


def check_commands(plan: Plan, runs: list[Run]) -> None:
    """Raise a `UserError` that names the first run whose settings do not fit together, or whose data is missing."""
    GlobalHydra.instance().clear()
    first: dict[tuple[str, ...], Run] = {}
    for run in runs:  # a factor is the same in every cell: one run of each task and factor, and of each cell
        first.setdefault(("factors", run.task, *run.cell.factors), run)
        first.setdefault(("cell", run.cell.name), run)
    chosen = list({run.name: run for run in first.values()}.values())
    with initialize_config_dir(CONF, version_base="1.3"):
        for run in chosen:
            data = plan.data_file(run)
            if not plan.dataset(run) and not data.exists():
                raise UserError(f"{run.task}: there are no demonstrations at {data}; correct `data` in the study")
            for stage in plan.stages(run):
                _compose(run, stage.name, list(stage.arguments[1:]))


def _compose(run: Run, stage: str, options: list[str]) -> None:
    quiet = [o for o in options if not o.startswith(("run_dir=", "data=", "checkpoint="))]  # paths with any signs
    try:
        config = OmegaConf.to_object(compose("config", quiet))
        DispersiveLoss(config.dispersive)
    except (HydraException, OmegaConfBaseException, UserError) as error:
        raise UserError(f"{stage} of {run.name} cannot be run: {explain(error)}; correct the study's file") from error
