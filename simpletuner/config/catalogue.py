"""Keys of the original program that are not plain options here: satisfied, refused, or known by another name.

Satisfied: what the key is for is met another way; the run goes on and one line says how. Refused: the result would
differ from what was asked; the reason is given. A refused key set to its own off value counts as satisfied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

OFF: tuple[Any, ...] = (False, None, "", 0, 0.0, "none", "no", "false")


@dataclass(frozen=True, slots=True)
class Known:
    """One key.

    Attributes:
        status: ``satisfied`` or ``refused``.
        text: How it is met, or why it is refused and what to do.
        off: Values that ask for nothing.
    """

    status: str
    text: str
    off: tuple[Any, ...] = OFF


ALIASES: Mapping[str, str] = {
    "validation_steps": "validation_step_interval",
    "checkpointing_steps": "checkpoint_step_interval",
    "save_total_limit": "checkpoints_total_limit",
    "pretrained_transformer_model_name_or_path_subfolder": "pretrained_transformer_subfolder",
}


def _group(status: str, text: str, keys: str, off: tuple[Any, ...] = OFF) -> dict[str, Known]:
    return {key: Known(status, text, off) for key in keys.split()}


def _satisfied(text: str, keys: str) -> dict[str, Known]:
    """Satisfied keys; one that has its own default of the original program asks for nothing, and nothing is printed."""
    known = _group("satisfied", text, keys)
    return {key: replace(value, off=(*OFF, *defaults_of(key))) for key, value in known.items()}


# Defaults of the original program, written down by its wizard and its guides. A true one is not in the list: it asks
# for a property (compression, say), and one line tells how that is met.
_DEFAULTS: Mapping[str, Any] = {
    "max_workers": 32, "aspect_bucket_worker_count": 12, "torch_num_threads": 8, "read_batch_size": 25,
    "write_batch_size": 128, "image_processing_batch_size": 32, "text_encoder_batch_size": 1,
    "dataloader_prefetch_qlen": 10, "metadata_update_interval": 3600, "aspect_bucket_rounding": 2,
    "vae_cache_scan_behaviour": "recreate", "vae_dtype": "bf16", "validation_seed_source": "cpu",
    "disk_low_action": "stop", "sageattention_usage": "inference",
    "adam_beta1": 0.9, "adam_beta2": 0.999, "adam_weight_decay": 0.01, "adam_epsilon": 1e-8,
    "scheduled_sampling_reflexflow_alpha": 1, "scheduled_sampling_reflexflow_beta1": 10,
    "scheduled_sampling_reflexflow_beta2": 1,
}  # fmt: skip


def defaults_of(key: str) -> tuple[Any, ...]:
    """The original program's default of a satisfied key, if it has one that asks for nothing."""
    return (_DEFAULTS[key],) if key in _DEFAULTS else ()


def _not_yet(what: str, keys: str, off: tuple[Any, ...] = ()) -> dict[str, Known]:
    return _group("refused", f"not yet: {what}", keys, (*OFF, *off))


def _refused(reason: str, keys: str, off: tuple[Any, ...] = ()) -> dict[str, Known]:
    return _group("refused", reason, keys, (*OFF, *off))


_SATISFIED = {
    **_satisfied("caches are packed safetensors, trimmed to real tokens", "compress_disk_cache"),
    **_satisfied(
        "decoding, encoding and reading ahead overlap by themselves",
        "max_workers aspect_bucket_worker_count torch_num_threads read_batch_size write_batch_size "
        "image_processing_batch_size text_encoder_batch_size dataloader_prefetch dataloader_prefetch_qlen",
    ),
    **_satisfied("cache keys are content hashes; nothing is ever read stale", "hash_filenames vae_cache_scan_behaviour "
                 "preserve_data_backend_cache text_embed_full_cache override_dataset_config"),
    **_satisfied("looking at pictures reads headers only, and caches know what they hold", "skip_file_discovery"),
    **_satisfied("buckets are exact sizes; their names are not rounded", "aspect_bucket_rounding"),
    **_satisfied("no bucket metadata is kept beside the pictures", "metadata_update_interval"),
    **_satisfied("Sana's VAE always encodes in float32, which is more exact", "vae_dtype"),
    **_satisfied("every checkpoint is staged and renamed", "checkpointing_use_tempdir"),
    **_satisfied("damaged checkpoints are passed over, never deleted", "delete_invalid_checkpoints"),
    **_satisfied("runs end exactly at their last step or epoch", "strict_epoch_limit ignore_final_epochs"),
    **_satisfied("buckets are always on", "aspect_ratio_bucketing aspect_ratio_bucketing_precision"),
    **_satisfied("repeats are set for each dataset in the dataloader file", "repeats"),
    **_satisfied("the exported pipeline is complete, text encoder included", "save_text_encoder"),
    **_satisfied("the text encoder leaves the GPU before training, and the transformer comes after caching",
                 "offload_during_startup delete_model_after_load"),
    **_satisfied("the VAE stays on the GPU only where validation pictures are drawn", "keep_vae_loaded"),
    **_satisfied("saving needs no room on the GPU", "offload_during_save"),
    **_satisfied("noise is drawn from seed and position in the run, never from a device", "seed_for_each_device"),
    **_satisfied("EMA is always updated in float32", "ema_foreach_disable"),
    **_satisfied("adam_* acts with DeepSpeed only; use optimizer_config", "adam_beta1 adam_beta2 "
                 "adam_weight_decay adam_epsilon"),
    **_satisfied("validation noise is drawn on the CPU: the same pictures on every card", "validation_seed_source"),
    **_satisfied("machines find each other by main_process_ip", "same_network"),
    **_satisfied("the first process draws the pictures, and the others wait", "validation_multigpu"),
    **_satisfied("checkpoints are always uploaded in the background, and the run waits for its model's upload",
                 "push_to_hub_background"),
    **_satisfied("it acts only together with other options that are off",
                 "validation_image_quality checkpoints_rolling_total_limit "
                 "dynamo_mode sageattention_usage "
                 "scheduled_sampling_reflexflow_alpha "
                 "scheduled_sampling_reflexflow_beta1 scheduled_sampling_reflexflow_beta2 quantize_activations "
                 "disk_low_action disk_low_script "
                 "validation_guidance_real "
                 "conditioning_multidataset_sampling i_know_what_i_am_doing"),
}  # fmt: skip

_NOT_YET = {
    "vae_cache_preprocess": Known("refused", "its newer name is vae_cache_ondemand: set that to true", (True, "true")),
    **_not_yet("use checkpoint_step_interval", "checkpoint_epoch_interval"),
    **_not_yet("PNG is written", "validation_image_format", ("png",)),
    **_not_yet("ReflexFlow changes target and weighting of rolled-out samples; plain rollout works "
               "(scheduled_sampling_max_step_offset)", "scheduled_sampling_reflexflow"),
    **_not_yet("it comes with speed work", "fuse_qkv_projections dynamo_backend gradient_checkpointing_segment_stride "
               "gradient_checkpointing_offload_attention enable_group_offload ramtorch musubi_blocks_to_swap "
               "context_parallel_size", ("no", 1)),
    **_not_yet("plain recomputation works", "gradient_checkpointing_backend", ("torch",)),
    **_not_yet("every GPU holds the whole model (num_processes); base_model_precision, gradient_checkpointing and "
               "docs/low-memory.md make it small", "fsdp_enable deepspeed_config"),
    **_not_yet("accelerate's own settings are not read: set num_processes, or start with accelerate launch",
               "accelerate_config accelerate_extra_args"),
    **_not_yet("rolling checkpoints come later; checkpoints_total_limit works", "checkpointing_rolling_steps"),
    **_not_yet("scripts and disk guards come later", "disk_low_threshold post_checkpoint_script "
               "validation_external_script"),
    **_not_yet("pictures are drawn by this program", "validation_method", ("simpletuner-local",)),
}  # fmt: skip

_REFUSED = {
    **_refused("models are published on the hub (push_to_hub) and nowhere else; other places are for a script of yours "
               "over output_dir", "publishing_config"),
    **_refused("no script is run; a raw webhook (webhook_config) hears `training.status` with model_available",
               "post_upload_script"),
    **_refused("diffusers' settings for each part are not read; base_model_precision and text_encoder_1_precision act",
               "quantization_config"),
    **_refused("Sana's self-attention is linear, which no library of attention kernels computes, and its cross-attention is "
               "PyTorch's or a kernel of this program; leave it out",
               "attention_mechanism", ("diffusers",)),
    **_refused("pictures of the user are never deleted; skipped files are listed instead",
               "delete_problematic_images delete_unwanted_images"),
    **_refused("a missing file is always named; remove it from the dataset instead", "ignore_missing_files"),
    **_refused("Sana's text encoder is frozen; train the transformer alone", "train_text_encoder"),
    **_refused("use pretrained_model_name_or_path: the text encoder is part of the pipeline folder",
               "pretrained_gemma_model_name_or_path"),
    **_refused("use pretrained_model_name_or_path: Sana's own VAE is part of the pipeline folder",
               "pretrained_vae_model_name_or_path", ("madebyollin/sdxl-vae-fp16-fix",)),
    **_refused("flow-matching samplers have one spacing, that of sigmas; leave it out",
               "inference_scheduler_timestep_spacing"),
    **_refused("diffusers' SanaPipeline cannot rescale guidance, and pictures are drawn by it, so that anybody can draw "
               "them again; use a lower validation_guidance", "validation_guidance_rescale"),
    **_refused("it would start from pictures of the dataset (image to image), for which diffusers' Sana has no pipeline; "
               "prompts are drawn from noise", "validation_using_datasets"),
    **_refused("pictures are drawn by diffusers' own forward, to the bit as anybody draws them; "
               "validation_batch_size makes it faster", "validation_torch_compile"),
    **_refused("buckets that are too small are listed; use allow_dataset_oversubscription", "disable_bucket_pruning"),
    **_refused("only plain fine-tuning is done, from pictures and not from another model", "distillation_config"),
    **_refused("Sana has no ControlNet training here", "controlnet"),
    **_refused('each option in it is a key of its own here, such as "user_prompt_library": "config/user_prompt_library.json"',
               "TRAINER_EXTRA_ARGS"),
    **_refused("weights are used as the formula gives them (docs/noise.md); leave it out", "snr_weight", (1,)),
}  # fmt: skip

CATALOGUE: Mapping[str, Known] = {**_SATISFIED, **_NOT_YET, **_REFUSED}

FLAVOURS: Mapping[str, str] = {
    "sana1.0-1.6b-1024": "Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
    "sana1.0-1.6b-2048": "Efficient-Large-Model/Sana_1600M_2Kpx_BF16_diffusers",
    "sana1.0-1.6b-4096": "Efficient-Large-Model/Sana_1600M_4Kpx_BF16_diffusers",
    "sana1.0-600m-1024": "Efficient-Large-Model/Sana_600M_1024px_diffusers",
    "sana1.0-600m-512": "Efficient-Large-Model/Sana_600M_512px_diffusers",
    "sana1.5-1.6b-1024": "Efficient-Large-Model/SANA1.5_1.6B_1024px_diffusers",
    "sana1.5-4.8b-1024": "Efficient-Large-Model/SANA1.5_4.8B_1024px_diffusers",
}
DEFAULT_FLAVOUR = "sana1.0-1.6b-1024"

# Optimizer names that stay refused; those in optimizer_names.py work.
OTHER_OPTIMIZERS: Mapping[str, str] = {
    "adamw_schedulefree+aggressive": "its special settings are not known here; use adamw_schedulefree, with r and "
    "weight_lr_power in optimizer_config",
    "adamw_schedulefree+no_kahan": "the weights are kept in float32, where Kahan sums change nothing; use "
    "adamw_schedulefree",
    "torch-sparseadam": "it is for sparse gradients, and Sana has none; use torch-adam",
    "bnb-adagrad-paged": "bitsandbytes has no paged Adagrad; use bnb-adagrad8bit",
    "bnb-adagrad8bit-paged": "bitsandbytes has no paged Adagrad; use bnb-adagrad8bit",
    **{f"sdnq-{theirs}": f"SDNQ is not used here; use {ours}" for theirs, ours in {
        "adamw": "ao-adamw8bit", "adafactor": "torch-adafactor", "came": "came", "lion": "bnb-lion8bit", "muon": "muon",
    }.items()},
    "adamw8bit": "its newer name is bnb-adamw8bit",
    "adafactor": "its newer name is torch-adafactor",
    "dadaptation": "it was removed in favour of prodigy, which finds its rate the same way",
}  # fmt: skip


def _quantisers(reason: str, names: str) -> dict[str, str]:
    return {name: reason for name in names.split()}


_OTHER_PRECISIONS = {
    **_quantisers("optimum-quanto had its last release in March 2025: use int8-torchao", "int8-quanto"),
    **_quantisers("optimum-quanto had its last release in March 2025: use nf4-bnb", "int4-quanto"),
    **_quantisers("optimum-quanto had its last release in March 2025, and nothing else has 2 bits: use nf4-bnb, the "
                  "smallest there is", "int2-quanto"),
    **_quantisers("optimum-quanto had its last release in March 2025: use fp8wo-torchao", "fp8-quanto fp8uz-quanto"),
    **_quantisers("it needs the package mslk, with which this was never run: use nf4-bnb, which is as small",
                  "int4-torchao int8dq-int4-torchao fp8-int4-torchao"),
    **_quantisers("products in fp8 are fp8-torchao here, which needs compute capability 8.9; fp8wo-torchao needs none",
                  "fp8-native fp8-transformerengine"),
    **_quantisers("SDNQ is not used: use nf4-bnb, which is as small", "int4-sdnq uint4-sdnq int5-sdnq uint5-sdnq "
                  "int6-sdnq uint6-sdnq int3-sdnq uint3-sdnq int2-sdnq uint2-sdnq uint1-sdnq"),
    **_quantisers("SDNQ is not used: use int8-torchao", "int8-sdnq uint8-sdnq int7-sdnq uint7-sdnq int16-sdnq"),
    **_quantisers("SDNQ is not used: use fp8wo-torchao", "fp8-sdnq float8-sdnq fp16-sdnq"),
}  # fmt: skip
OTHER_VALUES: Mapping[str, Mapping[str, str]] = {
    "lora_type": {
        **{
            algo: f'{algo} is an algorithm of LyCORIS: set lora_type to lycoris, and "algo": "{algo}" in lycoris_config'
            for algo in ("lokr", "loha", "locon", "diag-oft", "boft", "glora")
        },
        "lora": "plain LoRA is standard: leave lora_type out",
        "dora": "DoRA is standard LoRA with use_dora: leave lora_type out, and set use_dora to true",
    },
    "lora_init_type": {
        "loftq": "LoftQ starts from the error of a quantised base, which it would have to be measured against: use pissa"
    },
    "mixed_precision": {
        "fp8": "products in fp8 are not trained here: use bf16; under an adapter, base_model_precision fp8-torchao or "
        "fp8wo-torchao keeps the frozen weights in fp8"
    },
    "base_model_precision": _OTHER_PRECISIONS,
    "text_encoder_1_precision": _OTHER_PRECISIONS,
    "optimizer": OTHER_OPTIMIZERS,
    "report_to": {
        "simpletuner": "it is the original program's own server: `simpletuner dashboard` shows a run here; leave it out",
        "custom-tracker": "code of yours is not loaded; a raw webhook (webhook_config) or metrics.jsonl feeds any tracker",
    },
    "validation_noise_scheduler": {
        **dict.fromkeys(
            ("ddim", "ddpm", "euler", "euler-a", "pndm", "lcm", "perflow"),
            "it is no sampler of flow matching: use flow_match, dpm++ or unipc, or leave it out for the model's own",
        ),
        "sana": "this name means the model's own sampler: leave validation_noise_scheduler out",
    },
    "weighting_scheme": {
        "logit_normal": "this names a density, not a weighting: it is the default one, leave weighting_scheme out",
        "mode": "this names a density, not a weighting: set flow_density to mode",
    },
    "caption_strategy": {
        kind: f"it belongs to a dataset of type {kind}: set it in that entry of the dataloader file"
        for kind in ("csv", "webdataset")
    },
}
