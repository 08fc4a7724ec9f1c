"""Pyro model definitions of the literature, one file each, built on pyrobnn. Not part of the installed package."""
