"""Stage 2: policy-gradient fine-tuning through the denoising chain (DPPO)."""
