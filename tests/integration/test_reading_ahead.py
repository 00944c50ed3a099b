"""The thread that reads ahead ends with the run, however the run ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from simpletuner.config.read import load
from simpletuner.errors import NonFiniteError
from simpletuner.training.run import train


def test_nothing_reads_ahead_of_a_run_that_has_diverged(pocket_run: Callable[..., Path]) -> None:
    config = load(str(pocket_run(learning_rate=1e30, max_train_steps=40, vae_cache_ondemand=True)))
    with pytest.raises(NonFiniteError) as caught:
        train(config)
    assert caught.tb, "holds the frames of the run, as the error's way up to the command line does"
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith(("loader", "decode"))]
