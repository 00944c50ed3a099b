"""Part of the composition root: who hears of a run, and what of its options is told with each step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from simpletuner.config.options import Options
from simpletuner.config.read import RunConfig
from simpletuner.data.sampler import Plan
from simpletuner.reporting.events import Listener
from simpletuner.reporting.events_file import EventsFile


def title(options: Options) -> str:
    """A run in a few words."""
    kind = {"full": "full fine-tune"}.get(options.model.model_type, f"{options.adapter.lora_type} adapter")
    return f"{kind} of {Path(options.model.pretrained_model_name_or_path).name}"


def course(options: Options, plan: Plan) -> tuple[float, dict[str, int]]:
    """Optimizer steps of one pass over the data, and batch sizes by name."""
    batch, accumulation = options.training.train_batch_size, options.training.gradient_accumulation_steps
    sizes = {"train_batch_size": batch, "effective_batch_size": batch * accumulation}
    return max(1, plan.micro_batches(1)) / accumulation, sizes


def listeners(config: RunConfig, output_dir: Path) -> Sequence[Listener]:
    """Everybody who hears of a run."""
    return [EventsFile(output_dir / "events.jsonl")]
