"""Optional packages that a run does not use are not imported by the libraries, and stay importable."""

import importlib.util
import subprocess
import sys

import pytest

CODE = """
import sys
from simpletuner.models.imports import libraries
libraries()
import diffusers, transformers
from diffusers import SanaPipeline
from transformers import Gemma2Config, Gemma2Model
Gemma2Model(Gemma2Config(num_hidden_layers=1, hidden_size=8, intermediate_size=8, num_attention_heads=1,
    num_key_value_heads=1, head_dim=8, vocab_size=8))
from diffusers import SanaTransformer2DModel
from simpletuner.models.adapters import LoraSettings, LycorisSettings, put_on
for settings in (LoraSettings(), LycorisSettings({"algo": "lokr", "apply_preset": {"target_module": ["Attention"]}})):
    put_on(SanaTransformer2DModel(num_layers=1, num_attention_heads=1, attention_head_dim=4, cross_attention_dim=4,
        num_cross_attention_heads=1, cross_attention_head_dim=4, caption_channels=4), settings, 0)
assert not {"bitsandbytes", "torchao"} & set(sys.modules)
import bitsandbytes
assert bitsandbytes.nn.Linear4bit
"""


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="nothing optional is installed")
def test_only_what_is_needed_is_imported() -> None:
    subprocess.run([sys.executable, "-c", CODE], check=True)


QUIET = """
import logging, torch
from simpletuner.models import quantize
from simpletuner.training import optimizers
for name in ("bnb-adamw8bit", "prodigy", "ao-adamw8bit"):
    optimizers.build(name, [torch.nn.Parameter(torch.ones(64, 64))], 1.0, {})
for name in ("nf4-bnb", "int8-torchao"):
    model = torch.nn.Sequential(torch.nn.Linear(64, 64))
    assert quantize.quantise(model, model, quantize.Settings(name, torch.device("cpu"), torch.float32)) > 0.9
assert logging.getLogger("torchao").level == logging.NOTSET
"""


@pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("bitsandbytes", "prodigyopt", "torchao")),
    reason="not all of the optional packages are installed",
)
def test_what_is_used_says_nothing_that_nobody_can_act_on() -> None:
    done = subprocess.run([sys.executable, "-c", QUIET], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("", "")
