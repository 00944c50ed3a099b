"""Uploads of a run: checkpoints in the background, the trained model at the end. Nothing here can end or slow training.

In: folders that are whole on disk. Out: commits on a hub, made by a process of its own (``reporting.hub``), events and
sentences. Of checkpoints that wait the newest wins.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from simpletuner import own_process
from simpletuner.reporting.events import Notification, Status
from simpletuner.reporting.hub import PAUSES_S, Upload, encode
from simpletuner.reporting.stages import Stages

WAIT_S = 2 * 3600.0  # for the trained model's upload; tens of GiB on a slow line
CLOSING_S = 5.0  # for a checkpoint's, where a run is stopped
HELD = ".uploading"


class Publisher:
    """Uploads one thing after the other in a thread of its own."""

    def __init__(
        self, repository: str, private: bool, output_dir: Path, stages: Stages, say: Callable[[str], None]
    ) -> None:
        """Nothing is uploaded yet.

        Args:
            repository: ``owner/name`` or ``name``.
            private: Whether a repository that has to be made is private.
            output_dir: Of the run; checkpoints that wait are held in it.
            stages: Told of uploads.
            say: For sentences on the screen.
        """
        self.repository, self.private = repository, private
        self._held, self._stages, self._say = output_dir / HELD, stages, say
        self._changed = threading.Condition()
        self._checkpoint: Path | None = None
        self._model: tuple[Upload, str] | None = None
        self._busy, self._closed = True, False
        self._process: subprocess.Popen[str] | None = None
        shutil.rmtree(self._held, ignore_errors=True)
        self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
        self._thread.start()

    def after(self, save: Callable[[int], Path]) -> Callable[[int], Path]:
        """``save``, and what it saved is uploaded."""

        def saved(step: int) -> Path:
            folder = save(step)
            self.checkpoint(folder)
            return folder

        return saved

    def checkpoint(self, folder: Path) -> None:
        """Upload a checkpoint when the line is free; one that still waits gives way."""
        held = _held(folder, self._held / folder.name)
        with self._changed:
            before, self._checkpoint = self._checkpoint, held
            self._changed.notify_all()
        if before is not None and before != held:
            _let_go(before, self._held)

    def model(self, upload: Upload, by_hand: str, seconds: float = WAIT_S) -> None:
        """Upload the trained model, and wait for it.

        Args:
            upload: The commit.
            by_hand: The command that does it, should this fail.
            seconds: How long at most, checkpoints that come before it included.
        """
        with self._changed:
            self._model = (upload, by_hand)
            self._changed.notify_all()
        self.wait("the model", by_hand, seconds)

    def wait(self, what: str, by_hand: str, seconds: float = WAIT_S) -> None:
        """Wait for everything that is being uploaded, or that waits; Ctrl-C gives it up, and is no failure of the run."""
        try:
            reason = "" if self._idle(time.monotonic() + seconds) else f"it took longer than {seconds / 3600:g} h"
        except KeyboardInterrupt:
            reason = "its upload was stopped"
        if reason:
            self._end()
            self._failed(what, reason, by_hand)

    def close(self, seconds: float = CLOSING_S) -> None:
        """Let an upload that is nearly done finish, and end the others."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if not self._idle(time.monotonic() + seconds):
            self._say("An upload was cut short, and its commit does not exist; the files here are whole.")
            self._end()
        self._thread.join(CLOSING_S)
        shutil.rmtree(self._held, ignore_errors=True)

    def _idle(self, deadline: float) -> bool:
        """Wait until nothing is uploaded and nothing waits; False if time was up first."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._busy and self._checkpoint is None and self._model is None,
                max(0.0, deadline - time.monotonic()),
            )

    def _end(self) -> None:
        with self._changed:
            self._closed, self._checkpoint, self._model = True, None, None
            process = self._process
            self._changed.notify_all()
        if process:
            process.kill()

    def _run(self) -> None:
        self._open()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._checkpoint or self._model or self._closed)
                checkpoint, model = self._checkpoint, None
                if checkpoint is None:
                    model, self._model = self._model, None
                if checkpoint is None and model is None:
                    return
                self._checkpoint, self._busy = None, True
            try:
                if checkpoint is not None:
                    self._upload_checkpoint(checkpoint)
                elif model is not None:
                    self._upload(*model, "the model")
            finally:
                with self._changed:
                    self._busy = False
                    self._changed.notify_all()

    def _open(self) -> None:
        """Make the repository before anything is there to upload, so that what is wrong is told before hours of training."""
        answer = self._answer(Upload(self.repository, self.private, "", pauses=()))
        with self._changed:
            self._busy = False
            self._changed.notify_all()
        if "url" in answer:
            self._say(f"Uploads go to {answer['url']}")
        elif not self._closed:
            reason = answer["error"]
            self._say(f"WARNING: {self.repository} cannot be uploaded to as it is: {reason}. It is tried again later.")

    def _upload_checkpoint(self, folder: Path) -> None:
        name = folder.name
        files = {f"{name}/{f.relative_to(folder).as_posix()}": str(f) for f in sorted(folder.rglob("*")) if f.is_file()}
        upload = Upload(self.repository, self.private, f"{name} of a run", files)
        self._upload(upload, f"hf upload {self.repository} {self._held.parent / name} {name}", name)
        _let_go(folder, self._held)

    def _upload(self, upload: Upload, by_hand: str, what: str) -> None:
        state = {"repository": upload.repository, "label": what}
        self._stages.emit(Status(status="uploading_model", message=f"Uploading {what}", state=state))
        answer = self._answer(replace(upload, pauses=PAUSES_S))
        if self._closed and "url" not in answer:
            return  # ended on purpose, which whoever did it tells
        if "url" in answer:
            state |= {"url": answer["url"]}
            self._stages.emit(Status(status="model_available", message=f"Uploaded {what}", state=state))
            self._say(f"uploaded {what} to {answer['url']}")
        else:
            self._failed(what, answer["error"], by_hand)

    def _failed(self, what: str, reason: str, by_hand: str) -> None:
        sentence = f"{what} could not be uploaded to {self.repository}: {reason.rstrip('.')}. By hand: `{by_hand}`"
        self._say(f"WARNING: {sentence}")
        self._stages.emit(Notification(title="Upload", message=sentence, severity="error"))

    def _answer(self, upload: Upload) -> dict[str, str]:
        """What came of an upload: ``url``, or ``error`` with the reason why there is none."""
        try:
            answer = self._in_process(upload)
        except OSError as error:  # no process could be started
            return {"error": str(error)}
        return answer if answer.keys() & {"url", "error"} else {"error": "the uploading process ended without a word"}

    def _in_process(self, upload: Upload) -> dict[str, str]:
        """The last word of a process that uploads; Ctrl-C in this terminal does not reach it."""
        process = subprocess.Popen(
            own_process.command("simpletuner.reporting.hub"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ,
                "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            },
            start_new_session=True,
        )
        with self._changed:
            self._process = process
        last: dict[str, str] = {}
        with contextlib.suppress(BrokenPipeError), process:
            assert process.stdin and process.stdout
            process.stdin.write(encode(upload))
            process.stdin.close()
            for line in process.stdout:
                with contextlib.suppress(ValueError):
                    last = json.loads(line)
                    if "said" in last:
                        self._say(last["said"])
        self._process = None
        return {} if "said" in last else last


def _held(folder: Path, held: Path) -> Path:
    """The same files under another name, so that they outlive checkpoints_total_limit; the folder itself where that fails."""
    try:
        shutil.rmtree(held, ignore_errors=True)
        shutil.copytree(folder, held, copy_function=os.link)
    except (OSError, shutil.Error):  # a file system without hard links: the newest checkpoints stay for a while anyway
        shutil.rmtree(held, ignore_errors=True)
        return folder
    return held


def _let_go(folder: Path, home: Path) -> None:
    if folder.parent == home:
        shutil.rmtree(folder, ignore_errors=True)
