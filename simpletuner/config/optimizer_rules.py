"""Rules between the options of optimizer, learning rate and EMA: pure functions, used by rules.py."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.util import find_spec

from simpletuner.config.optimizer_names import GLOBAL_ESTIMATE, OWN_RATE, PACKAGES, SCHEDULE_FREE, ArgumentsError
from simpletuner.config.options import Options
from simpletuner.errors import Row
from simpletuner.wording import counted, install


def optimizer_problems(options: Options) -> Iterator[Row]:
    """Rows (key, value, reason, remedy) about the optimizer and what goes with it."""
    training = options.training
    try:
        training.optimizer_arguments()
    except ArgumentsError as error:
        key = "optimizer_config" if training.optimizer_config else "optimizer_beta1"
        value = training.optimizer_config or training.optimizer_beta1
        for reason, remedy in error.faults:
            yield (key, value, reason, remedy or 'for example "beta1=0.9,beta2=0.99,weight_decay=0.01"')
    yield from _optimizer(options)
    yield from _released(options)


def optimizer_without_effect(options: Options, where: Mapping[str, str]) -> list[str]:
    """Sentences about options that are given but change nothing beside the others."""
    training = options.training
    lines = _idle_schedule(options, where) if training.optimizer in SCHEDULE_FREE else _idle_course(options, where)
    if training.gradient_precision == "fp32" and training.gradient_accumulation_steps < 3:
        lines.append("gradient_precision: a sum of fewer than three micro-batches is rounded once in any case")
    ema = [key for key in where if key.startswith("ema_")]
    if ema and not options.ema.use_ema:
        lines.append(f"{', '.join(ema)}: without use_ema there is no average")
    if training.optimizer == "adamw_bf16" and options.model.model_type == "lora":
        lines.append("Note: adapter weights are float32, where adamw_bf16 rounds nothing: it is plain AdamW")
    usual = OWN_RATE.get(training.optimizer)
    if usual is not None and training.peak_rate() != usual:
        rate = f"learning_rate {training.peak_rate():g}"
        lines.append(f"Note: {rate} multiplies {training.optimizer}'s own estimate; {usual:g} is usual")
    if training.max_train_steps:
        lines += long_warmup(options, training.max_train_steps)
    if "beta1=" in training.optimizer_config.replace(" ", "") and training.optimizer_beta1 is not None:
        lines.append("optimizer_beta1, optimizer_beta2: optimizer_config gives the betas")
    return lines


def _idle_schedule(options: Options, where: Mapping[str, str]) -> list[str]:
    name = options.training.optimizer
    idle = ["lr_scheduler", "lr_end", "lr_power", "lr_num_cycles", "lr_decay_share"]
    lines = [f"{key}: ignored, since {name} needs no schedule: its rate is constant" for key in idle if key in where]
    if name == "radam_schedulefree" and options.training.lr_warmup_steps:
        lines.append(f"lr_warmup_steps: ignored, since {name} warms up by itself")
    return lines


def long_warmup(options: Options, total: int) -> list[str]:
    """A sentence if a run of ``total`` optimizer steps ends before, or as, its warm-up does; else nothing."""
    training = options.training
    warmup = training.lr_warmup_steps
    idle = training.optimizer == "radam_schedulefree" or (
        training.lr_scheduler == "constant" and training.optimizer not in SCHEDULE_FREE
    )
    if idle or not warmup or warmup < total:
        return []
    return [
        f"Note: lr_warmup_steps {warmup} lasts as long as the run ({counted(total, 'step')}) or longer, so the learning rate is rising "
        "to the end: lower it, or train longer"
    ]


def _idle_course(options: Options, where: Mapping[str, str]) -> list[str]:
    training = options.training
    course, peak = training.lr_scheduler, training.peak_rate()
    lines = []
    if "lr_end" in where and course.startswith("constant"):
        lines.append(f"lr_end: ignored, since lr_scheduler {course} has no end value")
    elif "lr_end" in where and training.lr_end > peak:
        lines.append(f"lr_end: it is above learning_rate, so the rate ends at {peak:g}")
    for key, courses in _ACTS_WITH.items():
        if key in where and course not in courses:
            lines.append(f"{key}: ignored, since it acts only with lr_scheduler {' and '.join(courses)}")
    if "lr_warmup_steps" in where and course == "constant" and training.lr_warmup_steps:
        lines.append("lr_warmup_steps: ignored, since lr_scheduler constant does not warm up")
    return lines


_ACTS_WITH = {
    "lr_power": ("polynomial",),
    "lr_num_cycles": ("cosine_with_restarts", "sine"),
    "lr_decay_share": ("wsd",),
}


def _optimizer(options: Options) -> Iterator[Row]:
    name, precision = options.training.optimizer, options.precision.mixed_precision
    package, extra = PACKAGES.get(name.partition("-")[0], ("", ""))
    if package and find_spec(package) is None:
        yield ("optimizer", name, f"it needs the package {package}", install(extra))
    adapter = options.model.model_type == "lora"
    if adapter and options.training.layer_freeze_strategy != "none":
        reason = "an adapter freezes the whole model already, its biases and norms too"
        yield ("layer_freeze_strategy", "bitfit", reason, "remove it, or set model_type=full")
    if name == "adamw_bf16" and precision != "bf16" and not adapter:
        reason = f"it trains bf16 weights, and mixed_precision {precision} keeps them in float32"
        yield ("optimizer", name, reason, "use mixed_precision=bf16, or optimizer=torch-adamw")
    if name in SCHEDULE_FREE and options.ema.use_ema:
        yield ("use_ema", True, f"{name} is an average of the weights already", "remove use_ema, or use optimi-adamw")


def _released(options: Options) -> Iterator[Row]:
    """What cannot be had when weights are stepped inside backward."""
    training = options.training
    if not training.releases_gradients():
        return
    key = "optimizer_release_gradients" if training.optimizer_release_gradients else "fuse_optimizer"
    why = f"{key} frees gradients before all of them are there, so"
    if training.gradient_accumulation_steps > 1:
        value = training.gradient_accumulation_steps
        yield ("gradient_accumulation_steps", value, f"{why} micro-batches cannot be added up", "set it to 1")
    if training.grad_clip_method == "norm" and training.max_grad_norm:
        reason = f"{why} their global norm cannot be bounded to max_grad_norm {training.max_grad_norm:g}"
        yield ("grad_clip_method", "norm", reason, "set it to value, or max_grad_norm to 0")
    if options.precision.mixed_precision == "fp16":
        reason = f"{why} the fp16 scaler cannot look at all of them first"
        yield ("mixed_precision", "fp16", reason, "use bf16")
    if training.optimizer in GLOBAL_ESTIMATE:
        reason = f"{why} {training.optimizer} cannot estimate its rate from all parameters"
        yield ("optimizer", training.optimizer, reason, "use another optimizer, such as adamw_bf16")
