"""The part of the contract that says how a policy is built: its network, and how the network's output becomes a chunk.

Letters as in contract.py. `kind` chooses the class; every network may look at cameras through `vision`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from .frozen import Frozen, Positive

Activation = Literal["mish", "relu"]


class VisionSpec(Frozen):
    """The encoder of images (`networks.vision`): one small ViT for all cameras, a spatial embedding for each."""

    width: Positive = 128  # of a token
    depth: Positive = 1  # transformer layers
    heads: Positive = 4
    features: Positive = 128  # numbers for each camera
    shift: Annotated[int, Field(ge=0)] = 4  # pixels: random shift while training; 0: none


class MLPSpec(Frozen):
    """Sizes of a DiffusionMLP (`networks.mlp`)."""

    kind: Literal["diffusion_mlp"] = "diffusion_mlp"
    hidden: tuple[Positive, ...] = (512, 512, 512)
    time_size: Positive = 16
    condition_hidden: tuple[Positive, ...] = ()
    activation: Activation = "mish"
    layer_norm: bool = False
    residual: bool = True
    vision: VisionSpec | None = None


class UNetSpec(Frozen):
    """Sizes of a UNet1D over the chunk's time steps (`networks.unet`)."""

    kind: Literal["diffusion_unet"] = "diffusion_unet"
    width: Positive = 64  # channels of the first level
    multipliers: tuple[Positive, ...] = (1, 2)  # channels of each level over `width`
    time_size: Positive = 16
    kernel: Positive = 5
    groups: Positive = 8
    norm_epsilon: Annotated[float, Field(gt=0)] = 1e-5
    condition_hidden: tuple[Positive, ...] = ()
    vision: VisionSpec | None = None


class GaussianMLPSpec(Frozen):
    """Sizes of an MLP that gives the mean of a chunk (`networks.direct`)."""

    kind: Literal["gaussian_mlp"] = "gaussian_mlp"
    hidden: tuple[Positive, ...] = (512, 512, 512)
    condition_hidden: tuple[Positive, ...] = ()
    activation: Activation = "mish"
    layer_norm: bool = False
    residual: bool = True
    vision: VisionSpec | None = None


class GMMMLPSpec(Frozen):
    """Sizes of two MLPs that give the means and the weights of a mixture (`networks.direct`)."""

    kind: Literal["gmm_mlp"] = "gmm_mlp"
    modes: Positive = 5
    hidden: tuple[Positive, ...] = (512, 512, 512)
    condition_hidden: tuple[Positive, ...] = ()
    activation: Activation = "mish"
    layer_norm: bool = False
    residual: bool = True
    vision: VisionSpec | None = None


class GaussianTransformerSpec(Frozen):
    """Sizes of a transformer that gives the mean of a chunk (`networks.transformer`)."""

    kind: Literal["gaussian_transformer"] = "gaussian_transformer"
    width: Positive = 96
    depth: Positive = 4
    heads: Positive = 4
    vision: VisionSpec | None = None


class GMMTransformerSpec(Frozen):
    """Sizes of a transformer that gives the means and the weights of a mixture (`networks.transformer`)."""

    kind: Literal["gmm_transformer"] = "gmm_transformer"
    modes: Positive = 5
    width: Positive = 96
    depth: Positive = 4
    heads: Positive = 4
    vision: VisionSpec | None = None


NetworkSpec = Annotated[
    MLPSpec | UNetSpec | GaussianMLPSpec | GMMMLPSpec | GaussianTransformerSpec | GMMTransformerSpec,
    Field(discriminator="kind"),
]


class SamplerSpec(Frozen):
    """How a chunk is denoised (DPPO Sec. 4). Everything evaluation and the robot need; nothing is typed again."""

    kind: Literal["ddpm", "ddim"] = "ddpm"
    train_steps: Positive = 20  # K
    steps: Positive = 20  # S; equals K for DDPM, divides K for DDIM
    finetuned_steps: Annotated[int, Field(ge=0)] = 0  # K': the last K' of the S steps use the fine-tuned network
    eta: Annotated[float, Field(ge=0, le=1)] = 1.0  # DDIM noise while training; evaluation uses 0
    sample_clip: Annotated[float, Field(gt=0)] = 1.0  # clamp of the predicted clean action at every step
    noise_clip: Annotated[float, Field(gt=0)] = 3.0  # clamp of the standard normal noise of each step
    min_sampling_std: Annotated[float, Field(ge=0)] = 0.1  # floor of the exploration noise while training
    min_logprob_std: Annotated[float, Field(gt=0)] = 0.1  # floor of the standard deviation in log-probabilities

    @model_validator(mode="after")
    def _steps_fit(self) -> SamplerSpec:
        if self.kind == "ddpm" and self.steps != self.train_steps:
            raise ValueError(f"DDPM takes every step: steps is {self.steps}, train_steps is {self.train_steps}")
        if self.train_steps % self.steps:
            raise ValueError(f"DDIM steps must divide train_steps: {self.steps} does not divide {self.train_steps}")
        if self.finetuned_steps > self.steps:
            raise ValueError(f"finetuned_steps is {self.finetuned_steps}, more than the {self.steps} steps there are")
        return self


class GaussianSpec(Frozen):
    """How a chunk is drawn from a Gaussian or a mixture of them, in one step."""

    kind: Literal["gaussian", "gmm"] = "gaussian"
    std: Annotated[float, Field(gt=0)] = 0.1  # standard deviation of every number of a chunk, in model units
    learn_std: bool = False  # one for each action dimension is learned, starting from `std`
    std_min: Annotated[float, Field(gt=0)] = 0.01  # range of a learned one
    std_max: Annotated[float, Field(gt=0)] = 0.2
    noise_clip: Annotated[float, Field(gt=0)] = 3.0  # clamp of the standard normal noise

    @model_validator(mode="after")
    def _std_fits(self) -> GaussianSpec:
        if self.learn_std and not self.std_min <= self.std <= self.std_max:
            raise ValueError(
                f"a learned std starts inside [std_min, std_max]: {self.std} is not in [{self.std_min}, {self.std_max}]"
            )
        return self

    @property
    def steps(self) -> int:
        """S: one draw."""
        return 1

    @property
    def finetuned_steps(self) -> int:
        """K': the one draw is the trained network's."""
        return 1


AnySamplerSpec = Annotated[SamplerSpec | GaussianSpec, Field(discriminator="kind")]
