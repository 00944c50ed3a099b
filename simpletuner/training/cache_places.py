"""Whether the caches can be written where they are to be: asked before the model is loaded. Writes nothing.

In: datasets as found. Out: a sentence for each folder that refuses what is still to be cached.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from simpletuner.config.datasets import Datasets
from simpletuner.data.cache import TensorStore
from simpletuner.data.encode import text_key
from simpletuner.data.loader import DROPPED
from simpletuner.errors import CacheError
from simpletuner.training import keeping, prepare
from simpletuner.training.disk import nearest_there


def refuse(datasets: Datasets, found: Sequence[prepare.Found]) -> None:
    """Raises CacheError, with all that ``problems`` names."""
    named = problems(datasets, found)
    if named:
        raise CacheError("\n".join(named))


def problems(datasets: Datasets, found: Sequence[prepare.Found]) -> list[str]:
    """A sentence for each cache folder that cannot be written and lacks something; a complete one may be read-only."""
    sentences: list[str] = []
    for item in found:
        source, keys = item.source, {p.key for p in item.placed}
        if source.caching != "never":
            option = f"[{source.id}] cache_dir_vae"
            sentences += _problem(option, source.latent_dir, keys, "pictures", always=source.redraw)
        masks = {p.mask_key for p in item.placed if p.mask_key}
        home = source.latent_dir / prepare.MASKS
        sentences += _problem(f"[{source.id}] masks, cache_dir_vae", home, masks, "masks", inside=False)
    if datasets.text_caching != "never":
        captions = {text_key(caption) for caption in (DROPPED, *keeping.captions_of(found))}
        folder = Path(datasets.text_cache_dir).expanduser()
        sentences += _problem("cache_dir of the text embeds", folder, captions, "captions")
    return list(dict.fromkeys(sentences))


def _problem(
    option: str, folder: Path, keys: Collection[str], what: str, inside: bool = True, always: bool = False
) -> Iterable[str]:
    """The sentence on one folder, if there is one.

    Args:
        option: Names it.
        folder: The cache; ``inside``: its shards lie in folders inside it, by fingerprint.
        keys: What is wanted of it.
        what: Is kept there.
        inside: See ``folder``.
        always: More is written whatever is there.
    """
    reason = why_not_writable(folder) if keys else None
    if reason is None:
        return
    homes = {shard.parent for shard in folder.glob("*/shard-*.safetensors")} if inside else {folder}
    stores = [TensorStore(home, read_only=True) for home in homes]
    held = max((sum(key in store for key in keys) for store in stores), default=0)
    if held < len(keys) or always:
        yield (
            f"{option}: cannot write into {folder}: {reason}; {held} of {len(keys)} {what} are cached there. "
            "What to do: name another folder for it in the dataloader file."
        )


def why_not_writable(folder: Path) -> str | None:
    """Why nothing can be put into a folder, which may not be there yet; None if it can."""
    home = nearest_there(folder)
    if not home.is_dir():
        return f"{home} is no folder"
    if os.access(home, os.W_OK | os.X_OK):
        return None
    read_only = hasattr(os, "statvfs") and os.statvfs(home).f_flag & os.ST_RDONLY
    return f"{home} is on a read-only disk" if read_only else f"there is no permission to write into {home}"
