"""Configuration: typed schemas (`schema`) and the Hydra groups beside them."""
