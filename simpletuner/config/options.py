"""Every supported option: name, type, range, default and one sentence. The only list; help and checks come from it.

Those of noise, loss and rollout stand in ``noise_options``, those of webhooks and trackers in ``reporting_options``,
those of pictures and held-out loss in ``validation_options``, those of dashboard and report in
``page_options``, those of several GPUs in ``process_options``, those of uploads in ``publishing_options``.

Field names are the keys of config.json. Sections are for the reader; in files and on the command line keys are flat.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from simpletuner.config.noise_options import FlowOptions, LossOptions, RolloutOptions
from simpletuner.config.optimizer_names import OWN_RATE, OptimizerName, parse
from simpletuner.config.page_options import PageOptions
from simpletuner.config.preview_options import PreviewOptions
from simpletuner.config.process_options import ProcessOptions
from simpletuner.config.publishing_options import PublishingOptions
from simpletuner.config.reporting_options import ReportingOptions
from simpletuner.config.section import Positive, Probability, Section
from simpletuner.config.validation_options import EvaluationOptions, ValidationOptions
from simpletuner.config.values import (
    parse_instruction,
    parse_memory,
    parse_names,
    parse_object,
)

Quantisation = Literal["no_change", "nf4-bnb", "int8-torchao", "int8dq-torchao", "fp8wo-torchao", "fp8-torchao"]


class ModelOptions(Section):
    """Model."""

    model_type: Literal["full", "lora"] = Field(
        "full", description="What is trained: full = all transformer weights, lora = an adapter beside them."
    )
    model_family: Literal["sana"] = Field("sana", description="Model family.")
    model_flavour: str | None = Field(
        None, description="Weights by name where no path is given, e.g. sana1.0-1.6b-1024."
    )
    pretrained_model_name_or_path: str = Field("", description="Hub id or folder of a diffusers Sana pipeline.")
    pretrained_transformer_model_name_or_path: str | None = Field(None, description="Other transformer weights.")
    pretrained_transformer_subfolder: str = Field("transformer", description="Subfolder of the transformer.")
    revision: str | None = Field(None, description="Hub revision of the model.")
    variant: str | None = Field(None, description="Weight variant, e.g. bf16.")
    sana_complex_human_instruction: Annotated[tuple[str, ...] | None, BeforeValidator(parse_instruction)] = Field(
        None, description='Instruction before every caption: text, JSON list or a file; "None" turns it off.'
    )
    tokenizer_max_length: Annotated[int, Field(ge=2, le=8192)] = Field(300, description="Tokens kept of each caption.")


class AdapterOptions(Section):
    """Adapters (model_type lora)."""

    lora_type: Literal["standard", "lycoris"] = Field(
        "standard", description="standard = LoRA and DoRA through PEFT; lycoris = LoKr, LoHa and others."
    )
    lora_rank: Positive = Field(16, description="Rank of standard LoRA.")
    lora_alpha: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="Scale of standard LoRA is lora_alpha / rank; by default the rank, so 1."
    )
    lora_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = Field(0.0, description="Dropout before standard LoRA.")
    use_dora: bool = Field(False, description="DoRA: train the length of every weight row as well.")
    use_rslora: bool = Field(False, description="Divide lora_alpha by the rank's square root: for high ranks.")
    lora_init_type: Literal["default", "gaussian", "olora", "pissa"] = Field(
        "default", description="Start of standard LoRA; olora and pissa start along the base weights."
    )
    peft_lora_target_modules: Annotated[tuple[str, ...] | None, BeforeValidator(parse_names)] = Field(
        None,
        description="Layers for standard LoRA, a JSON list or a file: to_q, to_k, to_v, to_out.0; "
        '"all" adds the feed-forward (conv_inverted, conv_point).',
    )
    init_lora: Path | None = Field(None, description="Adapter file or folder to continue from.")
    lora_format: Literal["diffusers", "comfyui"] = Field("diffusers", description="Key layout of the exported LoRA.")
    lycoris_config: Annotated[dict[str, Any] | Path, BeforeValidator(parse_object)] = Field(
        Path("config/lycoris_config.json"), description="LyCORIS settings: a JSON object, or a file with one."
    )
    init_lokr_norm: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="LoKr starts as this much of normal noise like the base weights, instead of nothing."
    )
    validation_lycoris_strength: Annotated[float, Field(ge=0.0)] = Field(
        1.0, description="Strength of the adapter in validation pictures."
    )


class PrecisionOptions(Section):
    """Precision and memory."""

    mixed_precision: Literal["no", "bf16", "fp16"] = Field("bf16", description="bf16, fp16 or no (float32).")
    gradient_checkpointing: bool = Field(True, description="Recompute activations in backward: less memory, slower.")
    gradient_checkpointing_interval: Positive = Field(1, description="Recompute every n-th block: 1 all, 2 half.")
    base_model_precision: Quantisation = Field(
        "no_change", description="Quantise the frozen model under an adapter: 4 or 8 bits a weight instead of 16."
    )
    text_encoder_1_precision: Quantisation = Field(
        "no_change", description="Quantise the text encoder while captions are encoded."
    )
    quantize_via: Literal["accelerator", "cpu", "pipeline"] = Field(
        "accelerator", description="Quantise on the GPU, layer by layer, or on the CPU; the weights are the same."
    )
    base_model_default_dtype: Literal["bf16", "fp32"] | None = Field(
        None, description="Dtype of what is not quantised in a quantised base; that of mixed_precision."
    )
    vae_enable_tiling: bool = Field(
        False,
        description="Encode and decode large pictures in overlapping tiles: less memory, slower, nearly the same.",
    )
    memory: Annotated[Literal["as_set", "auto"] | Annotated[float, Field(gt=0.0)], BeforeValidator(parse_memory)] = (
        Field(
            "as_set",
            description="as_set: only what is set; auto: recompute, VAE tiles and VAE batch by the GPU's free "
            "memory, where they are not set; a number: the same within so many GiB, and never more.",
        )
    )
    vae_enable_slicing: bool = Field(False, description="Encode and decode one picture of a batch at a time.")
    transformer_forward: Literal["auto", "fast", "plain", "diffusers"] = Field(
        "auto",
        description="fast: training steps with hand-written kernels, compiled blocks and CUDA graphs, on NVIDIA cards; "
        "plain: our form of the blocks in PyTorch alone; auto: fast where it can be, else diffusers' own.",
    )
    disable_tf32: bool = Field(False, description="Keep float32 products exact on NVIDIA cards.")


class TrainingOptions(Section):
    """Training."""

    num_train_epochs: Annotated[int, Field(ge=0)] | None = Field(None, description="Passes over the data.")
    max_train_steps: Annotated[int, Field(ge=0)] | None = Field(None, description="Optimizer steps, instead of epochs.")
    train_batch_size: Positive = Field(4, description="Pictures per micro-batch, in each process.")
    gradient_accumulation_steps: Positive = Field(1, description="Micro-batches per optimizer step.")
    learning_rate: Annotated[float, Field(gt=0.0)] = Field(
        1e-5, description="Peak learning rate; 1 where prodigy is left to find its own."
    )
    lr_scheduler: Literal[
        "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "sine", "polynomial", "wsd"
    ] = Field("constant_with_warmup", description="Course of the learning rate over the whole run.")
    lr_warmup_steps: Annotated[int, Field(ge=0)] = Field(0, description="Optimizer steps of warm-up.")
    lr_end: Annotated[float, Field(ge=0.0)] = Field(
        4e-7, description="Lowest learning rate of all courses that fall; linear goes to 0 unless this is given."
    )
    lr_power: Annotated[float, Field(gt=0.0)] = Field(0.8, description="Exponent of polynomial.")
    lr_num_cycles: Positive = Field(1, description="Courses of cosine_with_restarts, waves of sine.")
    lr_decay_share: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.2, description="Share of the run in which wsd (warm-up, stable, decay) goes down."
    )
    lr_scale: bool = Field(False, description="Multiply the learning rate by pictures per optimizer step.")
    lr_scale_sqrt: bool = Field(False, description="With lr_scale: by the square root of that.")
    optimizer: OptimizerName = Field("optimi-adamw", description="Optimizer.")
    optimizer_config: str = Field(
        "", description="key=value,key=value for the optimizer: any argument of its class, such as weight_decay."
    )
    optimizer_beta1: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(None, description="Together with beta2.")
    optimizer_beta2: Annotated[float, Field(ge=0.0, lt=1.0)] | None = Field(None, description="Together with beta1.")
    max_grad_norm: Annotated[float, Field(ge=0.0)] = Field(1.0, description="Gradient bound; 0 turns clipping off.")
    grad_clip_method: Literal["norm", "value"] = Field("norm", description="Clip the global norm, or each element.")
    gradient_precision: Literal["unmodified", "fp32"] = Field(
        "unmodified", description="fp32 adds up the micro-batches of a step in float32 where weights are bf16."
    )
    optimizer_release_gradients: bool = Field(
        False,
        description="Step weights inside backward, block by block or parameter by parameter, and free their gradients: less "
        "memory.",
    )
    fuse_optimizer: bool = Field(False, description="The same as optimizer_release_gradients.")
    layer_freeze_strategy: Literal["none", "bitfit"] = Field(
        "none", description="bitfit trains biases and the parameters of norms only."
    )
    seed: Annotated[int, Field(ge=-1, lt=2**31)] = Field(42, description="Everything random; -1 draws and prints one.")

    def optimizer_arguments(self) -> dict[str, Any]:
        """Arguments for the optimizer from ``optimizer_config`` and the betas.

        Raises:
            ValueError: An entry that is not ``key=value``, an argument its class does not take, or a wrong value.
        """
        return parse(self.optimizer, self.optimizer_config, self.optimizer_beta1, self.optimizer_beta2)

    def peak_rate(self) -> float:
        """``learning_rate``, or the optimizer's own unit where the user is silent."""
        silent = "learning_rate" not in self.model_fields_set
        return OWN_RATE.get(self.optimizer, self.learning_rate) if silent else self.learning_rate

    def releases_gradients(self) -> bool:
        """Whether parameters are stepped inside backward."""
        return self.optimizer_release_gradients or self.fuse_optimizer


class EmaOptions(Section):
    """EMA."""

    use_ema: bool = Field(False, description="Keep an average of the weights; it is validated and exported.")
    ema_decay: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(0.995, description="Decay, with warm-up.")
    ema_device: Literal["accelerator", "cpu"] = Field(
        "accelerator",
        description="Where the average lives; cpu frees 4 bytes of GPU memory a parameter, and is slower.",
    )
    ema_cpu_only: bool = Field(False, description="The same as ema_device cpu: kept and updated on the CPU.")
    ema_warmup_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="Until this step the average is a copy of the weights."
    )
    ema_update_interval: Positive = Field(1, description="Update every n optimizer steps.")
    ema_validation: Literal["none", "ema_only", "comparison"] = Field(
        "comparison",
        description="Validation pictures: trained weights only, EMA only, or both; ema_only also for held-out loss.",
    )


class DataOptions(Section):
    """Data."""

    data_backend_config: Path | None = Field(
        None, description="Dataloader file; multidatabackend.json beside config.json."
    )
    resolution: Annotated[float, Field(gt=0.0)] = Field(1024, description="Default resolution of datasets.")
    resolution_type: Literal["pixel", "area", "pixel_area"] = Field("pixel_area", description="Its unit.")
    minimum_image_size: Annotated[float, Field(ge=0.0)] | None = Field(
        None, description="Smaller pictures are skipped."
    )
    maximum_image_size: Annotated[float, Field(gt=0.0)] | None = Field(None, description="See target_downsample_size.")
    target_downsample_size: Annotated[float, Field(gt=0.0)] | None = Field(
        None, description="Pictures above maximum_image_size are reduced to this before cropping."
    )
    caption_strategy: Literal["filename", "textfile", "instanceprompt", "parquet", "huggingface", "null"] = Field(
        "filename",
        description="Captions of datasets that name no strategy; csv and webdataset are set in the dataset's own entry.",
    )
    instance_prompt: str | None = Field(None, description="Default instance prompt of datasets.")
    prepend_instance_prompt: bool = Field(False, description="Put the instance prompt before every caption.")
    only_instance_prompt: bool = Field(False, description="Use the instance prompt alone.")
    aspect_bucket_alignment: Positive | None = Field(None, description="Bucket sides in pixels; the model's need (32).")
    data_backend_sampling: Literal["auto-weighting", "uniform"] = Field(
        "auto-weighting", description="Mix datasets by probability times length, or by probability alone."
    )
    max_upscale_threshold: Annotated[float, Field(ge=0.0, le=1.0)] | None = Field(
        None, description="crop_aspect closest and random pass over buckets that enlarge a picture by more than this."
    )
    allow_dataset_oversubscription: bool = Field(False, description="Fill buckets that are too small by repeating.")
    caption_dropout_probability: Probability = Field(0.1, description="Share of captions replaced by the empty one.")
    masked_loss_probability: Probability = Field(1.0, description="Share of draws in which a segmentation mask acts.")
    vae_batch_size: Positive = Field(4, description="Pictures per VAE call while caching.")
    vae_cache_ondemand: bool = Field(False, description="Encode latents when first needed, not all ahead; keep them.")
    vae_cache_disable: bool = Field(False, description="Encode latents whenever needed; keep nothing on disk.")
    cache_dir: Path | None = Field(None, description="Caches without a folder of their own; output_dir/cache.")
    cache_dir_vae: Path | None = Field(None, description="Latents of datasets without cache_dir_vae.")
    cache_dir_text: Path | None = Field(None, description="Text embeds where no text_embeds entry says otherwise.")
    text_cache_ondemand: bool = Field(
        False, description="Encode captions when first needed, and keep them; the text encoder stays on the device."
    )
    text_cache_disable: bool = Field(False, description="Encode captions whenever needed, and keep none on disk.")


class CheckpointOptions(Section):
    """Output and checkpoints."""

    output_dir: Path = Field(Path("output/models"), description="Checkpoints, pictures and the trained model.")
    checkpoint_step_interval: Annotated[int, Field(ge=0)] = Field(500, description="Every n steps; 0 only at the end.")
    checkpoints_total_limit: Annotated[int, Field(ge=0)] = Field(5, description="Checkpoints kept; 0 keeps all.")
    resume_from_checkpoint: str | None = Field(
        "latest", description='"latest", a checkpoint, or false for a fresh run.'
    )


class Options(Section):
    """All options, by section."""

    model: ModelOptions = ModelOptions()
    adapter: AdapterOptions = AdapterOptions()
    precision: PrecisionOptions = PrecisionOptions()
    training: TrainingOptions = TrainingOptions()
    processes: ProcessOptions = ProcessOptions()
    ema: EmaOptions = EmaOptions()
    flow: FlowOptions = FlowOptions()
    loss: LossOptions = LossOptions()
    rollout: RolloutOptions = RolloutOptions()
    data: DataOptions = DataOptions()
    validation: ValidationOptions = ValidationOptions()
    evaluation: EvaluationOptions = EvaluationOptions()
    previews: PreviewOptions = PreviewOptions()
    checkpoints: CheckpointOptions = CheckpointOptions()
    reporting: ReportingOptions = ReportingOptions()
    page: PageOptions = PageOptions()
    publishing: PublishingOptions = PublishingOptions()


def sections() -> dict[str, type[Section]]:
    """Section classes by their name in ``Options``, in order."""
    return {name: field.annotation for name, field in Options.model_fields.items()}  # type: ignore[misc]


def section_of() -> dict[str, str]:
    """The section of every option."""
    return {key: name for name, cls in sections().items() for key in cls.model_fields}


def defaults() -> list[tuple[str, dict[str, Any]]]:
    """Every section's title, with its options' defaults as JSON has them."""
    values = Options().model_dump(mode="json")
    return [((cls.__doc__ or name).strip().rstrip("."), values[name]) for name, cls in sections().items()]
