"""Policies behind one interface: `loss` (behaviour cloning), `sample` and `log_prob` (fine-tuning, acting)."""
