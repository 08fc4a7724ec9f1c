"""Distributions that Pyro does not have, or has in a slower form."""
