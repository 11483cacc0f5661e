"""Noise schedule, and the denoising chain as a sequence of Gaussians with log-probabilities."""
