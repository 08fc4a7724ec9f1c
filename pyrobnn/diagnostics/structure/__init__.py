"""The posterior over structure: its distribution, and the network of one structure."""
