"""Bayesian LoRA: posteriors over the adapters of a PEFT model, around one frozen base (extra ``lora``)."""

from pyrobnn.lora.adapters import adapters
from pyrobnn.lora.model import model
from pyrobnn.lora.next_tokens import next_tokens

__all__ = ["adapters", "model", "next_tokens"]
