"""Part of the composition root: who hears of a run, and what of its options is told with each step."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from simpletuner.config.options import Options
from simpletuner.config.read import RunConfig
from simpletuner.config.values import to_bool
from simpletuner.data.sampler import Plan
from simpletuner.reporting import webhook
from simpletuner.reporting.delivery import Receiver
from simpletuner.reporting.events_file import EventsFile
from simpletuner.reporting.listeners import Listener
from simpletuner.reporting.system import SystemFigures
from simpletuner.reporting.tensorboard import TensorBoard
from simpletuner.reporting.trackers import AccelerateTracker, Tracking
from simpletuner.training.publishing import Publisher
from simpletuner.training.session import Session

_ALGORITHMS = {
    "lokr": "LoKr",
    "loha": "LoHa",
    "locon": "LoCon",
    "lora": "LoRA",
    "glora": "GLoRA",
}  # as people write them


def title(options: Options) -> str:
    """A run in a few words: its name, and what of which model it trains."""
    base = "/".join(Path(options.model.pretrained_model_name_or_path).parts[-2:])  # of a folder the end is enough
    return f"{run_name(options)} ({_kind(options)} of {base})"


def _kind(options: Options) -> str:
    adapter = options.adapter
    if options.model.model_type != "lora":
        return "full rank"
    if adapter.lora_type == "standard":
        return "DoRA" if adapter.use_dora else "LoRA"
    algorithm = adapter.lycoris_config.get("algo", "LyCORIS") if isinstance(adapter.lycoris_config, dict) else "LyCORIS"
    return _ALGORITHMS.get(algorithm, str(algorithm))


def course(options: Options, plan: Plan) -> tuple[float, dict[str, int]]:
    """Optimizer steps of one pass over the data, and batch sizes by name."""
    batch, accumulation = options.training.train_batch_size, options.training.gradient_accumulation_steps
    together = batch * accumulation * options.processes.num_processes
    sizes = {"train_batch_size": batch, "effective_batch_size": together}
    return max(1, plan.micro_batches(1)) / accumulation, sizes


def listeners(session: Session) -> Sequence[Listener]:
    """Everybody who hears of a run."""
    system = SystemFigures(session.metrics.write, session.device)
    hooks = map(webhook.listener, webhooks(session.config))
    return [EventsFile(session.output_dir / "events.jsonl"), system, *trackers(session), *hooks]


def run_name(options: Options) -> str:
    """What the run is called where several are shown."""
    folder = Path(options.checkpoints.output_dir).expanduser().resolve()
    return options.reporting.tracker_run_name or folder.name or "run"


def publisher(session: Session) -> Publisher | None:
    """What uploads the run's checkpoints and model, if anything is to be."""
    options = session.config.options.publishing
    if not options.publishes():
        return None
    name = re.sub(r"[^A-Za-z0-9._-]+|-{2,}|\.{2,}", "-", run_name(session.config.options)).strip("._-") or "model"
    repository = options.hub_model_id or name[:96]
    return Publisher(repository, options.model_card_private, session.output_dir, session.stages, session.reporter.say)


@contextmanager
def uploads(session: Session) -> Iterator[None]:
    """Inside, the session has its publisher, if anything is to be uploaded."""
    session.publisher = publisher(session)
    try:
        yield
    finally:
        if session.publisher:
            session.publisher.close()


def logging_folder(session: Session) -> Path:
    """Where trackers keep files."""
    return (session.config.options.reporting.logging_dir or session.output_dir / "logs").expanduser()


def trackers(session: Session) -> list[Listener]:
    """Who draws curves."""
    options = session.config.options
    name = run_name(options)
    folder = logging_folder(session)
    made: list[Listener] = []
    for kind in options.reporting.trackers():
        if kind == "tensorboard":
            made.append(TensorBoard(folder / (re.sub(r"[^\w.-]+", "_", name).strip("._-") or "run")))
            continue
        tracking = Tracking(
            kind=kind,
            project=options.reporting.tracker_project_name,
            run=name,
            folder=folder,
            config=session.config.raw,
            layout=options.reporting.tracker_image_layout,
        )
        made.append(AccelerateTracker(tracking, session.reporter.say))
    return made


def webhooks(config: RunConfig) -> list[webhook.Webhook]:
    """Who is sent events, and which."""
    every = config.options.reporting.webhook_reporting_interval
    unverified = bool(to_bool(os.environ.get("SIMPLETUNER_SSL_NO_VERIFY", "")) is True)
    name = f"{config.options.reporting.tracker_project_name} {run_name(config.options)}"
    return [
        webhook.Webhook(
            kind=entry.webhook_type,
            receiver=Receiver(
                url=entry.address,
                auth_token=entry.auth_token.get_secret_value() if entry.auth_token else None,
                verify=not (entry.ssl_no_verify or unverified),
                allow_redirects=entry.allow_redirects,
                allow_private=entry.allow_private_addresses,
            ),
            log_level=entry.log_level,
            prefix=f"(`{name}`) " if entry.message_prefix is None else f"{entry.message_prefix} ".lstrip(),
            every=every,
        )
        for entry in config.webhooks
    ]
