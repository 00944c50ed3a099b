"""A proposal becomes files: the preset's own, with what was decided put into them. Pure but for reading the preset."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simpletuner.cli.configuring.answers import Answers
from simpletuner.cli.configuring.pictures import Pictures
from simpletuner.cli.configuring.proposal import POCKET, SHARE, Proposal, Shape, validation_share
from simpletuner.config.catalogue import FLAVOURS
from simpletuner.config.examples import EXAMPLES
from simpletuner.data.captions import CaptionRules, captions_for

CONFIG, DATASETS, PROMPTS, LYCORIS = (
    "config.json",
    "multidatabackend.json",
    "user_prompt_library.json",
    "lycoris_config.json",
)
_PLACEHOLDERS = {"subject": "sks dog", "style": "the pictures", "domain": "what the pictures show"}
_CAPTIONS = {
    "subject": "a photo of {}",
    "style": "a picture in the style of {}",
    "domain": "{}",
}  # one for all pictures
# What stands for a name that a person was asked for and left out: rare words, or none.
_NAMELESS = {"subject": "sks thing", "style": "sks", "domain": "a picture"}
# What people teach most; a name that ends in one of these says what its subject is.
_KINDS = (
    "dog cat puppy kitten animal horse bird parrot rabbit hamster fox turtle fish lizard person man woman boy girl child baby "
    "toy doll bear robot car bike bicycle motorcycle boat house building chair lamp table sofa vase mug cup bottle bag "
    "backpack shoe hat dress watch clock guitar plant flower tree statue mask logo character monster dragon"
)
KINDS = frozenset(_KINDS.split())
# The words that people take, by custom, for what only their subject is called; docs and presets here say sks.
RARE = frozenset(["sks", "ohwx", "zwx", "shs"])
_LONGEST = 200  # letters of a caption that becomes a prompt


def preset(name: str, file: str = CONFIG) -> Any:
    """A file of a packaged example."""
    example = EXAMPLES[name]
    return json.loads((example.folder / example.files[file]).read_text(encoding="utf-8"))


def words(answers: Answers, pictures: Pictures) -> str:
    """What the pictures show: as a person said, else the name of their folder."""
    if answers.kind == "subject" and answers.what and not answers.words:
        said = f"sks {answers.what}"
    else:
        said = answers.words or pictures.folder.resolve().name.replace("-", " ").replace("_", " ")
    return " ".join(said.split()) or "the pictures"


def nameless(kind: str, what: str) -> str:
    """Words for pictures that nobody named: of a subject with what it is, where that was said."""
    return f"sks {what}" if what else _NAMELESS[kind]


def kind_of_thing(answers: Answers) -> str:
    """What a subject is, as a person said, or as its name says; "" where that cannot be told.

    A name says it with a last word that most know, else with what follows a rare word ("sks red teapot"). Of two words the
    second may be a name as well ("sks pipo"), and a name without a rare word may be one altogether ("old Mr Brown").
    """
    said, named = " ".join((answers.what or "").split()), (answers.words or "").split()
    if said or not named:
        return said
    if named[-1].lower() in KINDS:
        return named[-1]
    return " ".join(named[1:]) if named[2:] and named[0].lower() in RARE else ""


def files(proposal: Proposal, answers: Answers, pictures: Pictures, shape: Shape, folder: Path) -> dict[str, Any]:
    """Name → content of all files that go into ``folder``."""
    named = words(answers, pictures)
    library = prompts(proposal, answers, pictures, named)
    entries = datasets(proposal, answers, pictures, named)
    config = options(proposal, answers, named, shape, folder)
    if "own_caption" in library and not answers.validation_prompt and untold(proposal, answers, pictures):
        config["validation_prompt"] = library.pop("own_caption")
    if not answers.validation:
        config = {
            key: value for key, value in config.items() if key not in ("user_prompt_library", "validation_prompt")
        }
        config["validation_disable"] = True
    else:
        _within_reason(config, answers, entries, len(library) + 1, shape)
    made: dict[str, Any] = {CONFIG: config, DATASETS: entries, PROMPTS: library}
    if proposal.value("method") == "lokr":
        made[LYCORIS] = preset(proposal.preset, LYCORIS)
    return made


def captions_read(proposal: Proposal, pictures: Pictures) -> list[str]:
    """Captions that the run reads from files or their names; none where there is one for all pictures."""
    strategy = proposal.value("captions")
    if strategy == "filename":
        return [captions_for(one.path, CaptionRules("filename"))[0] for one in pictures.usable]
    return pictures.captions if strategy == "textfile" else []


def untold(proposal: Proposal, answers: Answers, pictures: Pictures) -> bool:
    """Whether a subject's name is in no caption that the run reads: a prompt with it would show nothing of the run."""
    read, named = captions_read(proposal, pictures), words(answers, pictures).lower()
    return answers.kind == "subject" and bool(read) and not any(named in caption.lower() for caption in read)


def options(proposal: Proposal, answers: Answers, named: str, shape: Shape, folder: Path) -> dict[str, Any]:
    """config.json."""
    config: dict[str, Any] = dict(preset(proposal.preset))
    for key, value in config.items():  # the files beside it
        if isinstance(value, str) and value.startswith(f"{{example:{proposal.preset}}}/") and value.endswith(".json"):
            config[key] = (folder / value.rpartition("/")[2]).as_posix()
    weights = str(proposal.value("model"))
    if weights != POCKET:
        config.pop("pretrained_model_name_or_path")
        config |= {"model_flavour": weights} if weights in FLAVOURS else {"pretrained_model_name_or_path": weights}
        config["validation_resolution"] = f"{shape.native}x{shape.native}"
    for key in ("train_batch_size", "mixed_precision", "optimizer", "learning_rate", "max_train_steps", "output_dir"):
        config[key] = proposal.value(key)
    if config["optimizer"] != preset(proposal.preset)["optimizer"]:
        config.pop("optimizer_config", None)
    config |= proposal.settings
    if "memory" in config:
        config.pop("gradient_checkpointing", None)  # memory auto decides
    if proposal.fill_up:
        config["allow_dataset_oversubscription"] = True
    steps = int(config["max_train_steps"])
    if weights == POCKET and steps > int(preset(proposal.preset)["max_train_steps"]):
        config["checkpoint_step_interval"] = steps // 4
        config.setdefault("validation_step_interval", steps // 4)
    for key in ("checkpoint_step_interval", "validation_step_interval", "lr_warmup_steps"):
        if key in config and steps < int(preset(proposal.preset)["max_train_steps"]):
            most = max(1, steps // (10 if key == "lr_warmup_steps" else 4))
            config[key] = min(int(config[key]), most)
    if answers.validation_step_interval is not None:
        config["validation_step_interval"] = answers.validation_step_interval
    if answers.validation_prompt or "validation_prompt" not in config:
        config["validation_prompt"] = answers.validation_prompt or _CAPTIONS[answers.kind].format(named)
    else:
        config["validation_prompt"] = _named(str(config["validation_prompt"]), answers, named)
    return config


def datasets(proposal: Proposal, answers: Answers, pictures: Pictures, named: str) -> list[dict[str, Any]]:
    """multidatabackend.json: the preset's entries over the folder of pictures, one for each edge that is taught."""
    template = "full" if proposal.preset.startswith(POCKET) else proposal.value("method")
    there = [entry for entry in preset(f"sana-{answers.kind}-{template}", DATASETS) if not entry.get("disabled")]
    texts = [entry for entry in there if entry.get("dataset_type") == "text_embeds"]
    caches = "cache/pocket" if proposal.value("model") == POCKET else "cache/sana"
    strategy = proposal.value("captions")
    entries: list[dict[str, Any]] = []
    pictured = [entry for entry in there if entry not in texts]
    if len(proposal.edges) > len(pictured):
        raise ValueError(f"the preset has {len(pictured)} datasets of pictures for the sizes {proposal.edges}")
    # A preset has an entry for each size that is ever taught: where the model does not know the smaller, it is left out.
    for entry, edge in zip(pictured[: len(proposal.edges)], proposal.edges, strict=True):
        name = f"{answers.kind}-{edge}" if entries else answers.kind
        made = {**entry, "id": name, "instance_data_dir": str(pictures.folder), "resolution": edge}
        made["cache_dir_vae"] = f"{caches}/vae/{name}"
        made["caption_strategy"] = strategy
        made.pop("instance_prompt", None)
        if strategy == "instanceprompt":
            made["instance_prompt"] = _CAPTIONS[answers.kind].format(named)
        made["repeats"] = max(int(entry["repeats"]), proposal.repeats)
        entries.append(made)
    return [*entries, *({**entry, "cache_dir": f"{caches}/text"} for entry in texts)]


def told(entry: Mapping[str, Any]) -> str:
    """A sentence on the captions of a dataset."""
    strategy = entry["caption_strategy"]
    if strategy == "textfile":
        return "Captions: the text file beside each picture"
    of = "the names of the files" if strategy == "filename" else f"{entry['instance_prompt']!r} for every picture"
    return f"Captions: {of}"


def prompts(proposal: Proposal, answers: Answers, pictures: Pictures, named: str) -> dict[str, str]:
    """The prompt library: the preset's prompts in a person's words, and a caption of the pictures."""
    library = {
        nickname: _named(text, answers, named)
        for nickname, text in preset(f"sana-{answers.kind}-full", PROMPTS).items()
        # The preset's dog is of the subject's kind, but not the subject; below it is what a person's subject is.
        if nickname != "dog" and not untold(proposal, answers, pictures)
    }
    kind = kind_of_thing(answers)
    if answers.kind == "subject" and kind and kind != named:
        library["of_its_kind"] = f"a photo of {'an' if kind[0].lower() in 'aeiou' else 'a'} {kind} in a garden"
    own = sorted(filter(None, captions_read(proposal, pictures)), key=lambda caption: len(caption) > _LONGEST)
    if own:  # the first that is no longer than a prompt, else the beginning of the first
        library["own_caption"] = _beginning(own[0])
    return library


def _beginning(caption: str) -> str:
    """So many whole words as a prompt may have letters for."""
    if len(caption) <= _LONGEST:
        return caption
    return caption[: _LONGEST + 1].rpartition(" ")[0].rstrip(" ,;:") or caption[:_LONGEST]


def _named(text: str, answers: Answers, named: str) -> str:
    """A preset's prompt with a person's words in place of its own."""
    return text.replace(_PLACEHOLDERS[answers.kind], named)


def _within_reason(
    config: dict[str, Any], answers: Answers, entries: list[dict[str, Any]], drawn: int, shape: Shape
) -> None:
    """Validate less often where it would take a good part of the time; what a person set stays."""
    while share(config, entries, drawn, shape) > SHARE and answers.validation_step_interval is None:
        interval = int(config.get("validation_step_interval") or 0)
        if config.get("use_ema") and config.get("ema_validation") != "ema_only":
            config["ema_validation"] = "ema_only"
        elif 0 < interval < int(config["max_train_steps"]):
            config["validation_step_interval"] = interval * 2
        else:
            config.pop("validation_step_interval", None)  # start and end
            break


def share(config: Mapping[str, Any], entries: list[dict[str, Any]], drawn: int, shape: Shape) -> float:
    """How long validation takes against training; see ``validation_share``."""
    edges = [int(entry["resolution"]) for entry in entries if "resolution" in entry]
    tokens = sum(edge**2 for edge in edges) / len(edges)
    return validation_share(config, drawn, tokens, float(shape.native**2), int(config["max_train_steps"]))
