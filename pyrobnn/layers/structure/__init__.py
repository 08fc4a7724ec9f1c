"""Choices, gates and depths inside a network, as one latent site each."""
