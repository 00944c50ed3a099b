"""SimpleTuner for Sana: fine-tune NVLabs Sana, from pictures on disk to a diffusers folder."""

__version__ = "0.1.0"
