"""The commands of this house. Each imports what it needs when it runs, so that `d2ppo --help` answers at once."""

from __future__ import annotations

from importlib import import_module

from .cli import Command
from .conf.schema import Config
from .hydra_command import hydra_command


def _later(module: str):
    def main(config: Config) -> None:
        import_module(module, __package__).main(config)

    return main


def _later_arguments(module: str):
    def run(arguments: list[str]) -> int:
        return import_module(module, __package__).main(arguments)

    return run


PRETRAIN = hydra_command(
    "pretrain",
    "demonstrations -> policy, with the dispersive loss",
    "d2ppo pretrain task=lift data=demos/lift.hdf5 dispersive=normalised dispersive.variant=infonce_l2 "
    "dispersive.layer=early seed=0",
    _later(".pretrain"),
)
FINETUNE = hydra_command(
    "finetune",
    "policy -> better policy, by PPO through the denoising chain in simulation",
    "d2ppo finetune checkpoint=runs/lift/policy.safetensors algorithm=dppo_ddim rollout.envs=32 run_dir=runs/lift-ppo",
    _later(".rl.finetune"),
)
EVALUATE = hydra_command(
    "evaluate",
    "success rate with its confidence interval, over a fixed list of seeds",
    "d2ppo evaluate checkpoint=runs/lift-ppo/policy.safetensors baseline=runs/lift/policy.safetensors",
    _later(".evaluate"),
)
REPORT = Command("one HTML page about one or more runs: success, curves, features, films", _later_arguments(".report"))
INSPECT = Command("what is in a checkpoint, a dataset or a run folder", _later_arguments(".inspect_file"))
DOCTOR = Command("what this machine can do: GPU, rendering, compiler, versions", _later_arguments(".doctor"))
BENCH = Command("how fast this machine learns, acts and simulates", _later_arguments(".bench"))
STUDY = Command(
    "many runs from one file, and one report about them",
    _later_arguments(".study.command"),
    "interrupted; the same command goes on",
)
