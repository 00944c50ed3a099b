"""Where a key of the original program exists here and does something else, or has another default; and keys that are ours.

What the original does was read by running it (commit bc8e6ab77, August 2026) and is told in one sentence. The table in
docs/migrating.md is made of this by ``tools/make_docs.py``; tests say when a key here is no longer an option.
"""

from __future__ import annotations

from collections.abc import Mapping

# Options that the original program does not have.
OURS: frozenset[str] = frozenset(
    [
        "flow_density",
        "flow_sigmoid_mean",
        "flow_mode_scale",
        "flow_stratified_sampling",
        "weighting_scheme",
        "memory",
        "transformer_forward",
        "lr_decay_share",
        "eval_batch_size",
        "validation_batch_size",
        "validation_time_budget",
        "validation_preview_decoder",
        "dashboard",
        "dashboard_port",
        "report",
    ]
)

_SHIFT = "acts on training. The original resets it for Sana without a word, and trains with shift 1"
_FLOW = "acts. The original resets or ignores it for Sana"
_LOSS = "acts. Sana's loss in the original ignores it"

CHANGED: Mapping[str, str] = {
    "num_processes": "acts in config.json too; the original's command line reads it only as an argument",
    "model_flavour": "without one and without a path the 1.6B model at 1024 px is taken, not the 4.8B one; 4K is known too",
    "sana_complex_human_instruction": "default is the text that Sana was trained with (eight lines, with its last blank); "
    "the original has a longer one of its own. Changing it gives other text embeds, never stale ones",
    "tokenizer_max_length": "acts; the original always takes 300",
    "lora_type": "standard LoRA and DoRA work, which the original's guide calls unsupported for Sana",
    "lora_dropout": "default 0; the original's 0.1",
    "lycoris_config": "fractions of multiplier and alphas are kept (the original cuts them to whole numbers); unknown keys "
    "are problems; `FeedForward` is answered with `GLUMBConv`, Sana's own name",
    "peft_lora_target_modules": "`all` and `all-linear` are ours; what matches nothing stops the run",
    "init_lora": "the first pictures are those of the adapter",
    "mixed_precision": "weights follow the optimizer: bf16 only where it rounds stochastically or by Kahan sums, else float32 "
    "under autocast (the original trains bf16 weights with every one). `fp16` keeps float32 weights and works; `no` is "
    "float32 with every optimizer",
    "base_model_precision": "the feed-forward's 1x1 convolutions are quantised too: 97 % of the weights",
    "push_to_hub": "one commit; a failure never ends the run",
    "push_checkpoints_to_hub": "in a process of its own; of those that wait the newest goes next",
    "quantize_via": "`pipeline` is the same as `accelerator`",
    "gradient_checkpointing": 'the text `"false"` means false; the original drops it, and its default, true, applies',
    "vae_enable_tiling": "tiles of our own, without the strips and seams of diffusers'",
    "num_train_epochs": "no default: give it or `max_train_steps`. The original's default of 1 makes `max_train_steps` alone "
    "an error",
    "max_train_steps": "may stand alone",
    "learning_rate": "default 1e-5; the original's 4e-7",
    "lr_scheduler": "cosine, sine and cosine_with_restarts know the run's length and warm up; in the original they do neither. "
    "`wsd` is ours",
    "lr_warmup_steps": "is warm-up with every schedule; in the original it is the half period of cosine and sine",
    "optimizer": "default `optimi-adamw`; the original's `adamw_bf16`",
    "optimizer_config": "an argument that the class does not have is a problem",
    "max_grad_norm": "default 1; the original's 2",
    "grad_clip_method": "default `norm`, as all recipes for Sana; the original's `value` clamps each element",
    "seed": "default 42; 0 is a seed like others (the original takes the clock for it)",
    "use_ema": "float32 always; exported also for adapters",
    "ema_device": "default `accelerator`; the original's `cpu`",
    "flow_schedule_shift": f"{_SHIFT}. Default: the model's own, 3",
    "flow_schedule_auto_shift": f"{_SHIFT}. Together with `flow_schedule_shift` it is an error",
    "flow_use_uniform_schedule": _FLOW,
    "flow_use_beta_schedule": _FLOW,
    "flow_sigmoid_scale": f"{_FLOW} (it draws timesteps evenly). Default density: logit-normal(0, 1), the official recipe",
    "flow_custom_timesteps": _FLOW,
    "flow_cubic_schedule_weights": "the curve is the inverse distribution function",
    "loss_type": _LOSS,
    "huber_c": _LOSS,
    "huber_schedule": _LOSS,
    "snr_gamma": f"{_LOSS}. Here it is min-SNR for the velocity",
    "use_soft_min_snr": _LOSS,
    "timestep_bias_strategy": _LOSS,
    "offset_noise": "acts; the original has it for other kinds of models only",
    "scheduled_sampling_max_step_offset": "one grid of sigmas for the walk and its end (the original reads the end from an "
    "inverted table), in batches; ReflexFlow, which is on by itself there, is not",
    "scheduled_sampling_sampler": "acts; in the original it is unused for flow matching",
    "caption_dropout_probability": "a dropped caption is the empty text without the instruction, exactly validation's "
    "negative prompt; in the original it keeps the instruction",
    "aspect_bucket_alignment": "default the model's need, 32 px; the original always takes 64",
    "maximum_image_size": "is compared with the picture; the original shrinks every picture if both are set",
    "cache_dir_text": "default output_dir/cache/text; the original's a folder `cache`",
    "validation_prompt_library": "twenty prompts; the original's are 51",
    "validation_negative_prompt": "default empty; the original's names three flaws",
    "validation_guidance": "default 4.5, Sana's own; the original's 7.5",
    "validation_num_inference_steps": "default 20, Sana's own; the original's 30",
    "validation_resolution": "default 1024x1024; the original's 256. Pictures have exactly that size, as multiples of 32",
    "validation_noise_scheduler": "acts; the original ignores it for Sana",
    "validation_disable_unconditional": "default true: the empty prompt is drawn only if asked for",
    "validation_step_interval": "no default: pictures at start and end; the original's 100",
    "validation_on_startup": "default true, for the picture before and after",
    "validation_randomize": "each picture's seed is written down",
    "num_eval_images": "pictures of each dataset, default all; in the original batches, 4",
    "eval_timesteps": "default 5 (at which the figure is as telling); the original's 28",
    "eval_steps_interval": "the figure is fixed to the bit: no dropout, EMA weights beside live ones; in the "
    "original dropout acts, and measuring changes the schedule of the training that follows",
    "evaluation_type": "every picture is scored, not the last of each prompt; the model is loaded once",
    "validation_preview": "works for Sana, without a webhook too; the original has no tiny decoder for it",
    "validation_preview_steps": "default 5; the original's 1: one at every step makes a picture of the pocket take half as "
    "long again. n, 2n, … and the last step; the original also shows the first",
    "checkpoints_total_limit": "the best by held-out loss is kept beside the newest",
    "resume_from_checkpoint": "to the bit on a CPU; damaged checkpoints are passed over; another model, optimizer or "
    "precision is refused",
    "report_to": "default `tensorboard`, files alone; the original's is none",
    "tracker_run_name": "default: the name of output_dir",
    "webhook_reporting_interval": "acts: steps between two messages. In the original the command line ignores it",
    "webhook_config": "`allow_redirects` and `allow_private_addresses` are ours; addresses of cloud metadata are refused",
    "output_dir": "default output/models",
}

CHANGED_FIELDS: Mapping[str, str] = {
    "crop_style": "default `center`, also for the last pixels of a bucket; the original's is random, which loses heads. Faces "
    "are not looked for",
    "resolution": "buckets are the nearest sizes in steps of 32 px: no table of snapping sizes, no stretching",
    "instance_data_dir": "nothing is written into it; EXIF rotation, ICC profiles, CMYK, transparency and 16 bits are "
    "decoded right",
    "maximum_image_size": "is compared with the picture; the original shrinks every picture if both are set",
    "minimum_image_size": "skipped pictures are named",
    "caption_strategy": "`csv` and `webdataset` are strategies of their types; a picture without any caption is skipped and "
    "named",
    "timestep_sampling_offset": "acts; the original ignores it for Sana",
    "is_regularisation_data": "tested with LoRA and LoKr; with `full` it is said that it changes nothing",
    "vae_cache_clear_each_epoch": "acts for random crops and aspects",
    "repeats": "too few pictures are told before anything is loaded, with the one number to set",
    "conditioning_data": "one mask dataset",
}
