"""When not to answer: abstention with a guaranteed risk."""

from pyrobnn.detection.abstention import Abstention

__all__ = ["Abstention"]
