"""What a person answers; what is left out is proposed. The keys of ``--answers``, named as in config.json where they are there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from simpletuner.config.checking import Findings, build, nearest
from simpletuner.config.optimizer_names import OptimizerName
from simpletuner.config.section import Positive, Section
from simpletuner.errors import ConfigError, Problem

Kind = Literal["subject", "style", "domain"]
Method = Literal["full", "lora", "lokr"]
Captions = Literal["textfile", "filename", "instanceprompt"]
Precision = Literal["bf16", "fp16", "no"]


def _gibibytes(value: Any) -> Any:
    """none, no and cpu are a card of 0 GiB; "24 GiB" is 24."""
    word = str(value).strip().lower()
    return 0 if word in ("none", "no", "cpu") else word.removesuffix("gib").removesuffix("gb").strip()


class Answers(Section):
    """Answers; None asks for a proposal."""

    kind: Kind = Field("subject", description="What to teach: subject, style or domain.")
    pictures: Path = Field(Path("datasets/my-pictures"), description="Folder with the pictures; it is only read.")
    words: str | None = Field(None, description="What the pictures show, in a few words; a subject's name: sks dog.")
    what: str | None = Field(
        None, description="What kind of thing a subject is, in a word or two: dog; of a subject only."
    )
    captions: Captions | None = Field(
        None, description="Where captions come from: textfile, filename or instanceprompt."
    )
    card: Annotated[float, BeforeValidator(_gibibytes), Field(ge=0.0)] | None = Field(
        None, description="GiB of the card that will train, or none; the card of this machine."
    )
    model: str | None = Field(None, description="A flavour, pocket, a hub id, or a folder with a pipeline.")
    method: Method | None = Field(None, description="full, lora or lokr.")
    resolution: Positive | None = Field(None, description="Edge in pixels.")
    train_batch_size: Positive | None = Field(None, description="Pictures per step.")
    mixed_precision: Precision | None = Field(None, description="bf16, fp16 or no.")
    optimizer: OptimizerName | None = Field(None, description="Optimizer.")
    learning_rate: Annotated[float, Field(gt=0.0)] | None = Field(None, description="Peak learning rate.")
    max_train_steps: Positive | None = Field(None, description="Optimizer steps.")
    validation: bool = Field(True, description="Draw pictures while it trains.")
    validation_prompt: str | None = Field(None, description="Main prompt of these pictures.")
    validation_step_interval: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Draw every n steps; 0 at start and end only."
    )
    output_dir: Path | None = Field(None, description="Checkpoints, pictures and the trained model.")


def answers(values: Mapping[str, Any], source: str) -> Answers:
    """Checked answers.

    Args:
        values: By key.
        source: Where they came from, for messages.

    Raises:
        ConfigError: With every unknown key and wrong value.
    """
    findings = Findings()
    fields = Answers.model_fields
    for key in [key for key in values if key not in fields]:
        remedy = nearest(key, fields)
        findings.problems.append(Problem(source, key, values[key], "configure asks no such thing", remedy))
    given = {key: value for key, value in values.items() if key in fields and value is not None and value != ""}
    made = build(Answers, given, {"": source, **dict.fromkeys(given, source)}, findings)
    if isinstance(made, Answers) and made.what and made.kind != "subject":
        reason = f"only a subject is a kind of thing, and kind is {made.kind}"
        findings.problems.append(Problem(source, "what", made.what, reason, "leave it out, or use kind=subject"))
    if isinstance(made, Answers) and not made.validation:
        for key in {"validation_prompt", "validation_step_interval"} & given.keys():
            reason = "nothing is drawn, as validation is false"
            findings.problems.append(Problem(source, key, given[key], reason, "leave it out, or use validation=true"))
    if findings.problems or not isinstance(made, Answers):
        raise ConfigError(findings.problems)
    return made
