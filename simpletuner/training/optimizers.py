"""Room 8, Step: optimizers by the names users know.

A table from name to class, defaults and what a run must know about it. How states are saved: ``optimizer_state``.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from simpletuner.models import imports
from simpletuner.training.gradient_release import InParts
from simpletuner.training.matrix_views import MatrixViews
from simpletuner.training.optimizer_state import pack as pack
from simpletuner.training.optimizer_state import unpack as unpack
from simpletuner.training.seeds import mixed_seed


@dataclass(frozen=True, slots=True)
class OptimizerEntry:
    """One optimizer.

    Attributes:
        module: Import path, imported only when chosen.
        cls: Class name in it.
        defaults: Arguments where the user is silent; the others are the class's own.
        keeps_small_updates: Arguments that must not be off for small updates to survive in bf16 weights; None: they
            never do.
        fused: Accepts ``fused=True`` on CPU and GPU.
        seed: How it draws: ``argument``: it takes a seed. ``global``: from torch's global generator. "": not at all.
        schedule_free: It averages by itself: it wants a constant rate, and its weights for use differ from those it
            trains.
        per_parameter: Each parameter can be stepped alone.
        matrices: Weights of 1x1 convolutions are given to it as matrices.
        compiles: Its first step is compiled, but where it guards its steps itself.
        remark: What to know beside its arguments; printed with them.
    """

    module: str
    cls: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    keeps_small_updates: tuple[str, ...] | None = None
    fused: bool = False
    seed: str = ""
    schedule_free: bool = False
    per_parameter: bool = True
    matrices: bool = False
    compiles: bool = False
    remark: str = ""

    @property
    def low_precision_safe(self) -> bool:
        """Small updates survive in bf16 weights, by its defaults."""
        return self.keeps_small_updates is not None


def _optimi(cls: str, **defaults: Any) -> OptimizerEntry:
    return OptimizerEntry("optimi", cls, defaults, keeps_small_updates=("kahan_sum",))


def _torch(cls: str, fused: bool = False, **defaults: Any) -> OptimizerEntry:
    return OptimizerEntry("torch.optim", cls, defaults, fused=fused)


def _bnb(name: str, cls: str) -> dict[str, OptimizerEntry]:
    """The four bitsandbytes forms of one optimizer: 32 or 8 bits, states in GPU memory or paged out to the CPU's."""
    forms = {"": cls, "8bit": cls + "8bit", "-paged": "Paged" + cls, "8bit-paged": f"Paged{cls}8bit"}
    return {f"bnb-{name}{form}": OptimizerEntry("bitsandbytes.optim", c, {}) for form, c in forms.items()}


def _torchao(cls: str) -> OptimizerEntry:
    return OptimizerEntry(
        "torchao.optim",
        cls,
        {"bf16_stochastic_round": True},
        keeps_small_updates=("bf16_stochastic_round",),
        seed="global",
        compiles=True,
    )


_OURS = "simpletuner.training.library_adam"  # the libraries' classes, with a step that a GPU guards itself
_FREE = {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}

OPTIMIZERS: dict[str, OptimizerEntry] = {
    "optimi-adamw": replace(
        _optimi("AdamW", betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0), module=_OURS, cls="OptimiAdamW"
    ),
    "optimi-adam": _optimi("Adam", betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0),
    "optimi-stableadamw": _optimi("StableAdamW", betas=(0.9, 0.99), eps=1e-6, weight_decay=0.01),
    "optimi-lion": _optimi("Lion", betas=(0.9, 0.99), weight_decay=0.0),
    "optimi-radam": _optimi("RAdam", betas=(0.9, 0.99), eps=1e-6, weight_decay=0.0),
    # Its look-ahead copy is bf16 without Kahan sums and takes small updates back: measured, not one of 1000 was kept.
    "optimi-ranger": OptimizerEntry("optimi", "Ranger", {"betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.0}),
    "optimi-adan": _optimi("Adan", betas=(0.98, 0.92, 0.99), eps=1e-6, weight_decay=0.02, kahan_sum=None),
    "optimi-sgd": _optimi("SGD", momentum=0.0, weight_decay=0.0),
    "adamw_bf16": OptimizerEntry(
        "simpletuner.training.adamw_bf16",
        "AdamWBF16",
        {"betas": (0.9, 0.999), "eps": 1e-6, "weight_decay": 0.01},
        keeps_small_updates=(),
        seed="argument",
    ),
    "torch-adamw": replace(
        _torch("AdamW", fused=True, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01), module=_OURS, cls="TorchAdamW"
    ),
    "torch-adam": _torch("Adam", fused=True, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0),
    "torch-sgd": _torch("SGD", fused=True, momentum=0.0, weight_decay=0.0),
    "torch-radam": _torch("RAdam", betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0),
    "torch-nadam": _torch("NAdam", betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0),
    "torch-rmsprop": _torch("RMSprop", alpha=0.99, eps=1e-8, weight_decay=0.0),
    "torch-adagrad": _torch("Adagrad", eps=1e-10, weight_decay=0.0),
    "torch-adadelta": _torch("Adadelta", rho=0.9, eps=1e-6, weight_decay=0.0),
    "torch-adafactor": OptimizerEntry("torch.optim", "Adafactor", {"weight_decay": 0.0}, matrices=True),
    "torch-adamax": _torch("Adamax", betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0),
    "torch-asgd": _torch("ASGD", weight_decay=0.0),
    "muon": OptimizerEntry("simpletuner.training.muon", "Muon", {"momentum": 0.95, "weight_decay": 0.01}),
    "soap": OptimizerEntry(
        "pytorch_optimizer", "SOAP", {"betas": (0.95, 0.95), "eps": 1e-8, "weight_decay": 0.01}, matrices=True
    ),
    "came": OptimizerEntry(
        "pytorch_optimizer",
        "CAME",
        {"betas": (0.9, 0.999, 0.9999), "weight_decay": 0.0},
        matrices=True,
        remark="its first steps are ten to twenty times the rate, so it wants lr_warmup_steps",
    ),
    "prodigy": OptimizerEntry(
        "prodigyopt",
        "Prodigy",
        {"betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0},
        per_parameter=False,
    ),
    "adamw_schedulefree": OptimizerEntry("schedulefree", "AdamWScheduleFree", _FREE, schedule_free=True),
    "radam_schedulefree": OptimizerEntry("schedulefree", "RAdamScheduleFree", _FREE, schedule_free=True),
    "ao-adamw8bit": replace(
        _torchao("AdamW8bit"), module="simpletuner.training.adamw8bit", cls="AoAdamW8bit", seed="argument"
    ),
    "ao-adamw4bit": _torchao("AdamW4bit"),
    "bnb-adagrad": OptimizerEntry("bitsandbytes.optim", "Adagrad"),
    "bnb-adagrad8bit": OptimizerEntry("bitsandbytes.optim", "Adagrad8bit"),
    **_bnb("adam", "Adam"),
    **_bnb("adamw", "AdamW"),
    **_bnb("lion", "Lion"),
    **_bnb("ademamix", "AdEMAMix"),
}


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class, imported now."""
    entry = OPTIMIZERS[name]
    cls: type[torch.optim.Optimizer] = getattr(imports.quietly(entry.module), entry.cls)
    return cls


def low_precision_safe(name: str, overrides: Mapping[str, Any]) -> bool:
    """Whether small updates survive in bf16 weights with these arguments."""
    needed = OPTIMIZERS[name].keeps_small_updates
    return needed is not None and all(overrides.get(argument) is not False for argument in needed)


def build(
    name: str,
    parameters: Iterable[torch.nn.Parameter],
    lr: float,
    overrides: Mapping[str, Any],
    seed: int = 0,
    parts: Sequence[Sequence[torch.nn.Parameter]] | None = None,
) -> torch.optim.Optimizer:
    """Make the optimizer.

    Args:
        name: A key of ``OPTIMIZERS``.
        parameters: The trained parameters.
        lr: First learning rate; the loop sets it anew at each step.
        overrides: Arguments that replace the defaults.
        seed: For optimizers that round at random.
        parts: Of the parameters, for gradient release: makes an ``InParts`` over them, or parameter by parameter where the
            optimizer does not guard itself.

    Raises:
        ValueError: The class does not take a value.
    """
    parameters = list(parameters)
    if parts is not None:

        def one(index: int, members: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
            return build(name, members, lr, overrides, mixed_seed(seed, index))

        blocks = InParts(parts, one)
        return blocks if blocks.guards_itself else InParts([[p] for part in parts for p in part], one)
    entry = OPTIMIZERS[name]
    cls = optimizer_class(name)
    arguments = {**entry.defaults, **overrides}
    if entry.fused and not {"fused", "foreach"} & overrides.keys():
        arguments["fused"] = True
    if "triton" in inspect.signature(cls).parameters and not any(p.is_cuda for p in parameters):
        arguments["triton"] = (
            arguments.get("triton") or False
        )  # optimi's stableadamw asks for a GPU's driver, if Triton is there
    if "betas" in arguments:  # a third beta that was not given stays
        own = inspect.signature(cls).parameters["betas"].default
        arguments["betas"] = (*arguments["betas"], *own[len(arguments["betas"]) :])
    if entry.seed == "argument":
        arguments["seed"] = seed
    make: Any = cls
    optimizer: torch.optim.Optimizer
    with contextlib.redirect_stdout(io.StringIO()):  # prodigy prints its settings; describe says them
        if entry.matrices:
            optimizer = MatrixViews(parameters, lambda views: make(views, lr=lr, **arguments))
        else:
            optimizer = make(parameters, lr=lr, **arguments)
    if entry.compiles:  # torch wishes for a faster cache of that
        warnings.filterwarnings("ignore", message=".*_stable_hash_for_caching")
    if getattr(optimizer, "is_paged", False) and not any(p.is_cuda for p in parameters):
        optimizer.is_paged = False  # type: ignore[attr-defined]
    if entry.seed == "global":
        optimizer.register_step_pre_hook(lambda o, *_: _seed_global(o, seed))
    if entry.schedule_free:
        optimizer.train()  # type: ignore[attr-defined]
    return optimizer


def _seed_global(optimizer: torch.optim.Optimizer, seed: int) -> None:
    """Make what a step draws from torch's global generator a function of seed and step."""
    states = (state["step"] for state in optimizer.state.values() if "step" in state)
    torch.manual_seed(mixed_seed(seed, int(next(states, 0))))


def arguments_of(name: str, overrides: Mapping[str, Any]) -> set[str]:
    """Names of the arguments that the configuration decides, also on resume: those given and all others of the class.

    So an argument that was taken out of the configuration has its default again.
    """
    known = inspect.signature(optimizer_class(name)).parameters
    return {*known, *overrides, "lr", "fused", "beta1", "beta2", "beta3"}  # optimi splits the betas


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Put the rate into every group; torchao keeps it as a tensor."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def describe(name: str, optimizer: torch.optim.Optimizer) -> str:
    """The optimizer with the arguments in force, for the log; what is off or nothing is left out."""
    shown: dict[str, Any] = {}
    known = {*inspect.signature(optimizer_class(name)).parameters, "beta1", "beta2", "beta3"}
    for group in optimizer.param_groups[:2]:
        for key, value in group.items():
            if key in known and key not in ("params", "lr", "foreach") and value is not None and value is not False:
                shown.setdefault(key, value)
    listed = [f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in shown.items()]
    if name.endswith("-paged") and not getattr(optimizer, "is_paged", False):
        listed.append("not paged, as there is no GPU")
    if OPTIMIZERS[name].remark:
        listed.append(OPTIMIZERS[name].remark)
    guards = hasattr(optimizer, "guarded_step") or getattr(optimizer, "guards_itself", False)
    if OPTIMIZERS[name].compiles and not guards:
        listed.append("its first step is compiled, which takes up to a minute")
    return f"{name} ({', '.join(listed)})"


def averages(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the weights meant to be used are an average that the optimizer itself keeps (schedule-free)."""
    return hasattr(optimizer, "eval")


@contextlib.contextmanager
def evaluation_weights(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Inside, the model has the weights that are meant to be used; after, the trained ones again, bit for bit.

    They differ for schedule-free optimizers only: those take gradients at a point beside their average.
    """
    switch: Any = optimizer
    if not averages(optimizer):
        yield
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    kept = [p.detach().clone() for p in parameters]
    switch.eval()
    try:
        yield
    finally:
        switch.train()
        with torch.no_grad():  # going back by arithmetic would round
            torch._foreach_copy_([p.data for p in parameters], kept)


def settle(optimizer: torch.optim.Optimizer) -> None:
    """Leave the weights that are meant to be used in the model, for export: nothing is trained after this."""
    if averages(optimizer):
        switch: Any = optimizer
        switch.eval()
