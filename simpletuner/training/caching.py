"""Room 4 for a configuration: fill, look at and tidy the caches of latents and text embeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from simpletuner.config.read import RunConfig
from simpletuner.data import undecodable
from simpletuner.data.cache import TensorStore
from simpletuner.data.encode import embeds_of, text_key
from simpletuner.data.healing import CAPTIONS_ANEW, Healing
from simpletuner.data.loader import DROPPED
from simpletuner.data.mirror import RemoteSource
from simpletuner.data.ondemand import OnDemand, TextsOnDemand
from simpletuner.data.remote_cache import RemoteCaches
from simpletuner.models import quantize
from simpletuner.models.base import Components
from simpletuner.reporting.progress import Reporter
from simpletuner.training import (
    cache_places,
    cache_prints,
    keeping,
    prepare,
    quantising,
    recalling,
    translate_data,
    translate_precision,
)
from simpletuner.training.fitting import fit
from simpletuner.training.session import Session, check_sizes, find_pictures, open_session
from simpletuner.wording import counted

Texts = Healing | TextsOnDemand


def fill_caches(session: Session, parts: Components, found: list[prepare.Found]) -> tuple[keeping.Refs, Texts]:
    """Room 4: latents and text embeds on disk, in folders named by everything that went into them.

    The text encoder comes on the CPU, and ends on the device; quantised, if it is to be.
    """
    family, dtype = session.family, session.precision.cache
    _tell_tiles(session, found)
    with session.stages.stage("init_vae_cache", "Latents"):
        refs = keeping.keep_latents(
            found,
            cache_prints.latents_of(session, parts.vae, found),
            lambda pixels: family.encode_pixels(parts.vae, pixels.to(session.device)),
            dtype,
            session.reporter,
            session.caches,
            session.ranks,
        )
    if session.device.type == "cuda" and all(item.source.caching == "ahead" for item in found):
        parts.vae.to("cpu")  # the text encoder needs the room more
        torch.cuda.empty_cache()
    with session.stages.stage("init_cache_text_embeds_status_update", "Text embeds"):
        return refs, _fill_texts(session, parts, found)


def _fill_texts(session: Session, parts: Components, found: list[prepare.Found]) -> Texts:
    """The text half of ``fill_caches``."""
    dtype = session.precision.cache
    text_settings = translate_precision.text_quantisation(session.config.options, session.precision, session.device)
    never = session.config.datasets.text_caching == "never"
    name = "" if never else cache_prints.texts_of(session, parts.text_encoder, parts.tokenizer)
    if text_settings:
        session.reporter.say(quantising.text_encoder(parts, text_settings))
    parts.text_encoder.to(session.device)
    datasets = session.config.datasets

    def encode(captions: list[str]) -> list[torch.Tensor]:
        return encode_trimmed(session, parts, captions)

    captions = list(dict.fromkeys([DROPPED, *keeping.captions_of(found)]))
    if never:
        session.reporter.say(
            f"{counted(len(captions), 'distinct caption is', 'distinct captions are')} encoded when needed, and not kept"
        )
        return TextsOnDemand(None, encode, dtype, captions, session.reporter.say)
    place = (datasets.text_cache_dir / name, translate_data.text_remote(datasets), session.caches)
    store = keeping.open_store(*place, session.ranks)
    for shard in store.dropped:
        session.reporter.say(f"{shard} was damaged and is encoded anew")
    if datasets.text_caching == "ondemand":
        session.reporter.say(
            f"{counted(len(captions), 'distinct caption is', 'distinct captions are')} encoded when first needed"
        )
        return TextsOnDemand(store, encode, dtype, captions, session.reporter.say)
    if keeping.keep_texts(found, store, encode, dtype, [DROPPED], session.reporter, session.ranks):
        store = keeping.open_store(*place, session.ranks)
    announced = {text_key(caption): caption for caption in captions}

    def anew(keys: Sequence[str]) -> dict[str, torch.Tensor]:
        return _encode_anew(session, parts, text_settings, [announced[key] for key in keys if key in announced])

    return Healing(store, anew, CAPTIONS_ANEW, session.reporter.say)


def _encode_anew(
    session: Session, parts: Components, settings: quantize.Settings | None, captions: list[str]
) -> dict[str, torch.Tensor]:
    """Text embeds by key, in the middle of training; ``settings`` are those the text encoder was quantised with."""
    if not captions:
        return {}
    with recalling.text_encoder(session.family, session.source, parts, settings, session.device) as at_hand:
        made = embeds_of(captions, lambda batch: encode_trimmed(session, at_hand, batch), session.precision.cache)
        return {text_key(caption): embeds for caption, embeds in made}


def _tell_tiles(session: Session, found: list[prepare.Found]) -> None:
    """In one line, where tiles are asked for."""
    tile = session.facts.vae_tile
    if session.source.vae_tiling:
        session.reporter.say(
            f"VAE: pictures above {tile} px are encoded in overlapping tiles of that size"
            if cache_prints.in_tiles(session, found)
            else f"vae_enable_tiling: no picture is larger than a tile of {tile} px, so all are encoded whole"
        )


def on_demand(session: Session, parts: Components) -> OnDemand:
    """Latents by reference: from the cache, or encoded now wherever the VAE is."""
    return OnDemand(
        lambda pixels: session.family.encode_pixels(parts.vae, pixels.to(next(parts.vae.parameters()).device)),
        session.precision.cache,
        session.config.options.data.vae_batch_size,
        session.reporter.say,
    )


def encode_trimmed(session: Session, parts: Components, captions: list[str]) -> list[torch.Tensor]:
    """Text embeds of each caption, real tokens only; the empty caption never has the instruction prefix."""
    encoded: dict[str, torch.Tensor] = {}
    for with_instruction in (True, False):
        group = [c for c in captions if bool(c) is with_instruction]
        if group:
            text = session.family.encode_captions(parts, group, session.text, with_instruction)
            encoded.update(zip(group, text.real(), strict=True))
    return [encoded[c] for c in captions]


def build(config: RunConfig, reporter: Reporter) -> None:
    """Rooms 1 to 4 and no further: everything is cached, nothing trained. Raises TunerError as training would."""
    session = open_session(config, reporter, "encode")
    training, held_out = find_pictures(session)
    training, held_out = fit(session, training, held_out)
    cache_places.refuse(session.config.datasets, [*training, *held_out])
    parts = session.family.load(session.source)
    parts.vae.to(session.device)
    try:
        fill_caches(session, parts, [*training, *held_out])
    finally:
        session.caches.close()
    check_sizes(session, training)
    ahead = config.datasets.text_caching == "ahead" and all(i.source.caching == "ahead" for i in (*training, *held_out))
    reporter.say(
        "The caches are complete: training starts without encoding."
        if ahead
        else "What is encoded ahead is in the caches; the rest is encoded while training."
    )


@dataclass(frozen=True, slots=True)
class Home:
    """One folder of shards, or the folder above them where there is none yet.

    Attributes:
        folder: Where the shards are.
        title: The dataset it belongs to, or "captions"; of masks it says so.
        used: Keys that the configuration asks for, under any fingerprint.
        remote: The URL above its twin, or None.
        foreign: Whether another model, prefix, dtype or way to cut made it, so that the configuration does not read it;
            False too where that was not compared.
    """

    folder: Path
    title: str
    used: frozenset[str]
    remote: RemoteSource | None = None
    foreign: bool = False

    def shards(self) -> list[Path]:
        """Its files, whole or not."""
        return sorted(self.folder.glob("shard-*.safetensors"))


def homes(config: RunConfig, reporter: Reporter, compare: bool = False) -> list[Home]:
    """Every folder of shards of this configuration, also those of other fingerprints (another VAE, prefix or dtype).

    Args:
        config: What ``config.read.load`` gave.
        reporter: Where to print.
        compare: Find out which are of other fingerprints; loads the VAE and the text encoder.
    """
    session = open_session(config, reporter, "look")
    training, held_out = find_pictures(session, refuse_small=False)
    latents: dict[Path, tuple[list[str], set[str], set[str], RemoteSource | None]] = {}
    keep_texts = config.datasets.text_caching != "never"
    captions = {text_key(DROPPED)} if keep_texts else set()
    for item in (*training, *held_out):
        ids, keys, masks, _ = latents.setdefault(item.source.latent_dir, ([], set(), set(), item.source.latent_remote))
        ids.append(item.source.id)
        broken = undecodable.known(item.source.latent_dir)
        wanted = [
            p for p in item.placed if p.digest not in broken
        ]  # where they are encoded on demand they stay in the plan
        keys |= {p.key for p in wanted if item.source.caching != "never"}
        masks |= {p.mask_key for p in wanted if p.mask_key}
        captions |= {text_key(c) for p in item.placed for c in p.sample.captions if keep_texts}
    found: list[Home] = []
    for root, (ids, keys, masks, remote) in latents.items():
        title, folder = ", ".join(ids), root / prepare.MASKS
        found += [Home(f, title, frozenset(keys), remote) for f in _shard_folders(root) if f != folder]
        if masks or folder in _shard_folders(root):
            found.append(Home(folder, f"{title}: masks", frozenset(masks)))
    text_dir = Path(config.datasets.text_cache_dir).expanduser()
    text_remote = translate_data.text_remote(config.datasets)
    found += [Home(f, "captions", frozenset(captions), text_remote) for f in _shard_folders(text_dir)]
    return _compared(session, [*training, *held_out], found) if compare else found


def _compared(session: Session, pictures: list[prepare.Found], found: list[Home]) -> list[Home]:
    """The same, saying which are foreign; masks are made by no model."""
    if not any(home.shards() for home in found):
        return found
    session.reporter.say("Reading the VAE and the text encoder, to know which caches are theirs")
    known = {*cache_prints.in_force(session, pictures), prepare.MASKS}
    return [replace(home, foreign=bool(home.shards()) and home.folder.name not in known) for home in found]


def _shard_folders(root: Path) -> list[Path]:
    """Folders with shards below ``root``; itself if there is none, so that what is missing can be told."""
    return sorted({shard.parent for shard in root.glob("*/shard-*.safetensors")}) or [root]


def stats(found: list[Home], reporter: Reporter) -> None:
    """Print what each folder holds and how much of it the configuration uses."""
    if not any(home.shards() for home in found):
        reporter.say("Nothing is cached yet.")
        return
    for home in found:
        store = TensorStore(home.folder, read_only=True)
        used = sum(key in store for key in home.used)
        size = sum(shard.stat().st_size for shard in home.shards())
        damaged = sum(not TensorStore.keys_of(shard) for shard in home.shards())
        reporter.say(
            f"[{home.title}] {home.folder}: {counted(len(store), 'tensor')}, {size / 2**20:.1f} MiB; "
            f"{used} of {len(home.used)} that the configuration needs"
        )
        if damaged:
            what = counted(damaged, "shard is", "shards are")
            reporter.say(
                f"[{home.title}] {what} damaged: `simpletuner cache verify` reads all and removes what is damaged"
            )
    for title, folders in Counter(home.title for home in found).items():
        if folders > 1:  # keys are those of pictures and captions, so each of these may hold all that are needed
            reporter.say(
                f"[{title}] {folders} folders, one for each model and way of encoding, of which the configuration reads one: "
                "`simpletuner cache gc` says which are of others"
            )


def verify(found: list[Home], reporter: Reporter) -> bool:
    """Read every tensor; shards with a wrong checksum or NaN are removed, so that only their samples are encoded anew.

    Returns:
        Whether everything was whole.
    """
    damaged = tensors = shards = 0
    for home in found:
        for shard in reporter.track(f"Reading [{home.title}]", home.shards()):
            problem = TensorStore.problem_with(shard)
            if problem:
                damaged += 1
                shard.unlink()
                reporter.say(f"{shard}: {problem}; removed, its samples are encoded anew by the next run")
            else:
                shards += 1
                tensors += len(TensorStore.keys_of(shard))
    if damaged:
        reporter.say(f"{counted(damaged, 'damaged shard was', 'damaged shards were')} removed.")
    if shards:
        reporter.say(
            f"{counted(tensors, 'cached tensor is', 'cached tensors are')} whole, in {counted(shards, 'shard')}."
        )
    _tell_missing(found, reporter)
    return not damaged


def _tell_missing(found: list[Home], reporter: Reporter) -> None:
    """What the configuration needs and no folder holds, of any fingerprint."""
    held: dict[tuple[str, frozenset[str]], set[str]] = {}
    for home in found:
        keys = held.setdefault((home.title, home.used), set())
        keys.update(*map(TensorStore.keys_of, home.shards()))
    for (title, used), keys in held.items():
        if missing := len(used - keys):
            reporter.say(
                f"[{title}] {missing} of {len(used)} that the configuration needs {'is' if missing == 1 else 'are'} not "
                "cached: `simpletuner cache build` or the next training makes them."
            )


def collect(found: list[Home], reporter: Reporter, delete: bool) -> int:
    """Find shards of which the configuration uses no tensor, and remove them with ``delete``; returns their bytes.

    The twin of a removed shard behind a URL is removed too; a shard that is only there is not looked at.
    """
    total, kept, caches = 0, 0, RemoteCaches(reporter.say)
    for home in found:
        used = frozenset() if home.foreign else home.used
        if home.foreign:
            reporter.say(f"[{home.title}] {home.folder}: made by another model, or with other settings")
        for shard in home.shards():
            held = TensorStore.keys_of(shard)
            if not used.isdisjoint(held):
                kept += len(held - used)
            else:
                total += shard.stat().st_size
                reporter.say(f"[{home.title}] {'removed' if delete else 'unused'}: {shard}")
                if delete:
                    shard.unlink()
                if delete and home.remote and caches.remove(shard, home.remote):
                    reporter.say(f"[{home.title}] removed as well: {home.remote.url}/{home.folder.name}/{shard.name}")
    verb = "removed" if delete else "could be removed with --delete"
    reporter.say(f"{total / 2**20:.1f} MiB {verb}")
    if kept:
        reporter.say(
            f"{counted(kept, 'unused tensor stays, since it shares its shard', 'unused tensors stay, since they share their shard')} "
            "with tensors that are used: only whole shards are removed"
        )
    return total
