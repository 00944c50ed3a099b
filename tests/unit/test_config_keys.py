"""Every option and dataset field of the original program is in exactly one class: nothing is unknown by oversight."""

from typing import get_args

import pytest

from simpletuner.config.catalogue import ALIASES, CATALOGUE, OTHER_OPTIMIZERS, OTHER_VALUES, Known
from simpletuner.config.checking import is_off
from simpletuner.config.datasets import FIELD_ALIASES, FIELD_CATALOGUE, ImageDataset, TextEmbedsDataset
from simpletuner.config.optimizer_names import OptimizerName
from simpletuner.config.options import section_of, sections

OPTIONS = """
model_type model_family model_flavour pretrained_model_name_or_path pretrained_transformer_model_name_or_path
pretrained_transformer_subfolder pretrained_gemma_model_name_or_path pretrained_vae_model_name_or_path revision variant
vae_dtype mixed_precision base_model_precision text_encoder_1_precision quantize_via quantization_config
quantize_activations base_model_default_dtype attention_mechanism sageattention_usage fuse_qkv_projections
sana_complex_human_instruction tokenizer_max_length offload_during_startup gradient_checkpointing
gradient_checkpointing_interval gradient_checkpointing_segment_stride gradient_checkpointing_backend
gradient_checkpointing_offload_attention vae_enable_tiling vae_enable_slicing vae_batch_size vae_cache_ondemand
vae_cache_disable keep_vae_loaded delete_model_after_load enable_group_offload ramtorch musubi_blocks_to_swap
dynamo_backend dynamo_mode layer_freeze_strategy disable_tf32
num_train_epochs max_train_steps strict_epoch_limit train_batch_size gradient_accumulation_steps learning_rate lr_scale
lr_scale_sqrt lr_scheduler lr_warmup_steps lr_num_cycles lr_power lr_end optimizer optimizer_config optimizer_beta1
optimizer_beta2 adam_beta1 adam_beta2 adam_weight_decay adam_epsilon max_grad_norm grad_clip_method gradient_precision
optimizer_release_gradients fuse_optimizer use_ema seed seed_for_each_device noise_offset noise_offset_probability
offset_noise input_perturbation input_perturbation_steps caption_dropout_probability snr_gamma snr_weight loss_type
huber_c huber_schedule timestep_bias_strategy timestep_bias_begin timestep_bias_end timestep_bias_multiplier
timestep_bias_portion use_soft_min_snr masked_loss_probability resume_from_checkpoint i_know_what_i_am_doing
train_text_encoder
ema_decay ema_warmup_steps ema_update_interval ema_device ema_cpu_only ema_foreach_disable ema_validation
flow_schedule_shift flow_schedule_auto_shift flow_use_uniform_schedule flow_use_beta_schedule flow_beta_schedule_alpha
flow_beta_schedule_beta flow_sigmoid_scale flow_cubic_schedule_weights mixflow_enabled mixflow_gamma
flow_custom_timesteps flow_timesteps_mode weighting_scheme inference_scheduler_timestep_spacing
validation_noise_scheduler
scheduled_sampling_max_step_offset scheduled_sampling_strategy scheduled_sampling_probability
scheduled_sampling_prob_start scheduled_sampling_prob_end scheduled_sampling_ramp_steps scheduled_sampling_start_step
scheduled_sampling_ramp_shape scheduled_sampling_sampler scheduled_sampling_order scheduled_sampling_reflexflow
scheduled_sampling_reflexflow_alpha scheduled_sampling_reflexflow_beta1 scheduled_sampling_reflexflow_beta2
lora_type lora_rank lora_alpha lora_dropout lora_init_type use_dora peft_lora_target_modules init_lora lora_format
lycoris_config init_lokr_norm validation_lycoris_strength
checkpoint_step_interval checkpoint_epoch_interval checkpoints_total_limit checkpointing_rolling_steps
checkpoints_rolling_total_limit checkpointing_use_tempdir delete_invalid_checkpoints offload_during_save
disk_low_threshold disk_low_action disk_low_script post_checkpoint_script post_upload_script report_to
tracker_project_name tracker_run_name tracker_image_layout logging_dir push_to_hub push_checkpoints_to_hub
push_to_hub_background hub_model_id model_card_private model_card_safe_for_work model_card_note webhook_config
webhook_reporting_interval save_text_encoder
num_processes num_machines accelerate_config accelerate_extra_args fsdp_enable deepspeed_config context_parallel_size
resolution resolution_type minimum_image_size maximum_image_size target_downsample_size caption_strategy instance_prompt
prepend_instance_prompt only_instance_prompt ignore_missing_files delete_problematic_images delete_unwanted_images
aspect_bucket_rounding aspect_bucket_alignment disable_bucket_pruning allow_dataset_oversubscription
data_backend_config data_backend_sampling skip_file_discovery preserve_data_backend_cache override_dataset_config
vae_cache_scan_behaviour compress_disk_cache text_cache_ondemand text_cache_disable text_embed_full_cache
write_batch_size read_batch_size image_processing_batch_size text_encoder_batch_size max_workers
aspect_bucket_worker_count torch_num_threads dataloader_prefetch dataloader_prefetch_qlen metadata_update_interval
max_upscale_threshold conditioning_multidataset_sampling cache_dir cache_dir_text cache_dir_vae
validation_step_interval validation_epoch_interval validate_after_step validate_after_epoch validation_on_startup
disable_benchmark validation_disable validation_prompt validation_prompt_library user_prompt_library
validation_negative_prompt validation_guidance validation_guidance_rescale validation_num_inference_steps
validation_resolution num_validation_images validation_seed validation_seed_source validation_randomize
validation_disable_unconditional validation_image_format validation_image_quality validation_multigpu validation_method
validation_external_script validation_preview validation_preview_steps evaluation_type
pretrained_evaluation_model_name_or_path num_eval_images eval_steps_interval eval_epoch_interval eval_timesteps
eval_dataset_pooling eval_loss_disable eval_dataset_id
validation_steps checkpointing_steps save_total_limit ignore_final_epochs repeats aspect_ratio_bucketing hash_filenames
output_dir
""".split()  # noqa: SIM905

FIELDS = """
id type dataset_type instance_data_dir cache_dir_vae resolution resolution_type crop crop_aspect crop_aspect_buckets
crop_style minimum_image_size maximum_image_size target_downsample_size minimum_aspect_ratio maximum_aspect_ratio
max_upscale_threshold caption_strategy instance_prompt prepend_instance_prompt only_instance_prompt caption_filter_list
caption_shuffle disable_multiline_split metadata_backend parquet repeats probability train_batch_size max_num_samples
start_epoch start_step end_epoch end_step disable_after_epoch_step is_regularisation_data is_regularization_data
text_embeds image_embeds conditioning_data conditioning_image_embeds conditioning source_dataset_id conditioning_type
skip_file_discovery preserve_data_backend_cache vae_cache_clear_each_epoch vae_cache_ondemand vae_cache_disable
vae_batch_size read_batch_size write_batch_size image_processing_batch_size delete_problematic_images
delete_unwanted_images scan_for_errors slider_strength timestep_sampling_offset hash_filenames ignore_epochs
aws_bucket_name aws_region_name aws_endpoint_url aws_access_key_id aws_secret_access_key aws_data_prefix csv_file
csv_caption_column csv_cache_dir dataset_name dataset_config split revision streaming image_column caption_column
fallback_caption_column width_column height_column quality_column filter composite_image_config default cache_dir
text_encoder_batch_size text_cache_ondemand text_cache_disable disabled disable
""".split()  # noqa: SIM905

OPTIMIZERS = """
torch-adam torch-sgd torch-radam torch-nadam torch-rmsprop torch-adagrad torch-adadelta torch-adafactor torch-adamax
torch-asgd torch-sparseadam adamw_bf16 ao-adamw8bit ao-adamw4bit adamw_schedulefree optimi-adam optimi-stableadamw
optimi-lion optimi-radam optimi-ranger optimi-adan optimi-sgd soap muon bnb-lion8bit-paged bnb-adamw8bit prodigy
sdnq-adamw sdnq-lion
""".split()  # noqa: SIM905


@pytest.mark.parametrize("key", OPTIONS)
def test_every_option_is_in_exactly_one_class(key: str) -> None:
    assert (key in section_of()) + (key in CATALOGUE) + (key in ALIASES) == 1


def test_an_alias_leads_to_a_supported_option() -> None:
    assert set(ALIASES.values()) <= set(section_of())


@pytest.mark.parametrize("key", FIELDS)
def test_every_dataset_field_is_in_a_class(key: str) -> None:
    supported = {*ImageDataset.model_fields, *TextEmbedsDataset.model_fields}
    assert (key in supported) + (key in FIELD_CATALOGUE) + (key in FIELD_ALIASES or key == "disabled") == 1


def test_every_optimizer_is_known() -> None:
    assert set(OPTIMIZERS) <= {*OTHER_OPTIMIZERS, *get_args(OptimizerName)}
    assert set(OTHER_VALUES) <= set(section_of())


def test_every_option_says_what_it_is() -> None:
    assert all(f.description for cls in sections().values() for f in cls.model_fields.values())


# The original's own defaults, which its wizard writes into every file: they ask for nothing.
DEFAULTS = {
    "dynamo_backend": "no", "fsdp_enable": False,
    "gradient_checkpointing_backend": "torch",
    "attention_mechanism": "diffusers", "validation_image_format": "png",
    "validation_method": "simpletuner-local",
    "validation_guidance_rescale": 0,
    "pretrained_vae_model_name_or_path": "madebyollin/sdxl-vae-fp16-fix", "snr_weight": 1.0,
}  # fmt: skip


@pytest.mark.parametrize(("key", "value"), DEFAULTS.items())
def test_a_default_is_never_refused_and_neither_is_its_text(key: str, value: object) -> None:
    """On the command line and in the environment every value is text."""
    assert is_off(value, CATALOGUE[key])
    assert is_off(str(value), CATALOGUE[key])


def test_on_is_not_off() -> None:
    known = Known("refused", "why")
    assert not any(is_off(value, known) for value in (True, "true", 1, "1", 0.5, "wandb", "yes"))
