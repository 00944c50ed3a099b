"""Load the parts of a pipeline from a folder or the hub, with errors written for people.

Nothing here is specific to a family. Only safetensors weights are read; HF_ENDPOINT acts through huggingface_hub.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from simpletuner.errors import ModelError, UnreachableError
from simpletuner.models import hub_errors
from simpletuner.models.base import LoadSource

HUB_SECONDS = 5.0  # to answer at all


def _explain(source: LoadSource, what: str, error: Exception) -> ModelError:
    """One paragraph: what could not be loaded, from where, why, and what to do."""
    told = None if source.local else hub_errors.why(error, source.path, source.revision)
    if told:
        unknown = UnreachableError if hub_errors.passing(error) else ModelError
        return unknown(f"cannot load the {what} of {source.path!r}: {told[0]}. What to do: {told[1]}.")
    first_line = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
    remedy = (
        "check that the folder is a complete diffusers pipeline"
        if source.local
        else "check the spelling, your network (HF_ENDPOINT for a mirror), and `hf auth login` for gated models;"
        " a local folder works too"
    )
    from huggingface_hub.errors import LocalEntryNotFoundError

    # The first also where a hub that cannot be asked was asked all the same; the second where asking is forbidden.
    no_answer = not source.local and isinstance(error, LocalEntryNotFoundError | ConnectionError)
    kind = UnreachableError if no_answer else ModelError
    return kind(f"cannot load the {what} of {source.path!r}: {first_line}. What to do: {remedy}.")


def only_download_bars() -> None:
    """Switch off the libraries' bars for work of a second ("Loading weights", "Writing model shards"), not for downloads."""
    from diffusers.utils import logging as of_diffusers
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers.utils import logging as of_transformers

    of_diffusers.disable_progress_bar()
    of_transformers.disable_progress_bar()
    enable_progress_bars()  # the two calls above switch these off as well


def read_index(source: LoadSource) -> dict[str, Any]:
    """The pipeline's model_index.json, which names the class of each part.

    Raises:
        ModelError: The path is neither a pipeline folder nor a hub repository; UnreachableError where no hub can be asked.
    """
    if source.local:
        file = source.local / "model_index.json"
        if not file.is_file():
            raise ModelError(
                f"{source.path!r} ({source.key}) has no model_index.json, so it is not a diffusers pipeline folder. "
                f"What to do: {_pipeline_below(source.local)}."
            )
        return _index(source, file)
    _refuse_no_hub_id(source)
    return _index(source, fetched(source, "model_index.json", "model index"))


def _refuse_no_hub_id(source: LoadSource) -> None:
    """Raises ModelError where a path that is no folder here cannot be ``owner/name`` either."""
    if source.path.startswith((".", "/", "~")):
        raise ModelError(
            f"there is no folder {source.path!r} ({source.key}). "
            "What to do: give an existing pipeline folder or a hub id such as "
            "'Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers'."
        )
    if source.path.count("/") != 1:
        raise ModelError(
            f"{source.path!r} ({source.key}) is neither a folder here nor a hub id, which is "
            "owner/name. What to do: correct the path."
        )


def fetched(source: LoadSource, name: str, what: str) -> Path:
    """A file of a hub repository, on this machine; the first that is asked for, so that no library asks in vain.

    Raises:
        ModelError: The hub refuses; UnreachableError where it cannot be asked and the file was not fetched earlier.
    """
    from huggingface_hub import hf_hub_download

    unreachable = _without_a_hub()
    try:
        return Path(hf_hub_download(source.path, name, revision=source.revision))
    except (OSError, ValueError) as error:
        if not unreachable:
            raise _explain(source, what, error) from error
        folder = _of_this_machine(source.path, unreachable)
        if folder:
            raise ModelError(
                f"there is no folder {source.path!r} ({source.key}), and {folder}. What to do: correct the path."
            ) from error
        raise UnreachableError(
            f"there is no folder {source.path!r} here ({source.key}), it was not downloaded earlier, and {unreachable}. What to "
            "do: correct the path, or mend the network; HF_ENDPOINT names a mirror."
        ) from error


# Pages of the hub itself, so that no owner of a repository has such a name; people call their folders so.
_NOBODY = ("models", "datasets", "spaces")


def _of_this_machine(path: str, unreachable: str) -> str:
    """Why ``owner/name`` can only be a folder that is not there; "" where a hub that answered might know it."""
    owner = path.partition("/")[0]
    if Path(owner).is_dir():
        return f"{owner!r} is a folder here, so a path is meant (were it a hub id, {unreachable})"
    return f"it is no hub id either: {owner!r} owns nothing there" if owner in _NOBODY else ""


def _pipeline_below(folder: Path) -> str:
    """A remedy for a folder that is no pipeline: the one inside it, where there is one."""
    inside = next((file.parent for file in sorted(folder.glob("*/model_index.json"))), None)
    if inside:
        return f"its subfolder {inside.name!r} is one: add /{inside.name}"
    return "give a folder that holds transformer/, vae/, text_encoder/, tokenizer/ and scheduler/"


def _without_a_hub() -> str:
    """Why the hub cannot be reached, or "". What was downloaded earlier is then used without asking it again.

    The library would try six times for each file, half a minute and a line each.
    """
    from huggingface_hub import constants

    obstacle = without_a_hub()
    if obstacle:
        constants.HF_HUB_OFFLINE = True
    return obstacle


def without_a_hub(seconds: float = HUB_SECONDS) -> str:
    """Why the hub cannot be reached, or "": it is called, and asked for nothing."""
    import socket
    from urllib.parse import urlsplit
    from urllib.request import getproxies

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or getproxies():
        return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""
    address = urlsplit(constants.ENDPOINT)
    port = address.port or (80 if address.scheme == "http" else 443)
    try:
        socket.create_connection((address.hostname or "", port), seconds).close()
    except OSError as error:
        return f"{constants.ENDPOINT} cannot be reached ({error.strerror or error})"
    return ""


def _index(source: LoadSource, file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _explain(source, "model index", error) from error


def expect_class(source: LoadSource, subfolder: str, found: dict[str, Any], wanted: str) -> None:
    """Raises ModelError if a part's configuration names another class than the family works with."""
    name = found.get("_class_name", wanted)
    if name != wanted:
        raise ModelError(
            f"the {subfolder} of {source.path!r} is a {name}; Sana needs a {wanted}. "
            f"What to do: give a Sana pipeline in diffusers' layout ({source.key})."
        )


def _of_part(source: LoadSource, subfolder: str) -> LoadSource:
    """Where a part lies: the transformer may be another's, of no revision of these."""
    if subfolder != source.transformer_subfolder or source.transformer_path in (None, "", source.path):
        return source
    key = "pretrained_transformer_model_name_or_path"
    return replace(source, path=source.transformer_path, transformer_path=None, revision=None, key=key)


def config(source: LoadSource, subfolder: str) -> dict[str, Any]:
    """A part's configuration, without its weights.

    Raises:
        ModelError: The file is missing or not JSON; UnreachableError where no hub can be asked for it.
    """
    name = f"{subfolder}/{'scheduler_config.json' if subfolder == 'scheduler' else 'config.json'}"
    what, place = f"{subfolder} configuration", _of_part(source, subfolder)
    if place.path != source.path and not place.local:  # nothing was asked of it yet
        _refuse_no_hub_id(place)
        fetched(place, name, what)
    try:
        if place.local:
            file = place.local / name
        else:
            from huggingface_hub import hf_hub_download

            file = Path(hf_hub_download(place.path, name, revision=place.revision))
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _explain(place, what, error) from error


def part(cls: Any, source: LoadSource, subfolder: str, dtype: torch.dtype) -> Any:
    """One diffusers model part in ``dtype``.

    Raises:
        ModelError: Missing files or weights that do not fit the configuration.
    """
    place = _of_part(source, subfolder)
    path = place.path
    common = {
        "subfolder": subfolder,
        "revision": place.revision,
        "dtype": dtype,
        "use_safetensors": True,
        "low_cpu_mem_usage": False,
    }
    try:
        if subfolder == source.transformer_subfolder and path == source.path:  # so that a mistyped variant is told
            return cls.from_pretrained(path, variant=source.variant, **common)
        return _variant_or_plain(cls, path, source.variant, common)
    except (OSError, ValueError, RuntimeError) as error:
        raise _explain(place, subfolder, error) from error


def text_encoder(source: LoadSource, index: dict[str, Any]) -> Any:
    """The text encoder, by the class that model_index.json names."""
    import transformers

    library, name = index.get("text_encoder", ("transformers", "Gemma2Model"))
    cls = getattr(transformers, name, None) if library == "transformers" else None
    if cls is None:
        raise ModelError(f"{source.path!r} names a text encoder {library}.{name} that transformers does not have.")
    try:
        common = {"subfolder": "text_encoder", "revision": source.revision, "dtype": source.text_dtype}
        return _variant_or_plain(cls, source.path, source.variant, common)
    except (OSError, ValueError, RuntimeError) as error:
        raise _explain(source, "text encoder", error) from error


def _variant_or_plain(cls: Any, path: str, variant: str | None, common: dict[str, Any]) -> Any:
    """The asked variant of a part, or its plain weights where there is none of it.

    The published Sana repositories give variants of some parts only, and a checkpoint of ours gives none.
    """
    if variant:
        try:
            return cls.from_pretrained(path, variant=variant, **common)
        except OSError:
            pass
    return cls.from_pretrained(path, **common)


def tokenizer(source: LoadSource) -> Any:
    """The tokenizer."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.path, subfolder="tokenizer", revision=source.revision)
    except (OSError, ValueError) as error:
        raise _explain(source, "tokenizer", error) from error


def scheduler(source: LoadSource, index: dict[str, Any]) -> Any:
    """The sampler for validation and export, by the class that model_index.json names."""
    import diffusers

    _, name = index.get("scheduler", ("diffusers", "DPMSolverMultistepScheduler"))
    cls = getattr(diffusers, name, None)
    if cls is None:
        raise ModelError(f"{source.path!r} names a scheduler {name} that diffusers does not have.")
    try:
        return cls.from_pretrained(source.path, subfolder="scheduler", revision=source.revision)
    except (OSError, ValueError) as error:
        raise _explain(source, "scheduler", error) from error
