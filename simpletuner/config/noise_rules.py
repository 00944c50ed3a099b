"""Rules between the options of noise, loss and rollout: pure functions, used by rules.py and the dataloader file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from simpletuner.config.noise_options import FlowOptions
from simpletuner.config.options import Options
from simpletuner.errors import Row


def _choices(flow: FlowOptions) -> dict[str, str]:
    """Every option that names a density, and which one."""
    asked = {
        "flow_density": flow.flow_density or "",
        "flow_use_uniform_schedule": "uniform" if flow.flow_use_uniform_schedule else "",
        "flow_use_beta_schedule": "beta" if flow.flow_use_beta_schedule else "",
        "flow_cubic_schedule_weights": "cubic" if flow.flow_cubic_schedule_weights else "",
        "flow_custom_timesteps": "custom" if flow.flow_custom_timesteps else "",
    }
    return {key: kind for key, kind in asked.items() if kind}


def density_of(flow: FlowOptions) -> str:
    """The density in force: logit_normal, uniform, beta, cubic, mode, cosmap or custom (listed timesteps)."""
    return next(iter(_choices(flow).values()), "logit_normal")


def noise_problems(options: Options) -> Iterator[Row]:
    """Rows (key, value, reason, remedy) about noise, loss and rollout."""
    yield from _density(options)
    yield from _loss(options)
    flow, rollout = options.flow, options.rollout
    if flow.mixflow_enabled and rollout.scheduled_sampling_max_step_offset:
        reason = "scheduled_sampling_max_step_offset walks samples for the same purpose, and would replace what it does"
        yield ("mixflow_enabled", True, reason, "remove one of the two")


def _density(options: Options) -> Iterator[Row]:
    flow = options.flow
    chosen, kind = _choices(flow), density_of(flow)
    if len(set(chosen.values())) > 1:
        first, *others = chosen
        reason = f"it asks for another density than {' and '.join(others)}"
        yield (first, getattr(flow, first), reason, "keep one of them")
        return
    if flow.flow_schedule_auto_shift and flow.flow_schedule_shift is not None:
        reason = "flow_schedule_auto_shift chooses the shift by picture size"
        yield ("flow_schedule_shift", flow.flow_schedule_shift, reason, "remove one of the two")
    for key, off in (("flow_sigmoid_scale", 1.0), ("flow_sigmoid_mean", 0.0)):
        if kind != "logit_normal" and getattr(flow, key) != off:
            reason = f"{next(iter(chosen))} has no sigmoid: only the logit-normal density has"
            yield (key, getattr(flow, key), reason, "remove one of the two")
    weights = flow.flow_cubic_schedule_weights
    if weights and sorted(weights) != list(weights):
        reason = "the four values must not decrease: the curve they draw is an inverse distribution function"
        yield ("flow_cubic_schedule_weights", list(weights), reason, "for example [0, 0.2, 0.8, 1]")
    if flow.timestep_bias_strategy == "range" and flow.timestep_bias_begin >= flow.timestep_bias_end:
        reason = f"it must lie below timestep_bias_end, which is {flow.timestep_bias_end}"
        yield ("timestep_bias_begin", flow.timestep_bias_begin, reason, "give the smaller timestep first")
    if kind == "custom":
        yield from _custom(flow)


def _custom(flow: FlowOptions) -> Iterator[Row]:
    timesteps = flow.flow_custom_timesteps or ()
    if max(timesteps) <= 1 and max(timesteps) > 0:
        reason = "these look like sigmas from 0 to 1; timesteps go from 0 to 1000"
        yield ("flow_custom_timesteps", list(timesteps), reason, "multiply them by 1000")
    exact = "flow_custom_timesteps are trained exactly as they are written"
    if flow.flow_schedule_shift is not None:
        yield ("flow_schedule_shift", flow.flow_schedule_shift, exact, "remove one of the two")
    if flow.flow_schedule_auto_shift:
        yield ("flow_schedule_auto_shift", True, exact, "remove one of the two")
    if flow.timestep_bias_strategy != "none":
        remedy = "write a timestep several times to train it more often"
        yield ("timestep_bias_strategy", flow.timestep_bias_strategy, exact, remedy)
    if flow.flow_stratified_sampling and flow.flow_timesteps_mode == "round-robin":
        yield (
            "flow_stratified_sampling",
            True,
            "flow_timesteps_mode round-robin draws nothing",
            "remove one of the two",
        )


def _loss(options: Options) -> Iterator[Row]:
    loss = options.loss
    asked = [
        key
        for key, on in (
            ("weighting_scheme", loss.weighting_scheme != "none"),
            ("snr_gamma", loss.snr_gamma),
            ("use_soft_min_snr", loss.use_soft_min_snr),
        )
        if on
    ]
    if len(asked) > 1:
        reason = f"{' and '.join(asked[1:])} weighs by sigma too"
        yield (asked[0], getattr(loss, asked[0]), reason, "keep one of them")
    if loss.loss_type != "l2" and loss.huber_schedule != "constant" and loss.huber_c > 1:
        reason = f"huber_schedule {loss.huber_schedule} starts at 1 and falls to it"
        yield ("huber_c", loss.huber_c, reason, "set it to at most 1, or huber_schedule to constant")


def noise_without_effect(options: Options, where: Mapping[str, str]) -> Iterator[str]:
    """Sentences about options of noise, loss and rollout that are given but change nothing beside the others."""
    flow, loss, rollout = options.flow, options.loss, options.rollout
    kind, strategy = density_of(flow), flow.timestep_bias_strategy
    offset = rollout.scheduled_sampling_max_step_offset
    ramp = rollout.scheduled_sampling_ramp_steps
    rows = (
        ("flow_beta_schedule_alpha flow_beta_schedule_beta", kind == "beta", "flow_use_beta_schedule"),
        ("flow_mode_scale", kind == "mode", "flow_density mode"),
        ("flow_timesteps_mode", kind == "custom", "flow_custom_timesteps"),
        ("timestep_bias_multiplier", strategy != "none", "timestep_bias_strategy"),
        ("timestep_bias_portion", strategy in ("earlier", "later"), "timestep_bias_strategy earlier or later"),
        ("timestep_bias_begin timestep_bias_end", strategy == "range", "timestep_bias_strategy range"),
        (
            "timestep_bias_strategy",
            strategy == "none" or flow.timestep_bias_multiplier != 1,
            "timestep_bias_multiplier",
        ),
        ("mixflow_gamma", flow.mixflow_enabled, "mixflow_enabled"),
        ("noise_offset noise_offset_probability", flow.offset_noise, "offset_noise"),
        ("input_perturbation_steps", flow.input_perturbation > 0, "input_perturbation"),
        ("huber_c huber_schedule", loss.loss_type != "l2", "loss_type huber or smooth_l1"),
        ("soft_min_snr_sigma_data", loss.use_soft_min_snr, "use_soft_min_snr"),
        (
            "scheduled_sampling_probability scheduled_sampling_strategy scheduled_sampling_sampler "
            "scheduled_sampling_order scheduled_sampling_ramp_steps",
            offset > 0,
            "scheduled_sampling_max_step_offset",
        ),
        (
            "scheduled_sampling_prob_start scheduled_sampling_prob_end scheduled_sampling_start_step "
            "scheduled_sampling_ramp_shape",
            offset > 0 and ramp > 0,
            "scheduled_sampling_max_step_offset and scheduled_sampling_ramp_steps",
        ),
        (
            "scheduled_sampling_max_step_offset",
            offset == 0 or rollout.scheduled_sampling_probability > 0 or ramp > 0,
            "scheduled_sampling_probability or scheduled_sampling_ramp_steps",
        ),
    )
    for keys, acts, beside in rows:
        if not acts:
            yield from (f"{key}: it acts only with {beside}" for key in keys.split() if key in where)
    if "scheduled_sampling_order" in where and offset and rollout.scheduled_sampling_sampler == "euler":
        yield "scheduled_sampling_order: scheduled_sampling_sampler euler has order 1 only"
    if flow.flow_stratified_sampling and options.training.train_batch_size * options.processes.num_processes == 1:
        yield "flow_stratified_sampling: it spreads the pictures of a micro-batch, and train_batch_size is 1"
