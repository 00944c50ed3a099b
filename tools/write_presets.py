"""Write the packaged presets: ordinary configuration files, one folder each, from the few things in which they differ.

    python tools/write_presets.py            # writes simpletuner/config/examples/<name>/
    python tools/write_presets.py --check    # only says whether they are up to date (a test asks)

What is taught (subject, style, domain) decides data, steps and dropout; the method (full, lora, lokr) decides learning
rate, batch and memory. Learning rates of adapters against full rank are those found on the pocket model
(bench/learning_rates.py, figures in bench/RESULTS.md), carried over as ratios to the guide's 1e-5 for full rank.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parent.parent / "simpletuner"
EXAMPLES, POCKET = PACKAGE / "config" / "examples", PACKAGE / "pocket"
FILES = ("config.json", "multidatabackend.json", "user_prompt_library.json")
MODEL = "terminusresearch/sana-1.6b-1024px"
LYCORIS = {
    "algo": "lokr",
    "multiplier": 1.0,
    "linear_alpha": 1,
    "factor": 16,
    "full_matrix": True,
    "apply_preset": {"target_module": ["Attention", "GLUMBConv"], "module_algo_map": {"Attention": {"factor": 8}}},
}

Entries = list[dict[str, Any]]

METHODS: dict[str, dict[str, Any]] = {
    "full": {"model_type": "full", "learning_rate": 1e-5, "train_batch_size": 4},
    "lora": {
        "model_type": "lora",
        "lora_type": "standard",
        "lora_rank": 32,
        "lora_alpha": 32,
        "learning_rate": 1e-4,
        "train_batch_size": 4,
    },
    "lokr": {
        "model_type": "lora",
        "lora_type": "lycoris",
        "lycoris_config": "{here}/lycoris_config.json",
        "learning_rate": 1e-4,
        "train_batch_size": 4,
    },
}

# An adapter learns more slowly than full rank, so it gets more steps and an average of its own.
_LONGER = {
    "optimizer": "torch-adamw",
    "lr_scheduler": "polynomial",
    "lr_power": 1.0,
    "lr_end": 4e-5,
    "max_train_steps": 150,
    "checkpoint_step_interval": 50,
    "use_ema": True,
    "ema_decay": 0.98,
    "ema_validation": "ema_only",
}
POCKET_ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {**_LONGER, "lora_rank": 16, "lora_alpha": 16, "peft_lora_target_modules": "all", "learning_rate": 2e-3},
    "lokr": {**_LONGER, "learning_rate": 2e-3},
}

KINDS: dict[str, dict[str, Any]] = {
    "subject": {
        "max_train_steps": 1000,
        "checkpoint_step_interval": 200,
        "validation_step_interval": 200,
        "caption_dropout_probability": 0.05,
        "validation_prompt": "a photo of sks dog in a garden",
    },
    "style": {
        "max_train_steps": 2000,
        "checkpoint_step_interval": 500,
        "validation_step_interval": 500,
        "caption_dropout_probability": 0.1,
        "validation_prompt": "a lighthouse in the style of the pictures",
    },
    "domain": {
        "max_train_steps": 10000,
        "checkpoint_step_interval": 1000,
        "validation_step_interval": 1000,
        "caption_dropout_probability": 0.1,
        "lr_scheduler": "cosine",
        "validation_prompt": "a photo of what the pictures show",
    },
}

PROMPTS = {
    "subject": {"close_up": "a close-up photo of sks dog, soft daylight", "dog": "a photo of a dog in a garden"},
    "style": {"portrait": "a portrait of an old man in the style of the pictures", "plain": "a photo of a lighthouse"},
    "domain": {"close_up": "a close-up of what the pictures show", "wide": "a wide view of what the pictures show"},
}


def config(kind: str, method: str) -> dict[str, Any]:
    """config.json of one preset."""
    return {
        "model_family": "sana",
        "pretrained_model_name_or_path": MODEL,
        "output_dir": f"output/sana-{kind}-{method}",
        "data_backend_config": "{here}/multidatabackend.json",
        "resume_from_checkpoint": "latest",
        "seed": 42,
        "mixed_precision": "bf16",
        "gradient_checkpointing": True,
        "optimizer": "optimi-adamw",
        "lr_scheduler": "constant_with_warmup",
        "lr_warmup_steps": 100,
        "use_ema": True,
        **METHODS[method],
        **KINDS[kind],
        "user_prompt_library": "{here}/user_prompt_library.json",
        "validation_resolution": "1024x1024",
        "validation_guidance": 4.5,
        "validation_num_inference_steps": 20,
    }


def datasets(kind: str, method: str) -> Entries:
    """multidatabackend.json of one preset."""
    common = {"type": "local", "crop": False, "resolution_type": "pixel_area"}

    def pictures(name: str, resolution: int, folder: str, **more: Any) -> dict[str, Any]:
        cache = f"cache/vae/sana/{name}"
        place = {"instance_data_dir": f"datasets/{folder}", "cache_dir_vae": cache, "resolution": resolution}
        return {"id": name, **common, **place, **more}

    entries: Entries = []
    if kind == "subject":
        words = {"caption_strategy": "instanceprompt", "instance_prompt": "a photo of sks dog", "repeats": 20}
        entries += [pictures("subject", 1024, "subject", **words), pictures("subject-512", 512, "subject", **words)]
        if method != "full":  # adapters keep what the base model makes of the same kind of thing
            likeness = {"caption_strategy": "textfile", "is_regularisation_data": True}
            entries.append(pictures("others-of-its-kind", 1024, "others-of-its-kind", **likeness, disabled=True))
    else:
        repeats = 4 if kind == "style" else 0
        entries.append(pictures(kind, 1024, kind, caption_strategy="textfile", repeats=repeats))
        if kind == "style":
            entries.append(pictures("style-512", 512, kind, caption_strategy="textfile", repeats=repeats))
    text = {"id": "text-embeds", "type": "local", "dataset_type": "text_embeds", "default": True}
    return [*entries, {**text, "cache_dir": "cache/text/sana"}]


def pocket(method: str) -> dict[str, Any]:
    """The embedded example with an adapter: the same files, other weights trained."""
    content = {name: json.loads((POCKET / name).read_text(encoding="utf-8")) for name in FILES}
    adapter = {
        k: v
        for k, v in METHODS[method].items()
        if k not in ("learning_rate", "train_batch_size", "lora_rank", "lora_alpha")
    }
    config = {**content["config.json"], **adapter, **POCKET_ADAPTERS[method], "output_dir": f"output/pocket-{method}"}
    own = {
        "data_backend_config": "{here}/multidatabackend.json",
        "user_prompt_library": "{here}/user_prompt_library.json",
    }
    content["config.json"] = {**config, **own}
    if method == "lokr":
        content["lycoris_config.json"] = {
            **LYCORIS,
            "factor": 4,
            "apply_preset": {"target_module": ["Attention", "GLUMBConv"]},
        }
    return content


def files() -> dict[Path, str]:
    """Everything to write, by path."""
    presets: dict[str, dict[str, Any]] = {f"pocket-{method}": pocket(method) for method in POCKET_ADAPTERS}
    for kind in KINDS:
        for method in METHODS:
            content: dict[str, Any] = dict(
                zip(FILES, (config(kind, method), datasets(kind, method), PROMPTS[kind]), strict=True)
            )
            if method == "lokr":
                content["lycoris_config.json"] = LYCORIS
            presets[f"sana-{kind}-{method}"] = content
    return {
        EXAMPLES / preset / name: json.dumps(value, indent=2).replace("{here}", f"{{example:{preset}}}") + "\n"
        for preset, content in presets.items()
        for name, value in content.items()
    }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    stale = {p: t for p, t in files().items() if not p.is_file() or p.read_text(encoding="utf-8") != t}
    if parser.parse_args().check:
        raise SystemExit("\n".join(map(str, stale)) if stale else 0)
    for path, text in stale.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    print(f"{len(stale)} files written")


if __name__ == "__main__":
    main()
