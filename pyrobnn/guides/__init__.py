"""Posterior families, one file each."""

from pyrobnn.guides.base import Guide, Site
from pyrobnn.guides.map import Map
from pyrobnn.guides.mean_field import MeanField

__all__ = ["Guide", "Map", "MeanField", "Site"]
