"""lycoris_config in the original's format: what is written there is checked key by key. Pure functions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Any

from simpletuner.errors import Row

EXAMPLE = (
    '{"algo": "lokr", "multiplier": 1.0, "linear_dim": 10000, "linear_alpha": 1, "full_matrix": true, "factor": 16, '
    '"apply_preset": {"target_module": ["Attention", "GLUMBConv"]}}'
)
ALGORITHMS = ("lora", "locon", "loha", "lokr", "diag-oft", "boft", "glora")
_REFUSED_ALGORITHMS = {
    "full": ("it trains whole layers, and its file is as large as they are", "use model_type full"),
    "dylora": ("its ranks are drawn anew in every pass, so that a resumed run would be another one", "use lora"),
    "tlora": ("not yet: its rank follows the timestep", "use lokr or lora"),
    "ia3": ("the LyCORIS library cannot load its own ia3 files", "use lokr or lora"),
    "oft": ("the library calls it diag-oft", 'write "diag-oft"'),
}
_NUMBER, _WHOLE, _SWITCH = "a number", "a whole number", "true or false"
_KEYS: Mapping[str, tuple[str, float]] = {  # kind and least value
    "multiplier": (_NUMBER, 0.0),
    "linear_dim": (_WHOLE, 1),
    "linear_alpha": (_NUMBER, 0.0),
    "conv_dim": (_WHOLE, 1),
    "conv_alpha": (_NUMBER, 0.0),
    "factor": (_WHOLE, -1),
    "block_size": (_WHOLE, 1),
    "constraint": (_NUMBER, 0.0),
    "dropout": (_NUMBER, 0.0),
    "rank_dropout": (_NUMBER, 0.0),
    "module_dropout": (_NUMBER, 0.0),
    **{
        key: (_SWITCH, 0.0)
        for key in (
            *("full_matrix", "bypass_mode", "decompose_both", "unbalanced_factorization", "use_tucker", "use_scalar"),
            *("dora_wd", "wd_on_output", "rescaled", "rs_lora", "rank_dropout_scale"),
        )
    },
}
# Inside module_algo_map and name_algo_map the library has its own names, and would pass over others without a word.
_MAP_KEYS: Mapping[str, tuple[str, float]] = {
    "dim": (_WHOLE, 1),
    "alpha": (_NUMBER, 0.0),
    "weight_decompose": (_SWITCH, 0.0),
    "wd_on_out": (_SWITCH, 0.0),
    **{
        key: _KEYS[key]
        for key in (
            *("factor", "full_matrix", "bypass_mode", "decompose_both", "unbalanced_factorization", "use_tucker"),
            *("use_scalar", "block_size", "constraint", "rescaled", "rs_lora", "rank_dropout_scale"),
        )
    },
}
_MAP_SPELLINGS = {"linear_dim": "dim", "linear_alpha": "alpha", "dora_wd": "weight_decompose"}
_PRESET_LISTS = ("target_module", "target_name", "exclude_name")
_PRESET_MAPS = ("module_algo_map", "name_algo_map")
_PRESET_SWITCHES = ("enable_conv", "use_fnmatch")


def problems(config: Mapping[str, Any]) -> Iterator[Row]:
    """Everything wrong with a configuration, as (key, value, reason, remedy)."""
    if "algo" not in config:
        yield ("algo", "", "it is missing", f"one of {', '.join(ALGORITHMS)}")
    else:
        yield from _algorithm("algo", config["algo"])
    for key in ("multiplier", "linear_alpha", "linear_dim"):
        if key not in config and not (key == "linear_dim" and config.get("full_matrix") is True):
            yield (key, "", "it is missing", "for example 1.0" if key != "linear_dim" else "for example 16")
    for key, value in config.items():
        if key in ("algo", "apply_preset"):
            continue
        if key == "train_norm" and value:
            yield (key, value, "Sana's norms are not adapted", "leave it out")
        elif key != "train_norm":
            yield from _value(key, key, value, _KEYS)
    yield from _preset(config.get("apply_preset"))


def _algorithm(key: str, value: object) -> Iterator[Row]:
    if isinstance(value, str) and value in _REFUSED_ALGORITHMS:
        yield (key, value, *_REFUSED_ALGORITHMS[value])
    elif value not in ALGORITHMS:
        yield (key, value, "there is no such algorithm", f"one of {', '.join(ALGORITHMS)}")


def _value(where: str, key: str, value: object, known: Mapping[str, tuple[str, float]]) -> Iterator[Row]:
    if key not in known:
        spelling = _MAP_SPELLINGS.get(key) if known is _MAP_KEYS else None
        close = [spelling] if spelling in known else difflib.get_close_matches(key, known, n=1)
        yield (where, value, "it does nothing there", f"did you mean {close[0]!r}?" if close else "remove it")
        return
    kind, least = known[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = isinstance(value, bool) if kind == _SWITCH else is_number and (kind == _NUMBER or int(value) == value)  # type: ignore[call-overload]
    if not fits:
        yield (where, value, f"it must be {kind}", "")
    elif is_number and value < least:  # type: ignore[operator]
        yield (where, value, f"it must be at least {least:g}", "")
    elif key.endswith("dropout") and not value < 1:  # type: ignore[operator]
        yield (where, value, "it must be below 1", "")


def _preset(preset: object) -> Iterator[Row]:
    remedy = '"apply_preset": {"target_module": ["Attention", "GLUMBConv"]}'
    if not isinstance(preset, Mapping):
        yield ("apply_preset", preset, "it must say which layers are adapted", remedy)
        return
    if not any(preset.get(key) for key in ("target_module", "target_name", *_PRESET_MAPS)):
        yield ("apply_preset", dict(preset), "it names no layers", remedy)
    for key, value in preset.items():
        where = f"apply_preset.{key}"
        if key in _PRESET_LISTS:
            if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
                yield (where, value, "it must be a list of texts", "")
            elif key != "target_module" and not preset.get("use_fnmatch"):
                yield from _patterns(where, value)
        elif key in _PRESET_SWITCHES:
            if not isinstance(value, bool):
                yield (where, value, "it must be true or false", "")
        elif key in _PRESET_MAPS:
            yield from _map(where, value, key == "name_algo_map" and not preset.get("use_fnmatch"))
        else:
            names = (*_PRESET_LISTS, *_PRESET_MAPS, *_PRESET_SWITCHES)
            close = difflib.get_close_matches(key, names, n=1)
            yield (where, value, "it does nothing for Sana", f"did you mean {close[0]!r}?" if close else "remove it")


def _map(where: str, value: object, patterns: bool) -> Iterator[Row]:
    if not isinstance(value, Mapping) or not all(isinstance(entry, Mapping) for entry in value.values()):
        yield (where, value, "it must be an object of objects", '{"Attention": {"factor": 16}}')
        return
    if patterns:
        yield from _patterns(where, value)
    for name, entry in value.items():
        for key, item in entry.items():
            if key == "algo":
                yield from _algorithm(f"{where}.{name}.algo", item)
            else:
                yield from _value(f"{where}.{name}.{key}", key, item, _MAP_KEYS)


def _patterns(where: str, patterns: Any) -> Iterator[Row]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            yield (where, pattern, f"it is no regular expression: {error}", 'or set "use_fnmatch": true')


def notices(config: Mapping[str, Any]) -> list[str]:
    """Sentences about keys that do nothing beside the others."""
    lines = []
    if config.get("dropout") and not config.get("bypass_mode") and config.get("algo") != "diag-oft":
        lines.append(
            f"lycoris_config, dropout: {config.get('algo')} drops nothing unless bypass_mode is true; "
            "rank_dropout and module_dropout act"
        )
    if config.get("algo") != "lokr" and "lokr" not in str(config.get("apply_preset")):
        unused = [key for key in ("full_matrix", "factor", "decompose_both") if config.get(key)]
        lines += [f"lycoris_config, {key}: it acts with algo lokr only" for key in unused]
    return lines
