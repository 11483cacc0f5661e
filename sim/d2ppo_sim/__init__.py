"""Simulators behind the VectorEnv protocol, scripted experts, and the commands that use them."""
