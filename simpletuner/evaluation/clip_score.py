"""CLIP score: how well pictures agree with their prompts, by any CLIP of transformers.

In: pictures and prompts. Out: 0 to 100 for each. Downloads nothing where a folder is given.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image

from simpletuner.errors import ModelError
from simpletuner.models.base import LoadSource
from simpletuner.models.load import fetched

AT_ONCE = 8  # pictures per call


def _where(path: str) -> str:
    """The folder, if there is one of that name; else the hub id."""
    return str(LoadSource(path).local or path)


@contextmanager
def _explained(path: str) -> Iterator[None]:
    """What the library raises while a CLIP is read, as a ModelError."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"cannot load a CLIP from {path!r} (pretrained_evaluation_model_name_or_path): {reason.rstrip('.')}. What to do: give "
            "a folder with a CLIPModel, its tokenizer and its image processor, or a hub id that can be reached; or "
            "leave evaluation_type out."
        ) from error


def read_small_files(path: str) -> tuple[Any, Any]:
    """Tokenizer and image processor of a CLIP; no weights, so that a wrong path is told in a moment.

    Args:
        path: As for ``ClipScorer``.

    Raises:
        ModelError: There is no CLIP there; UnreachableError where the hub cannot be asked for it.
    """
    # CLIPImageProcessorPil is the form without torchvision, which is not needed for this.
    from transformers import AutoTokenizer, CLIPImageProcessorPil

    source = LoadSource(path, key="pretrained_evaluation_model_name_or_path")
    with _explained(path):
        file = source.local / "config.json" if source.local else fetched(source, "config.json", "CLIP")
        if not file.is_file():
            raise ValueError("it has no config.json")
        about = json.loads(file.read_text("utf-8"))
        kind = about.get("model_type") if isinstance(about, dict) else None
        if kind != "clip":
            raise ValueError(f"its config.json is of a model of type {kind!r}, not 'clip'")
        return AutoTokenizer.from_pretrained(_where(path)), CLIPImageProcessorPil.from_pretrained(_where(path))


class ClipScorer:
    """A CLIP that stays loaded."""

    def __init__(self, path: str) -> None:
        """Load it, on the CPU.

        Args:
            path: Folder or hub id of a CLIPModel with tokenizer and image processor.

        Raises:
            ModelError: It cannot be loaded.
        """
        from transformers import CLIPModel

        self._tokenizer, self._processor = read_small_files(path)
        with _explained(path):
            self._model: Any = CLIPModel.from_pretrained(_where(path), dtype=torch.float32)
        self._model.eval().requires_grad_(False)
        self._device, self._dtype = torch.device("cpu"), torch.float32
        text: Any = self._model.config.text_config
        self.longest = int(text.max_position_embeddings)

    def on(self, device: torch.device) -> ClipScorer:
        """Work there from now on; on a GPU in float16, and only while it scores: training needs the room. Returns itself."""
        self._device = device
        self._dtype = torch.float16 if device.type == "cuda" else torch.float32
        self._model.to(self._dtype)
        return self

    def tokens(self, prompt: str) -> int:
        """Tokens of a prompt, begin and end among them; beyond ``longest`` CLIP does not read."""
        return len(self._tokenizer(prompt, truncation=False, verbose=False)["input_ids"])

    @torch.no_grad()
    def score(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], between: Callable[[], None] = lambda: None
    ) -> list[float]:
        """Cosine of picture and prompt times 100, negative ones as 0.

        Source: Hessel et al., "CLIPScore", EMNLP 2021, section 3, with 100 for w.

        Args:
            pictures: RGB.
            prompts: One for each.
            between: Called before every few; what it raises ends the scoring.
        """
        self._model.to(self._device)
        try:
            return self._scores(pictures, prompts, between)
        finally:
            self._model.to("cpu")

    def _scores(
        self, pictures: Sequence[Image.Image], prompts: Sequence[str], between: Callable[[], None]
    ) -> list[float]:
        scores: list[float] = []
        for start in range(0, len(pictures), AT_ONCE):
            between()
            part = slice(start, start + AT_ONCE)
            text = self._tokenizer(
                list(prompts[part]), padding=True, truncation=True, max_length=self.longest, return_tensors="pt"
            ).to(self._device)
            pixels = self._processor(images=list(pictures[part]), return_tensors="pt")["pixel_values"]
            found = self._model(
                input_ids=text["input_ids"],
                attention_mask=text["attention_mask"],
                pixel_values=pixels.to(self._device, self._dtype),
            )
            cosine = torch.nn.functional.cosine_similarity(found.image_embeds.float(), found.text_embeds.float())
            scores += [100 * max(0.0, value) for value in cosine.tolist()]
        return scores
