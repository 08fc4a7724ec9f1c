"""Which adapters a network has."""

from __future__ import annotations

import sys

import pytest
from torch import nn

import pyrobnn as pb
from pyrobnn.lora.adapters import adapter_parameters
from tests.lora.networks import adapted


def test_the_layers_of_adapters_in_their_order() -> None:
    net = adapted(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), target_modules=["0", "2"])
    assert pb.lora.adapters(net) == [f"base_model.model.{i}.lora_{f}.default" for i in (0, 2) for f in "AB"]


def test_the_second_of_two_adapters_is_the_active_one() -> None:
    peft = pytest.importorskip("peft", reason="peft")
    net = adapted(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), target_modules=["0"])
    net.add_adapter("other", peft.LoraConfig(r=1, target_modules=["1"]))
    net.set_adapter("other")
    assert pb.lora.adapters(net) == ["base_model.model.1.lora_A.other", "base_model.model.1.lora_B.other"]


def test_adapters_put_into_a_plain_network_and_on_a_convolution() -> None:
    peft = pytest.importorskip("peft", reason="peft")
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["0"]), net)
    shapes = {name: tuple(parameter.shape) for name, parameter in adapter_parameters(net).items()}
    assert shapes == {"0.lora_A.default.weight": (2, 3, 3, 3), "0.lora_B.default.weight": (4, 2, 1, 1)}


def test_another_method_of_peft_has_no_factors() -> None:
    peft = pytest.importorskip("peft", reason="peft")
    config = peft.IA3Config(target_modules=["0"], feedforward_modules=["0"])
    net = peft.get_peft_model(nn.Sequential(nn.Linear(3, 4)), config)
    with pytest.raises(ValueError, match="net: the PeftModel has no LoRA adapters"):
        pb.lora.adapters(net)


def test_without_peft_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"lora: it needs the package peft, .*pip install 'pyrobnn\[lora\]'"):
        pb.lora.adapters(nn.Linear(2, 2))
