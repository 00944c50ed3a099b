"""The recipe under every table that compares ways of training on the pocket model: fixed, so that tables stay comparable.

It was the embedded one when the tables were begun: AdamW with a falling rate and EMA. The embedded recipe goes its own way;
of that, model, data, clipping and validation remain. ``key=value`` words for the command line; a later word wins.
"""

RECIPE = (
    "seed=42 mixed_precision=no flow_schedule_shift=3 flow_sigmoid_scale=1.1 train_batch_size=16 "
    "caption_dropout_probability=0.15 optimizer=torch-adamw optimizer_config=weight_decay=0.01 learning_rate=4e-4 "
    "lr_scheduler=polynomial lr_power=1 lr_end=4e-5 lr_warmup_steps=20 use_ema=true ema_decay=0.98 ema_validation=ema_only"
)
