"""What being watched costs a training step: runs with everything on against runs with everything off, turn about.

    python bench/listening.py                        # the pocket on the CPU, 6 pairs: about five minutes
    python bench/listening.py --gpu                  # LoRA of the 1.6B configuration (random weights), 1024 px: below 150 s
    python bench/listening.py --gpu --tiny           # the same on a CPU with a tiny model: a rehearsal, its figures mean nothing

On: the dashboard with a client that follows its stream as the page does, a webhook to a receiver in another process with a
message for every step, TensorBoard, validation with previews and scores, held-out loss. Off: none of it; the files that every
run writes stay. Runs are those of the real command, all in one process, so that it loads and compiles once; a first one
warms up and is not counted. A step's time is that between the ends of two steps. Left out, in both: the first ones, those
around steps after which pictures are drawn or loss is measured, and the checkpoint at the end. Prints the median of the pairs'
ratios with the lowest and highest: of the median step, of the mean step (what happens now and then counts there), and of the
training process' own processor time, which other programs do not blur.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

sys.path.insert(0, str(Path(__file__).resolve().parent))
from needs_gpu import need_gpu
from real_run import prepared
from train_1p6b import ROOT

WARM_UP = 6
AROUND = 2  # steps whose figures are read late on a GPU
# Trains each configuration that is named on standard input, with a hook that notes when steps end.
TRAINER = """
import gc, json, sys, time
import torch
from simpletuner.cli.app import app
from simpletuner.training import run
loop, notes = run.train_loop, []
class Clock:
    def on_start(self, step): pass
    def acts_at(self, step): return False
    def on_stop(self, step, finished): pass
    def on_step_end(self, result): notes.append((result.step, time.perf_counter(), time.process_time()))
def clocked(trainee, recipe, batches, start, total, hooks, *questions):
    return loop(trainee, recipe, batches, start, total, [Clock(), *hooks], *questions)
run.train_loop = clocked
for line in sys.stdin:
    notes.clear()
    app.main(["train", "--debug", "--config", line.strip()], standalone_mode=False)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    print("STEPS " + json.dumps(notes), flush=True)
"""


class Receiver(BaseHTTPRequestHandler):
    """Takes every message."""

    taken = 0
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Read and forget."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        Receiver.taken += 1
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Client(threading.Thread):
    """Follows a dashboard as the page does: whenever something has changed it asks for the figures and the log since."""

    def __init__(self, address: str) -> None:
        """``address`` is what the run printed."""
        super().__init__(daemon=True)
        parts = urlsplit(address)
        self._port = parts.port or 0
        self._cookie = {"Cookie": f"simpletuner_{self._port}={parse_qs(parts.query)['token'][0]}"}
        self.briefs = 0

    def _get(self, path: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        connection.request("GET", path, headers=self._cookie)
        return connection.getresponse()

    def run(self) -> None:
        """Until the run ends its page."""
        seen, events, pictures = 0, 0, ""
        try:
            with self._get("/api/stream") as stream:
                for raw in stream:
                    line = raw.decode().strip()
                    if not line.startswith('data: {"run"'):
                        continue
                    self.briefs += 1
                    brief = json.loads(line[6:])
                    told = json.load(self._get(f"/api/runs/0/series?since={seen}&generation={brief['generation']}"))
                    seen = told["count"]
                    events = json.load(self._get(f"/api/runs/0/events?since={events}"))["seen"]
                    if brief["pictures"] != pictures:
                        pictures = brief["pictures"]
                        self._get("/api/runs/0/pictures").read()
        except (OSError, ValueError, http.client.HTTPException):
            pass  # the run is over


class Trainer:
    """The process that trains, one configuration after the other."""

    def __init__(self, work: Path) -> None:
        """Start it; ``work`` is its folder."""
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self._complaints = (work / "complaints").open("w+")
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._complaints}
        self._process = subprocess.Popen([sys.executable, "-c", TRAINER], cwd=work, env=environment, text=True, **pipes)

    def train(self, config: Path) -> tuple[list[tuple[int, float, float]], int]:
        """One run: (step, seconds, processor seconds) at the end of every step, and how often a client was told."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{config}\n")
        self._process.stdin.flush()
        client = None
        for line in self._process.stdout:
            if line.startswith("Dashboard: "):
                client = Client(line.removeprefix("Dashboard: ").strip())
                client.start()
            elif line.startswith("STEPS "):
                return [tuple(note) for note in json.loads(line[6:])], client.briefs if client else 0
            elif "WARNING" in line:
                print(f"  {line.rstrip()[:160]}", flush=True)
        self._complaints.seek(0)
        raise SystemExit("\n".join(["The run failed.", *self._complaints.read().splitlines()[-30:]]))

    def close(self) -> None:
        """No more runs."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()
        self._complaints.close()


def steady(notes: list[tuple[int, float, float]], every: int) -> dict[str, float]:
    """Milliseconds of the steps that count.

    Args:
        notes: (step, seconds, processor seconds) at the end of every step.
        every: Something acts after each multiple of it.
    """
    last = notes[-1][0]
    gaps, works = [], []
    for (step, began, work), (_, ended, done) in itertools.pairwise(notes):
        acts = any((step + near) % every == 0 for near in range(-AROUND, AROUND + 1))
        if step >= WARM_UP and not acts and step < last - AROUND:
            gaps.append(1000 * (ended - began))
            works.append(1000 * (done - work))
    return {
        "median": statistics.median(gaps),
        "mean": statistics.fmean(gaps),
        "processor": statistics.fmean(works),
        "count": len(gaps),
    }


def configurations(work: Path, options: dict[str, Any], port: int, every: int) -> Callable[[bool, int], Path]:
    """Writes a configuration: with everything on or off, for the run of that number."""
    watched = {
        "dashboard": True,
        "webhook_config": {
            "webhook_type": "raw",
            "callback_url": f"http://127.0.0.1:{port}/hook",
            "log_level": "debug",
        },
        "webhook_reporting_interval": 1,
        "report_to": "tensorboard",
        "validation_prompt": "a blueprint of a fox",
        "validation_step_interval": every,
        "validation_num_inference_steps": 4,
        "validation_preview": True,
        "eval_steps_interval": every,
        "num_eval_images": 4,
    }
    alone = {
        "dashboard": False,
        "report_to": "none",
        "report": False,
        "validation_disable": True,
        "eval_loss_disable": True,
    }

    def write(on: bool, number: int) -> Path:
        name = f"{'on' if on else 'off'}-{number}"
        config = {**options, **(watched if on else alone), "output_dir": str(work / name)}
        file = work / f"{name}.json"
        file.write_text(json.dumps(config))
        return file

    return write


def pocket(work: Path, steps: int) -> dict[str, Any]:
    """The pocket's own run, without its prompts; each run exports, and keeps no other checkpoint."""
    folder = ROOT / "simpletuner" / "pocket"
    left_out = ("user_prompt_library", "validation_num_inference_steps")
    options = {
        key: value for key, value in json.loads((folder / "config.json").read_text()).items() if key not in left_out
    }
    return {**options, "max_train_steps": steps, "checkpoint_step_interval": 0}


def large(work: Path, steps: int, tiny: bool) -> dict[str, Any]:
    """LoRA of the 1.6B configuration, with held-out pictures."""
    options = prepared(work, tiny)
    file = Path(options["data_backend_config"])
    datasets = json.loads(file.read_text())
    held_out = {key: value for key, value in datasets[0].items() if key != "repeats"}
    file.write_text(json.dumps([*datasets, {**held_out, "id": "held-out", "dataset_type": "eval"}]))
    return {
        **options,
        "model_type": "lora",
        "lora_rank": 16,
        "optimizer": "adamw_bf16",
        "learning_rate": 1e-4,
        "train_batch_size": 1,
        "max_train_steps": steps,
        "validation_resolution": "64x64" if tiny else "1024x1024",
    }


def compare(trainer: Trainer, write: Callable[[bool, int], Path], pairs: int, every: int, until: float) -> None:
    """Train the pairs, as many as there is time for, and print what they took."""
    found: list[dict[bool, dict[str, float]]] = []
    began = time.monotonic()
    trainer.train(write(True, 0))
    longest = time.monotonic() - began  # a pair is two such runs without compiling
    print(f"warm: {longest:.0f} s", flush=True)
    for pair in range(1, pairs + 1):
        began, row = time.monotonic(), {}
        if began + longest > until:
            print(f"no time for pair {pair}", flush=True)
            break
        for on in (True, False) if pair % 2 else (False, True):
            notes, briefs = trainer.train(write(on, pair))
            row[on] = {**steady(notes, every), "briefs": briefs}
        found.append(row)
        took = time.monotonic() - began
        longest = max(longest, took)
        told = ", ".join(
            f"{key} {row[False][key]:.2f} → {row[True][key]:.2f}" for key in ("median", "mean", "processor")
        )
        print(
            f"pair {pair}: ms a step off → on: {told}; {row[True]['count']:.0f} steps; client told {row[True]['briefs']:.0f} "
            f"times, {Receiver.taken} messages so far; {took:.0f} s",
            flush=True,
        )
    if not found:
        print("No pair was run: give it more time with --budget.")
        return
    for key in ("median", "mean", "processor"):
        shares = [100 * (row[True][key] / row[False][key] - 1) for row in found]
        print(
            f"{key:9} step with all of it on: {statistics.median(shares):+.2f} % (median of {len(shares)} pairs, "
            f"{min(shares):+.2f} to {max(shares):+.2f})"
        )


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", action="store_true", help="LoRA of the 1.6B configuration instead of the pocket.")
    parser.add_argument("--tiny", action="store_true", help="With --gpu: rehearse on a CPU.")
    parser.add_argument("--pairs", type=int)
    parser.add_argument("--steps", type=int, help="Of each run.")
    parser.add_argument("--every", type=int, help="Steps between two validations.")
    parser.add_argument("--budget", type=float, help="Seconds: no pair begins that would end later.")
    arguments = parser.parse_args()
    if arguments.gpu and not arguments.tiny:
        need_gpu("add --tiny, which rehearses with a tiny model on the CPU, or leave --gpu out: the pocket")
    began = time.monotonic()
    steps = arguments.steps or (130 if arguments.gpu else 44)
    every = arguments.every or (60 if arguments.gpu else 18)
    pairs = arguments.pairs or (5 if arguments.gpu else 6)
    budget = arguments.budget or (145 if arguments.gpu else 3600)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        options = large(work, steps, arguments.tiny) if arguments.gpu else pocket(work, steps)
        trainer = Trainer(work)
        write = configurations(work, options, server.server_port, every)
        try:
            compare(trainer, write, pairs, every, began + budget)
        finally:
            trainer.close()
            server.shutdown()
    print(f"{platform.machine()}, {os.cpu_count()} cores; {time.monotonic() - began:.0f} s in all")


if __name__ == "__main__":
    main()
