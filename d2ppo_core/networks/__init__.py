"""Networks. Each names its taps: features that the dispersive loss may use, returned by the one forward pass."""
