"""The one typed configuration that every training command shares.

An experiment file is a whole recipe (demonstrations, pre-training, fine-tuning, evaluation); each command reads the
parts it needs. What ends in the checkpoint's contract (observation, action, network, sampler) is stated in the group
files in the contract's own fields and validated by `contract.py`; the rest is typed here. `help` texts are what
`d2ppo COMMAND --help` prints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


def option(default: Any, help: str) -> Any:
    """A dataclass field with its help text."""
    return field(default=default, metadata={"help": help})


def mapping(help: str) -> Any:
    """A dataclass field holding a dictionary that `contract.py` validates."""
    return field(default_factory=dict, metadata={"help": help})


class Ema(Enum):
    """When the averaged weights are updated."""

    step = "step"
    epoch = "epoch"


class Minibatch(Enum):
    """What a PPO minibatch draws: (chunk, denoising step) pairs, or chunks with all or some of their steps."""

    pair = "pair"
    chain = "chain"
    importance = "importance"


class Truncation(Enum):
    """What a time-out does to the advantage."""

    bootstrap = "bootstrap"
    leak = "leak"
    terminal = "terminal"


class Success(Enum):
    """When an episode counts as a success."""

    any_step = "any_step"
    full_chunk = "full_chunk"


@dataclass
class TaskConfig:
    name: str = option("", "name of the task, as written into checkpoints")
    simulator: str = option("native", "which installed simulator runs it: native or robosuite, or toy")
    environment: str = option("", "the simulator's own name of the task")
    max_episode_steps: int = option(300, "control steps after which an episode is truncated")
    observation: dict[str, Any] = mapping("what the policy sees (contract.ObservationSpec)")
    action: dict[str, Any] = mapping("what an action means (contract.ActionSpec)")


@dataclass
class PolicyConfig:
    horizon: int = option(4, "H, control steps predicted at once")
    executed: int = option(4, "Ta, control steps executed before the next prediction")
    network: dict[str, Any] = mapping("kind and sizes of the network (network_specs.NetworkSpec)")
    sampler: dict[str, Any] = mapping("how chunks come out of it (network_specs.SamplerSpec or GaussianSpec)")


@dataclass
class DispersiveConfig:
    mode: str = option(
        "normalised", "off | normalised (scale-free, has a gradient) | paper (Eq. 7-10) | release (as released)"
    )
    variant: str = option("infonce_l2", "infonce_l2 | infonce_cosine | hinge | covariance")
    layer: str = option(
        "early", "early | mid | late | all, or released_early|mid|late (the tensors the release hooked)"
    )
    weight: float = option(0.5, "lambda, the weight of the loss")
    temperature: float = option(0.5, "tau of the InfoNCE variants")
    margin: float = option(1.0, "epsilon of the hinge variant, on the (squared) distance of the mode")
    pairs: int = option(0, "rows of a batch whose mutual pairs are compared: fewer are cheaper; 0: all rows")
    anneal: bool = option(False, "lower lambda linearly to 0 over the training")
    shared_step: bool = option(
        False,
        "compare features of all rows at one denoising step, drawn for each batch, instead of each row's own: costs a "
        "second forward pass, and the logged statistics are of that step; policies that do not denoise: no effect",
    )
    differ: float = option(
        0.0, "repel only pairs whose action chunks differ by more than this quantile of the batch's pairs; 0: all pairs"
    )
    watch: list[str] = field(
        default_factory=list,
        metadata={"help": "layers whose feature statistics are logged besides, also with dispersive=off: [early,late]"},
    )


@dataclass
class ScheduleConfig:
    lr: float = option(1e-4, "learning rate after the warm-up")
    lr_min: float = option(1e-5, "learning rate at the end of a cosine cycle")
    warmup: int = option(
        0, "units (steps when pre-training, iterations when fine-tuning) of linear warm-up from lr_min"
    )
    cycle: int = option(0, "units of one cosine cycle, restarted when over; 0: the whole run")


@dataclass
class TrainConfig:
    steps: int = option(10_000, "gradient steps")
    epochs: int = option(0, "passes over the training windows; above 0 it replaces steps")
    batch: int = option(256, "windows in a gradient step")
    batching: str = option(
        "random",
        "random | trajectory (a batch is of as few episodes as fill it) | separated (windows of one episode in a batch "
        "lie as far apart in time as the data allow)",
    )
    optimiser: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(lr=1e-3, lr_min=1e-4))
    weight_decay: float = option(1e-6, "AdamW weight decay")
    ema_decay: float = option(0.995, "decay of the averaged weights")
    ema_start_epoch: int = option(20, "ema=epoch only: before this epoch the average is a plain copy")
    ema_every_epochs: int = option(10, "ema=epoch only: epochs between two updates of the average")
    pad_episode_ends: bool = option(True, "also train on the last windows of an episode, repeating its last action")
    holdout: float = option(0.1, "share of the episodes held out for validation")
    max_episodes: int = option(0, "use only the first n demonstrations; 0: all")
    flat_dimensions: str = option(
        "refuse", "refuse | centre: what to do with a dimension that never changes in the data"
    )
    observation_clip: float = option(5.0, "normalised observations are clamped to this; 0: not at all")
    log_every: int = option(50, "steps between two lines of metrics")
    validate_every: int = option(500, "steps between two validations; 0: only at the end")
    save_every: int = option(500, "steps between two resume files; 0: only at the end")
    keep_every: int = option(0, "steps between two numbered checkpoints that are kept; 0: only last and best")
    compile: bool = option(False, "torch.compile the loss: up to a minute at the start, then fewer, fused kernels")
    bf16: bool = option(False, "matrix products in bfloat16, weights in float32: for GPUs, and CPUs with avx512_bf16")


@dataclass
class RolloutConfig:
    envs: int = option(50, "N, environments stepped in parallel")
    chunks: int = option(300, "T, action chunks each environment takes in an iteration")
    workers: int = option(0, "processes (native: threads; Ray: actors) that step them; 0: one a core")
    max_episode_steps: int = option(0, "overrides the task's time limit; 0: the task's own")
    terminate_at_success: bool = option(False, "end an episode at its first success (else the reward keeps flowing)")
    randomise: bool = option(True, "apply the terms of domain randomisation, where there are any")
    reset_each_iteration: bool = option(True, "start new episodes at each iteration (else only after a resume file)")


@dataclass
class ClusterConfig:
    kind: str = option("local", "local | ray: where environments are stepped, as `rollout=` chooses")
    address: str = option(
        "", "Ray cluster to join: auto (the one this machine is in) or HOST:PORT; empty: one is started for the run"
    )
    losses: int = option(3, "times in a row that lost Ray actors are replaced before the run is given up")
    job_cpus: int = option(1, "hydra/launcher=ray: CPUs that a job reserves; with threads=0 also its threads")
    job_gpus: float = option(0.0, "hydra/launcher=ray: GPUs that a job reserves; 0.5: two share one; 0: none is seen")


@dataclass
class AlgorithmConfig:
    iterations: int = option(81, "rollout-and-update rounds")
    sampler: dict[str, Any] = mapping("what fine-tuning changes in the checkpoint's sampler (network_specs)")
    discount: float = option(0.999, "gamma, applied once for a chunk")
    gae_lambda: float = option(0.95, "lambda of the advantage estimate")
    denoising_discount: float = option(0.99, "gamma_denoise: the advantage of noisier steps is scaled down by it")
    epochs: int = option(10, "passes over a rollout")
    batch: int = option(7500, "minibatch size: pairs, or chunks with minibatch=chain and importance")
    micro_batch: int = option(0, "pairs whose gradients are added up at a time, to save memory; 0: the whole minibatch")
    augment: bool = option(True, "shift images at random, as in pre-training; policies without images: no effect")
    importance_steps: int = option(4, "minibatch=importance: denoising steps drawn for each chunk")
    importance_probability: str = option(
        "uniform", "minibatch=importance: uniform | discount (as gamma_denoise^k) | K' numbers, noisiest step first"
    )
    clip: float = option(0.01, "PPO clip of the last (cleanest) denoising step")
    clip_base: float = option(0.001, "PPO clip of the first fine-tuned (noisiest) step")
    clip_rate: float = option(3.0, "how the clip grows in between, exponentially")
    value_coef: float = option(0.5, "weight of the critic's loss")
    value_clip: float = option(0.0, "clip of the critic's change; 0: none")
    entropy_coef: float = option(0.0, "weight of the entropy bonus (constant for a diffusion policy with fixed eta)")
    bc_coef: float = option(0.0, "weight of the behaviour-cloning loss towards the frozen pre-trained policy")
    normalise_advantage: bool = option(True, "standardise advantages inside each minibatch")
    advantage_clip_low: float = option(0.0, "lower quantile to which a minibatch's advantages are clamped")
    advantage_clip_high: float = option(1.0, "upper quantile to which a minibatch's advantages are clamped")
    logprob_min: float = option(-5.0, "clamp of the log-probability of one number of a chunk")
    logprob_max: float = option(2.0, "clamp of the log-probability of one number of a chunk")
    reward_horizon: int = option(0, "chunk steps that count in the log-probability; 0: the executed ones")
    target_kl: float = option(1.0, "stop an iteration's update when the KL of whole chunks exceeds this; 0: never")
    kl_per: str = option(
        "chunk", "chunk (nats of a whole chunk, can trigger) | dimension (as released: mean, never does)"
    )
    max_grad_norm: float = option(0.0, "clip of the actor's gradient norm; 0: none")
    critic_warmup: int = option(1, "first iterations in which only the critic learns")
    critic_hidden: list[int] = field(
        default_factory=lambda: [256, 256, 256], metadata={"help": "critic's hidden layers"}
    )
    actor: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(lr=1e-4, lr_min=1e-4))
    critic: ScheduleConfig = field(default_factory=lambda: ScheduleConfig(lr=1e-3, lr_min=1e-3))
    reward_scaling: bool = option(True, "divide rewards by the running standard deviation of the discounted return")
    reward_const: float = option(1.0, "constant factor on rewards")
    sampling_std_final: float = option(-1.0, "anneal the exploration floor linearly to this; negative: keep it")
    finetuned_steps_drop: int = option(0, "lower K' by this many steps ...")
    finetuned_steps_every: int = option(0, "... every this many iterations; 0: never")
    evaluate_every: int = option(
        0, "iterations between two evaluations on the evaluation seeds; 0: only what the rollout shows"
    )
    save_every: int = option(1, "iterations between two resume files")
    keep_every: int = option(0, "iterations between two numbered checkpoints that are kept; 0: only last and best")


@dataclass
class EvaluationConfig:
    episodes: int = option(200, "how many episodes, one a seed")
    first_seed: int = option(
        1_000_000, "the seeds are first_seed, first_seed + 1, ...; training never draws from there"
    )
    envs: int = option(50, "episodes run in parallel")
    workers: int = option(0, "processes (native: threads; Ray: actors) that step them; 0: one a core")
    max_episode_steps: int = option(0, "overrides the task's time limit; 0: the task's own")
    success: Success = option(Success.any_step, "any_step | full_chunk (published: every step of some chunk)")
    weights: str = option("", "ema | raw: overrides which weights act; empty: what the checkpoint says")
    steps: int = option(0, "overrides the number of denoising steps (DDIM); 0: what the checkpoint says")
    stochastic: bool = option(False, "act with the exploration noise of training")
    randomise: bool = option(True, "apply the terms of domain randomisation, where there are any")
    video: int = option(0, "film the first n seeds (needs EGL or OSMesa)")


@dataclass
class DemosConfig:
    episodes: int = option(200, "demonstrations to keep; failures are discarded and counted")
    out: str = option("", "the HDF5 file; empty: demos/TASK.hdf5")
    workers: int = option(0, "processes; 0: one for each core")
    first_seed: int = option(0, "episodes start from seeds first_seed, first_seed + 1, ...")
    position_noise: float = option(0.1, "standard deviation of the expert's position noise, in action units")
    rotation_noise: float = option(0.05, "standard deviation of the expert's rotation noise, in action units")
    quality: str = option(
        "better",
        "better | okay | worse: as the groups of robomimic's multi-human data; okay and worse are slower, pause, take "
        "detours, close the fingers above the object now and then, and multiply both noises by 1.3 and 1.6",
    )
    max_episode_steps: int = option(0, "overrides the task's time limit; 0: the task's own")


@dataclass
class CameraPoseConfig:
    position: float = option(0.0, "m: each camera shifted by up to this along each axis of its mount")
    rotation: float = option(0.0, "degrees: each camera turned by up to this")


@dataclass
class LightConfig:
    position: float = option(0.0, "m: each lamp shifted by up to this along each axis")
    diffuse: float = option(0.0, "share: brightness of each lamp times 1 +- this")


@dataclass
class ColourConfig:
    rgb: float = option(0.0, "red, green and blue of each body shifted by up to this, of 1")
    geoms: list[str] = field(default_factory=list, metadata={"help": "only these; []: all that is seen but the robots"})


@dataclass
class FactorConfig:
    factor: float = option(1.0, "times a number between 1/factor and factor")


@dataclass
class ObservationNoiseConfig:
    eef_pos: float = option(0.0, "m: standard deviation of the hand's position")
    eef_quat: float = option(0.0, "standard deviation of each component of the hand's quaternion")
    gripper_qpos: float = option(0.0, "m: standard deviation of the fingers' positions")
    object: float = option(0.0, "standard deviation of each number of the object state")
    file: str = option("", "JSON file {key: [standard deviation, ...]} as measured, instead of the above for its keys")


@dataclass
class ActionNoiseConfig:
    std: float = option(0.0, "standard deviation of the noise on executed actions, whose range is -1 to 1")


@dataclass
class LatencyConfig:
    least: int = option(0, "control steps by which observations are late, at least")
    most: int = option(0, "control steps by which observations are late, at most; drawn for each episode")


@dataclass
class RandomiseConfig:
    camera: CameraPoseConfig = field(default_factory=CameraPoseConfig)
    light: LightConfig = field(default_factory=LightConfig)
    colour: ColourConfig = field(default_factory=ColourConfig)
    mass: FactorConfig = field(default_factory=FactorConfig)
    friction: FactorConfig = field(default_factory=FactorConfig)
    observation_noise: ObservationNoiseConfig = field(default_factory=ObservationNoiseConfig)
    action_noise: ActionNoiseConfig = field(default_factory=ActionNoiseConfig)
    latency: LatencyConfig = field(default_factory=LatencyConfig)


@dataclass
class Config:
    task: TaskConfig = field(default_factory=TaskConfig)
    policy: PolicyConfig = field(default_factory=PolicyConfig)
    dispersive: DispersiveConfig = field(default_factory=DispersiveConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    cluster: ClusterConfig = field(default_factory=ClusterConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    demos: DemosConfig = field(default_factory=DemosConfig)
    randomise: RandomiseConfig = field(default_factory=RandomiseConfig)
    simulator: str = option("", "native (compiled) | robosuite (the reference) | toy; empty: the task's own")
    data: str = option("", "robomimic HDF5 file with the demonstrations")
    checkpoint: str = option("", "policy.safetensors to fine-tune or evaluate")
    scratch: bool = option(False, "a fresh policy= instead of a checkpoint; data= then gives statistics only")
    baseline: str = option("", "a second policy evaluated on the same seeds, for the paired difference")
    limits: str = option(
        "",
        "sim (each number within +-1) | robot (besides, 0.25 m/s and 1 rad/s): limits of every action; a fine-tuned "
        "policy keeps them; empty: what the checkpoint says",
    )
    ema: Ema = option(Ema.step, "step | epoch (as released: every 10 epochs)")
    minibatch: Minibatch = option(Minibatch.pair, "pair | chain (as in the D2PPO release) | importance (D2PPO Eq. 14)")
    truncation: Truncation = option(Truncation.bootstrap, "bootstrap | leak (as released) | terminal")
    seed: int = option(0, "names every random draw of the run")
    seeds: list[int] = field(
        default_factory=list,
        metadata={"help": "train these seeds at once in one process, each into run_dir/seed=N; []: only `seed`"},
    )
    device: str = option("auto", "auto | cpu | cuda")
    threads: int = option(0, "CPU threads of torch; 0: one for each core. Exact repetition needs the same number")
    run_dir: str = option("", "folder of this run; empty: runs/COMMAND-TASK-TIME")
    resume: bool = option(False, "go on with the run in run_dir, bit for bit as if it had never stopped")
    overwrite: bool = option(False, "delete the run that is in run_dir first (and nothing else there)")
    wandb: str = option("", "project name: log to Weights & Biases too (needs the 'wandb' extra)")


PARTS: dict[str, tuple[str, ...]] = {
    "demos": ("task", "simulator", "demos", "randomise"),
    "pretrain": ("task", "data", "policy", "dispersive", "train", "ema", "seeds"),
    "finetune": (
        "task",
        "simulator",
        "checkpoint",
        "scratch",
        "policy",
        "data",
        "algorithm",
        "rollout",
        "cluster",
        "evaluation",
        "randomise",
        "limits",
        "minibatch",
        "truncation",
    ),
    "evaluate": ("simulator", "checkpoint", "baseline", "evaluation", "cluster", "randomise", "limits"),
}
"""Which parts of `Config` each command reads, besides seed, device, threads, run_dir, resume, overwrite, wandb."""
