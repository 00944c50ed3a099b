"""The model families by the name of ``model_family``. One more family is one more line."""

from __future__ import annotations

from simpletuner.models.base import Family
from simpletuner.models.sana.family import Sana

FAMILIES: dict[str, Family] = {"sana": Sana()}
