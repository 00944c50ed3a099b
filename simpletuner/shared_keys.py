"""Keys that options and the entries of a dataloader file share with one meaning.

The configuration fills an entry in from the option; who reads a finished run finds in the entry what acted. Neither room may
look into the other, so what both go by stands here.
"""

FILLED_FROM_OPTIONS = (
    "resolution",
    "resolution_type",
    "minimum_image_size",
    "maximum_image_size",
    "target_downsample_size",
    "caption_strategy",
    "instance_prompt",
    "prepend_instance_prompt",
    "only_instance_prompt",
    "vae_batch_size",
    "max_upscale_threshold",
    "vae_cache_ondemand",
    "vae_cache_disable",
)
