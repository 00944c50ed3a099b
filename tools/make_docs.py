"""Write the reference pages of docs/ from the program's own tables, so that they cannot say anything else.

    python tools/make_docs.py            # docs/options.md, docs/dataloader.md, docs/migrating.md
    python tools/make_docs.py --check    # says which of them are stale, and exits with 1

options.md and dataloader.md come from the fields of ``simpletuner/config``; migrating.md has a table of every key of the
original program between two marks, from the same fields, ``config/catalogue.py`` and ``tools/departures.py``. Prose stands in
``tools/reference/*.md`` (options, dataloader) and in migrating.md itself, outside the marks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import departures
from pydantic_core import PydanticUndefined

from simpletuner.config.catalogue import ALIASES, CATALOGUE, OTHER_VALUES, Known
from simpletuner.config.datasets import (
    FIELD_ALIASES,
    FIELD_CATALOGUE,
    OTHER_FIELD_VALUES,
    CaptionShuffle,
    CaptionTableOptions,
    ImageDataset,
    MaskDataset,
    TextEmbedsDataset,
)
from simpletuner.config.options import sections
from simpletuner.config.section import Section
from simpletuner.shared_keys import FILLED_FROM_OPTIONS

ROOT = Path(__file__).resolve().parent.parent
PROSE = ROOT / "tools" / "reference"
DERIVED = {"source_url", "cache_url"}  # filled in by the reader, never written by a person
MARK = "<!-- table: tools/make_docs.py -->"
S3 = [
    "aws_bucket_name",
    "aws_data_prefix",
    "aws_region_name",
    "aws_endpoint_url",
    "aws_access_key_id",
    "aws_secret_access_key",
]
# What a reader also takes, which a schema cannot say.
WORDS: Mapping[str, str] = {
    "sana_complex_human_instruction": "text, list or file",
    "peft_lora_target_modules": "list or file",
    "lycoris_config": "object or file",
    "webhook_config": "object, list or file",
    "user_prompt_library": "file",
    "validation_resolution": "`WxH`, several with commas",
    "crop_aspect_buckets": "list of numbers or objects",
    "caption_filter_list": "list or file",
    "resume_from_checkpoint": "`latest`, path, `false`",
    "flow_cubic_schedule_weights": "four numbers from 0 to 1",
}
GROUPS: Mapping[str, Iterable[str]] = {
    "What it is": ["id", "type", "dataset_type", "instance_data_dir"],
    "Captions": [
        "caption_strategy",
        "instance_prompt",
        "prepend_instance_prompt",
        "only_instance_prompt",
        "parquet",
        "caption_filter_list",
        "caption_shuffle",
        "disable_multiline_split",
    ],
    "Size and shape": [
        "resolution",
        "resolution_type",
        "crop",
        "crop_aspect",
        "crop_aspect_buckets",
        "crop_style",
        "minimum_image_size",
        "maximum_image_size",
        "target_downsample_size",
        "minimum_aspect_ratio",
        "maximum_aspect_ratio",
        "max_upscale_threshold",
    ],
    "How often, and when": [
        "repeats",
        "probability",
        "train_batch_size",
        "max_num_samples",
        "start_epoch",
        "end_epoch",
        "start_step",
        "end_step",
        "disable_after_epoch_step",
    ],
    "What is learned from it": ["is_regularisation_data", "conditioning_data", "timestep_sampling_offset"],
    "Cache": [
        "cache_dir_vae",
        "vae_batch_size",
        "vae_cache_ondemand",
        "vae_cache_disable",
        "vae_cache_clear_each_epoch",
    ],
    "S3 (type aws)": S3,
    "Hugging Face datasets (type huggingface)": [
        "dataset_name",
        "dataset_config",
        "split",
        "revision",
        "image_column",
        "caption_column",
        "fallback_caption_column",
    ],
    "CSV of addresses (type csv)": ["csv_file", "csv_caption_column", "csv_cache_dir"],
}


def code(value: object) -> str:
    """A value as Markdown code, safe in a table cell."""
    return f"`{value}`".replace("|", "\\|")


def kind(schema: Mapping[str, Any], within: Mapping[str, Any]) -> str:
    """A field's type and range in words, from its JSON schema.

    Args:
        schema: Of the field.
        within: The schema it stands in, for references.
    """
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return "object" if within["$defs"][name].get("type") == "object" else kind(within["$defs"][name], within)
    if "anyOf" in schema:
        parts = [kind(part, within) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(dict.fromkeys(parts))
    if "enum" in schema:
        return ", ".join(code(value) for value in schema["enum"])
    if "const" in schema:
        return code(schema["const"])
    if schema.get("type") == "array" and "items" in schema:
        return f"list of {kind(schema['items'], within)}"
    plain = {
        "boolean": "`true`, `false`", "integer": "whole number", "number": "number", "array": "list", "object": "object",
        "string": {"path": "path", "password": "text"}.get(schema.get("format", ""), "text"),
    }  # fmt: skip
    return plain.get(schema.get("type", ""), "JSON") + bounds(schema)


def bounds(schema: Mapping[str, Any]) -> str:
    """The range of a number, with a leading blank, or nothing."""
    low = [f"≥ {schema['minimum']:g}"] if "minimum" in schema else []
    low += [f"> {schema['exclusiveMinimum']:g}"] if "exclusiveMinimum" in schema else []
    high = [f"≤ {schema['maximum']:g}"] if "maximum" in schema else []
    high += [f"< {schema['exclusiveMaximum']:g}"] if "exclusiveMaximum" in schema else []
    return f" {', '.join(low + high)}" if low + high else ""


def default(cls: type[Section], key: str) -> str:
    """A field's default as it would stand in JSON; nothing where there is none."""
    value = cls.model_fields[key].default
    if value is PydanticUndefined or value is None or value in ("", ()):
        return ""
    if key == "validation_resolution":
        return code(",".join(f"{w}x{h}" for w, h in value))
    if isinstance(value, tuple):
        return code(",".join(map(str, value)))
    if isinstance(value, bool):
        return code(str(value).lower())
    return code(f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else value)


def rows(cls: type[Section], keys: Iterable[str], anchor: str = "") -> list[str]:
    """Table lines of these fields.

    Raises:
        SystemExit: A field has no description.
    """
    schema = cls.model_json_schema()
    lines = ["| key | values | default | what it does |", "|---|---|---|---|"]
    for key in keys:
        text = cls.model_fields[key].description
        if not text:
            raise SystemExit(f"{cls.__name__}.{key} has no description")
        plain = re.sub(r"([<>*|])", r"\\\1", text)
        said = default(cls, key) or ("as the option" if anchor and key in FILLED_FROM_OPTIONS else "")
        if anchor and cls.model_fields[key].is_required() and not said:
            said = "needed" if key != "cache_dir_vae" else ""
        mark = f'<a id="{anchor}{key}"></a>'
        lines.append(
            f"| {mark}`{key}` | {WORDS.get(key) or kind(schema['properties'][key], schema)} | {said} | {plain} |"
        )
    return lines


def options() -> str:
    """docs/options.md."""
    parts = [(PROSE / "options.md").read_text(encoding="utf-8").rstrip()]
    for cls in sections().values():
        title = (cls.__doc__ or "").strip().splitlines()[0].rstrip(".")
        parts.append("\n".join([f"## {title}", "", *rows(cls, cls.model_fields)]))
    return "\n\n".join(parts) + "\n"


def dataloader() -> str:
    """docs/dataloader.md.

    Raises:
        SystemExit: A field stands in no group.
    """
    grouped = [key for keys in GROUPS.values() for key in keys]
    missing = set(ImageDataset.model_fields) - set(grouped) - DERIVED
    if missing:
        raise SystemExit(f"GROUPS lacks {', '.join(sorted(missing))}")
    parts = [(PROSE / "dataloader.md").read_text(encoding="utf-8").rstrip(), "## Pictures: `image` and `eval`"]
    for title, keys in GROUPS.items():
        parts.append("\n".join([f"### {title}", "", *rows(ImageDataset, keys, "image-")]))
    for title, cls, anchor in (
        ("### Keys of `parquet`", CaptionTableOptions, "parquet-"),
        ("### Keys of `caption_shuffle`", CaptionShuffle, "shuffle-"),
        ("## Masks: `conditioning`", MaskDataset, "mask-"),
        ("## Text embeds: `text_embeds`", TextEmbedsDataset, "text-"),
    ):
        keys = [
            key for key in cls.model_fields if key not in DERIVED and (cls is not TextEmbedsDataset or key not in S3)
        ]
        parts.append("\n".join([title, "", *rows(cls, keys, anchor)]))
    parts.append("With type `aws`, or a `cache_dir` on S3, the `aws_*` keys above act here too.")
    return "\n\n".join(parts) + "\n"


def _sentence(known: Known) -> str:
    return re.sub(r"([<>*|])", r"\\\1", known.text)


def _status(known: Known) -> str:
    later = known.text.startswith("not yet")
    return "not yet" if known.status == "refused" and later else known.status


def migration() -> str:
    """The table of every key, and of values with other names."""
    own = {key for cls in sections().values() for key in cls.model_fields}
    lines = ["| key | | how, or why |", "|---|---|---|"]
    for key in sorted({*own - departures.OURS, *CATALOGUE, *ALIASES}):
        if key in own:
            changed = departures.CHANGED.get(key)
            link = f"[`{key}`](options.md#{key})"
            lines.append(f"| {link} | {'changed' if changed else 'supported'} | {changed or ''} |")
        elif key in CATALOGUE:
            text = _sentence(CATALOGUE[key]).removeprefix("not yet: ")
            lines.append(f"| `{key}` | {_status(CATALOGUE[key])} | {text} |")
        else:
            lines.append(f"| `{key}` | supported | older name of [`{ALIASES[key]}`](options.md#{ALIASES[key]}) |")
    lines += ["", "### Keys of datasets", "", "| key | | how, or why |", "|---|---|---|"]
    fields = {key for key in ImageDataset.model_fields if key not in DERIVED}
    for key in sorted({*fields, *FIELD_CATALOGUE, *FIELD_ALIASES, "text_cache_ondemand", "text_cache_disable"}):
        changed = departures.CHANGED_FIELDS.get(key)
        if key in fields:
            link = f"[`{key}`](dataloader.md#image-{key})"
            lines.append(f"| {link} | {'changed' if changed else 'supported'} | {changed or ''} |")
        elif key in FIELD_CATALOGUE:
            lines.append(f"| `{key}` | {_status(FIELD_CATALOGUE[key])} | {_sentence(FIELD_CATALOGUE[key])} |")
        elif key in FIELD_ALIASES:
            lines.append(f"| `{key}` | supported | another spelling of `{FIELD_ALIASES[key]}` |")
        else:
            lines.append(f"| `{key}` | supported | in an entry of `text_embeds` |")
    lines += ["", "### Values that are answered with another", "", "| key | value | instead |", "|---|---|---|"]
    for table in (OTHER_VALUES, OTHER_FIELD_VALUES):
        for key, values in table.items():
            by_text: dict[str, list[str]] = {}
            for value, text in values.items():
                by_text.setdefault(text, []).append(value)
            lines += [f"| `{key}` | {', '.join(map(code, names))} | {text} |" for text, names in by_text.items()]
    return "\n".join(lines)


def migrating() -> str:
    """docs/migrating.md, its table made anew."""
    before, _, rest = (ROOT / "docs" / "migrating.md").read_text(encoding="utf-8").partition(MARK)
    after = rest.partition(MARK)[2]
    return f"{before}{MARK}\n\n{migration()}\n\n{MARK}{after}"


PAGES = {"options.md": options, "dataloader.md": dataloader, "migrating.md": migrating}


def main(arguments: list[str]) -> int:
    """Write the pages, or with ``--check`` say which are stale."""
    stale = []
    for name, make in PAGES.items():
        file = ROOT / "docs" / name
        text = make()
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            stale.append(name)
            if "--check" not in arguments:
                file.write_text(text, encoding="utf-8")
    if stale:
        print(("stale: " if "--check" in arguments else "wrote ") + ", ".join(stale))
    return 1 if stale and "--check" in arguments else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
