"""Optimizers by name with the arguments that ``optimizer_config`` may set: plain words, so that checking imports nothing.

The arguments are those of the classes that training/optimizers.py builds; a contract test compares the two.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

OptimizerName = Literal[
    "optimi-adamw",
    "optimi-adam",
    "optimi-stableadamw",
    "optimi-lion",
    "optimi-radam",
    "optimi-ranger",
    "optimi-adan",
    "optimi-sgd",
    "adamw_bf16",
    "torch-adamw",
    "torch-adam",
    "torch-sgd",
    "torch-radam",
    "torch-nadam",
    "torch-rmsprop",
    "torch-adagrad",
    "torch-adadelta",
    "torch-adafactor",
    "torch-adamax",
    "torch-asgd",
    "muon",
    "soap",
    "came",
    "prodigy",
    "adamw_schedulefree",
    "radam_schedulefree",
    "ao-adamw8bit",
    "ao-adamw4bit",
    "bnb-adagrad",
    "bnb-adagrad8bit",
    "bnb-adam",
    "bnb-adam-paged",
    "bnb-adam8bit",
    "bnb-adam8bit-paged",
    "bnb-adamw",
    "bnb-adamw-paged",
    "bnb-adamw8bit",
    "bnb-adamw8bit-paged",
    "bnb-lion",
    "bnb-lion-paged",
    "bnb-lion8bit",
    "bnb-lion8bit-paged",
    "bnb-ademamix",
    "bnb-ademamix-paged",
    "bnb-ademamix8bit",
    "bnb-ademamix8bit-paged",
]

# These average by themselves and want a constant rate.
SCHEDULE_FREE = frozenset({"adamw_schedulefree", "radam_schedulefree"})
# One figure is estimated from all parameters together, so they cannot be stepped one by one.
GLOBAL_ESTIMATE = frozenset({"prodigy"})
# Rates in their own unit where the user is silent.
OWN_RATE: Mapping[str, float] = {"prodigy": 1.0}
# First word of an optimizer's name, last word of a quantiser's → (package to look for, extra that brings it).
PACKAGES: Mapping[str, tuple[str, str]] = {
    "bnb": ("bitsandbytes", "bnb"),
    **dict.fromkeys(("ao", "torchao"), ("torchao", "torchao")),
    "soap": ("pytorch_optimizer", "optimizers"),
    "came": ("pytorch_optimizer", "optimizers"),
}

_OPTIMI = "betas weight_decay eps decouple_lr max_lr kahan_sum foreach triton"
_ADAM = "betas eps weight_decay amsgrad foreach maximize"
_BNB = "betas eps weight_decay amsgrad min_8bit_size"
_MIX = "betas alpha t_alpha t_beta3 eps weight_decay min_8bit_size"
_AO = "betas eps weight_decay amsgrad block_size bf16_stochastic_round"
_FREE = "betas eps weight_decay r weight_lr_power foreach"
_ADAGRAD = "lr_decay weight_decay initial_accumulator_value eps"
_BY_NAME: Mapping[str, str] = {
    "optimi-adamw": _OPTIMI,
    "optimi-adam": _OPTIMI + " decouple_wd",
    "optimi-stableadamw": _OPTIMI,
    "optimi-lion": _OPTIMI.replace(" eps", ""),
    "optimi-radam": _OPTIMI + " decouple_wd",
    "optimi-ranger": _OPTIMI + " decouple_wd k alpha",
    "optimi-adan": _OPTIMI + " adam_wd",
    "optimi-sgd": "momentum weight_decay dampening decouple_wd decouple_lr max_lr torch_init kahan_sum foreach triton",
    "adamw_bf16": "betas eps weight_decay",
    "torch-adamw": _ADAM + " fused",
    "torch-adam": _ADAM + " fused decoupled_weight_decay",
    "torch-sgd": "momentum dampening weight_decay nesterov maximize foreach fused",
    "torch-radam": "betas eps weight_decay decoupled_weight_decay foreach maximize",
    "torch-nadam": "betas eps weight_decay momentum_decay decoupled_weight_decay foreach maximize",
    "torch-rmsprop": "alpha eps weight_decay momentum centered foreach maximize",
    "torch-adagrad": _ADAGRAD + " foreach maximize fused",
    "torch-adadelta": "rho eps weight_decay foreach maximize",
    "torch-adafactor": "beta2_decay eps d weight_decay foreach maximize",
    "torch-adamax": "betas eps weight_decay foreach maximize",
    "torch-asgd": "lambd alpha t0 weight_decay foreach maximize",
    "muon": "weight_decay momentum nesterov ns_coefficients eps ns_steps adjust_lr_fn betas adam_eps",
    "soap": "betas shampoo_beta weight_decay precondition_frequency max_precondition_dim merge_dims precondition_1d "
    "correct_bias normalize_gradient data_format eps maximize",
    "came": "betas weight_decay weight_decouple fixed_decay clip_threshold ams_bound eps1 eps2 maximize foreach",
    "prodigy": "betas beta3 eps weight_decay decouple use_bias_correction safeguard_warmup d0 d_coef growth_rate slice_p",
    "adamw_schedulefree": _FREE,
    "radam_schedulefree": _FREE + " silent_sgd_phase",
    "ao-adamw8bit": _AO,
    "ao-adamw4bit": _AO,
    "bnb-adagrad": _ADAGRAD + " min_8bit_size",
    "bnb-adam": _BNB,
    "bnb-adamw": _BNB,
    "bnb-lion": "betas weight_decay min_8bit_size",
    "bnb-ademamix": _MIX,
}
_FLAGS = frozenset(
    [
        "foreach",
        "maximize",
        "fused",
        "amsgrad",
        "nesterov",
        "centered",
        "decouple_lr",
        "decouple_wd",
        "decoupled_weight_decay",
        "triton",
        "kahan_sum",
        "adam_wd",
        "torch_init",
        "merge_dims",
        "precondition_1d",
        "correct_bias",
        "normalize_gradient",
        "weight_decouple",
        "fixed_decay",
        "ams_bound",
        "decouple",
        "use_bias_correction",
        "safeguard_warmup",
        "silent_sgd_phase",
        "bf16_stochastic_round",
    ]
)
_WHOLE = frozenset(
    [
        "k",
        "t_alpha",
        "t_beta3",
        "min_8bit_size",
        "ns_steps",
        "precondition_frequency",
        "max_precondition_dim",
        "slice_p",
        "block_size",
    ]
)
_WORDS = frozenset({"adjust_lr_fn", "data_format"})
_BETAS = ("betas", "beta1", "beta2", "beta3")
_SEVERAL = frozenset({"betas", "ns_coefficients"})
_NEGATIVE_TOO = frozenset({"beta2_decay", "ns_coefficients"})
_MAY_BE_NONE = frozenset(
    [
        "foreach",
        "fused",
        "triton",
        "kahan_sum",
        "max_lr",
        "shampoo_beta",
        "beta3",
        "t_alpha",
        "t_beta3",
        "adjust_lr_fn",
    ]
)
_THREE_BETAS = ("optimi-adan", "came", "bnb-ademamix")


class ArgumentsError(ValueError):
    """What is wrong with the arguments of an optimizer.

    Attributes:
        faults: For each of them the reason and what to do, "" where an example tells it best.
    """

    def __init__(self, faults: Sequence[tuple[str, str]]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(reason for reason, _ in faults))


def nearest_optimizer(name: str) -> str:
    """A remedy for a name that no optimizer has: the nearest ones, rather those that need no further package."""
    names, name = get_args(OptimizerName), name.lower()
    free = [known for known in names if known.partition("-")[0] not in PACKAGES]
    close = difflib.get_close_matches(name, names, n=1)
    close_free = difflib.get_close_matches(name, free, n=3, cutoff=0.5)
    if close and (not close_free or _likeness(name, close[0]) > _likeness(name, close_free[0]) + _FARTHER):
        close_free = close
    meant = " or ".join(filter(None, (", ".join(map(repr, close_free[:-1])), *map(repr, close_free[-1:]))))
    rest = sorted({known.partition("-")[0] + ("-…" if "-" in known else "") for known in names if known not in free})
    takes = f"It takes {', '.join(free)}; and with a further package {', '.join(rest)} (docs/optimizers.md)"
    return f"did you mean {meant}? {takes}" if meant else takes.replace("It takes", "use", 1)


_FARTHER = 0.2  # so much less alike may be a name that needs no further package


def _likeness(one: str, other: str) -> float:
    return difflib.SequenceMatcher(None, one, other).ratio()


def arguments(optimizer: str) -> list[str]:
    """Arguments of an optimizer; the learning rate is an option of its own."""
    name = optimizer.removesuffix("-paged")
    return _BY_NAME[name if name in _BY_NAME else name.removesuffix("8bit")].split()


def parse(optimizer: str, text: str, beta1: float | None = None, beta2: float | None = None) -> dict[str, Any]:
    """``eps=1e-6,betas=(0.9,0.95)`` → arguments of the optimizer's class.

    Args:
        optimizer: Its name.
        text: ``key=value`` pairs with commas between; values are numbers, true, false, none, words, or numbers in
            parentheses. beta1, beta2, beta3 may stand for betas.
        beta1: First beta where the text has none.
        beta2: Second beta where the text has none.

    Raises:
        ArgumentsError: Unknown arguments, or values that are not of their kind; with all of them.
    """
    known = arguments(optimizer)
    faults: list[tuple[str, str]] = []
    given: dict[str, Any] = {}
    betas: tuple[float, ...] = ()
    try:
        for entry in _split(text):
            key, sign, value = (part.strip() for part in entry.partition("="))
            if sign:
                given[key] = _value(value)
            else:
                faults.append((f"{entry!r} is not key=value", ""))
        betas = _betas(optimizer, given, beta1, beta2)
    except ValueError as error:
        faults.append((str(error), ""))
    for key, value in given.items():
        if key not in (*known, *_BETAS):  # betas that are wrong are told already
            faults.append(_unknown(optimizer, key, known))
        elif key in known:
            try:
                _check(optimizer, key, value)
            except ValueError as error:
                faults.append((str(error), ""))
    if given.get("fused") and given.get("foreach"):
        faults.append(("fused and foreach are two ways of doing the same", "keep one of them"))
    if faults:
        raise ArgumentsError(faults)
    return {**given, "betas": betas} if betas else given


def _split(text: str) -> list[str]:
    """Split at commas outside parentheses."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([") - (letter in ")]")
        if letter == "," and not depth:
            parts.append("")
        else:
            parts[-1] += letter
    if depth:
        raise ValueError(f"{text!r} has an open parenthesis")
    return [part.strip() for part in parts if part.strip()]


def _value(text: str) -> Any:
    if text[:1] in ("(", "["):
        return tuple(_value(part.strip()) for part in _split(text[1:-1]))
    plain: dict[str, Any] = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in plain:
        return plain[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


# Arguments that have an option of their own.
_OPTIONS = {
    "lr": "learning_rate",
    "gradient_release": "optimizer_release_gradients",
    "warmup_steps": "lr_warmup_steps",
}


def _unknown(optimizer: str, key: str, known: list[str]) -> tuple[str, str]:
    """Reason and remedy of an argument that is none."""
    if key in _OPTIONS:
        return f"{key!r} is set by {_OPTIONS[key]}", f"take it out, and set {_OPTIONS[key]}"
    close = difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{optimizer} has no argument {key!r}", f"{hint}It has: {', '.join(known)}"


def _betas(optimizer: str, given: dict[str, Any], beta1: float | None, beta2: float | None) -> tuple[float, ...]:
    """Take beta1 … beta3 out of ``given``; the betas they make, or () if there are none."""
    known = arguments(optimizer)
    named = {1: given.pop("beta1", beta1), 2: given.pop("beta2", beta2)}
    three = optimizer.startswith(_THREE_BETAS)
    if three:
        named[3] = given.pop("beta3", None)
    whole = given.get("betas")
    values = tuple(value for value in named.values() if value is not None)
    if whole is None and not values:
        return ()
    if "betas" not in known:
        raise ValueError(f"{optimizer} has no betas. It has: {', '.join(known)}")
    if whole is None:
        if named[1] is None or named[2] is None:
            raise ValueError("beta1 and beta2 go together")
        whole = values
    given.pop("betas", None)
    most = 3 if three else 2
    if not isinstance(whole, tuple) or not 2 <= len(whole) <= most:
        raise ValueError(f"betas must be {most} numbers in parentheses, such as ({', '.join(['0.9'] * most)})")
    for value in whole:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value < 1.0:
            raise ValueError(f"beta {value!r} is out of range: it must lie in [0, 1)")
    return whole


def _check(optimizer: str, key: str, value: Any) -> None:
    """Raise ValueError if the value is not of the argument's kind."""
    several = key in _SEVERAL or (optimizer, key) == ("torch-adafactor", "eps")
    if value is None and key in _MAY_BE_NONE:
        return
    if several:
        items = value if isinstance(value, tuple) else ()
        if not items or not all(v is None or _is_number(v) for v in items):
            raise ValueError(f"{key}={value} must be numbers in parentheses")
    elif key in _FLAGS:
        if not isinstance(value, bool):
            raise ValueError(f"{key}={value} must be true or false")
    elif key in _WORDS:
        if not isinstance(value, str):
            raise ValueError(f"{key}={value} must be a word")
    elif not _is_number(value) or (key in _WHOLE and not isinstance(value, int)):
        raise ValueError(f"{key}={value} must be a {'whole ' if key in _WHOLE else ''}number")
    elif value < 0 and key not in _NEGATIVE_TOO:
        raise ValueError(f"{key}={value} is out of range: it must be 0 or more")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
