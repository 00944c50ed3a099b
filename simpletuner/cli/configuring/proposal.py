"""Facts become a proposal, with one sentence of why for each choice. Pure: asks nothing, reads nothing, writes nothing.

In: answers, what the folder holds, the card, the model's facts, and a function that says whether settings fit the card.
Out: a ``Proposal``. Learning rates, optimizers and lengths are those of the presets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from simpletuner.cli.configuring.answers import Answers, Method
from simpletuner.cli.configuring.pictures import Pictures
from simpletuner.config.catalogue import FLAVOURS
from simpletuner.errors import Row
from simpletuner.models.known_sizes import known_edges, what_it_knows
from simpletuner.wording import counted

POCKET = "pocket"
PLENTY = 20.0  # GiB from which a style is taught to all weights
SMALLEST = 8.0  # GiB from which the 1.6B is proposed
LEAST_EDGE = 640  # px: pictures below are those of a 512 px model
POCKET_STEPS = (
    400  # measured on 19 photographs of a toy: after 100 its colours, after 300 to 400 the toy; see docs/configure.md
)
MOST_VIEWS, FEWEST_STEPS = 400, 100  # of each picture, as often as the preset for 20 pictures of a style; steps in all
SHARE = 0.25  # of the training time is what validation may take unasked


# Why further settings are there.
SETTINGS: Mapping[str, str] = {
    "memory": "recomputing and VAE tiles follow the memory that is free",
    "ema_device": "the average of the weights does not fit beside them; it is slower on the CPU",
    "use_ema": "an average of the weights has no room beside them while pictures are drawn, from the CPU either",
    "optimizer_release_gradients": "no block's gradients wait for the others', which saves nearly as much as the weights take",
    "grad_clip_method": "with gradients released block by block there is no norm of them all",
    "text_encoder_1_precision": "the text encoder is the largest part while captions are encoded",
    "quantize_via": "so it never is on the card whole",
    "base_model_precision": "the base under the adapter takes a quarter",
}


@dataclass(frozen=True, slots=True)
class Machine:
    """What trains.

    Attributes:
        gib: Memory of its card; 0 without one.
        name: Of the card, "" where a person named its size.
        bf16: Whether it has bf16.
        packages: Optional packages that are there.
    """

    gib: float
    name: str = ""
    bf16: bool = True
    packages: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Shape:
    """What matters of a model: its edge in pixels and the step of bucket sides."""

    native: int
    alignment: int


@dataclass(frozen=True, slots=True)
class Choice:
    """One choice: its value, why, and whether a person made it."""

    value: Any
    why: str
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Proposal:
    """Everything that is decided.

    Attributes:
        choices: By the names of ``Answers``.
        preset: The packaged example it starts from.
        edges: At which the pictures are taught, the larger first: a dataset for each.
        settings: Further options that make it fit, by key.
        repeats: Extra passes that fill the smallest bucket.
        fill_up: ``allow_dataset_oversubscription`` is set instead.
        fits: Whether the estimate stays within the card; None where it cannot be told.
    """

    choices: Mapping[str, Choice]
    preset: str
    edges: tuple[int, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    repeats: int = 0
    fill_up: bool = False
    fits: bool | None = None

    def value(self, name: str) -> Any:
        """The value of a choice."""
        return self.choices[name].value


Fits = Callable[[Proposal], bool | None]


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to spend memory: a method, a batch, further settings, and why this batch."""

    method: Method
    batch: int
    settings: Mapping[str, Any]
    why: str


def model(answers: Answers, pictures: Pictures, machine: Machine) -> Choice:
    """Which weights to start from."""
    if answers.model:
        return Choice(answers.model, "as you said", True)
    if not machine.gib:
        return Choice(POCKET, "without a card only the embedded pocket model trains in minutes")
    if machine.gib < SMALLEST:
        return Choice("sana1.0-600m-1024", f"{machine.gib:g} GiB are few, and it has a third of the weights")
    if pictures.edge < LEAST_EDGE:
        return Choice("sana1.0-600m-512", f"most pictures are about {pictures.edge} px, and it draws at 512 px")
    return Choice("sana1.0-1.6b-1024", "the best known one: bf16 weights made for fine-tuning at 1024 px")


def method(answers: Answers, machine: Machine) -> Choice:
    """All weights, or an adapter beside them."""
    if answers.method:
        return Choice(answers.method, "as you said", True)
    if not machine.gib:
        return Choice("full", "the pocket model is so small that all its weights train quickly")
    if answers.kind == "subject":
        return Choice(
            "lora", "a few pictures of one subject need few weights, and the rest of the model stays as it is"
        )
    if answers.kind == "style" and machine.gib < PLENTY:
        return Choice("lora", f"{machine.gib:g} GiB are better spent on an adapter")
    return Choice("full", f"a {answers.kind} changes the whole picture, so all weights take part")


def ladder(answers: Answers, way: Method, batch: int, machine: Machine, first: str = "of the preset") -> Iterator[Rung]:
    """Ways from the quickest to the smallest in memory; what a person asked for stays. ``first`` says why ``batch``."""
    sizes = [answers.train_batch_size] if answers.train_batch_size else _halves(batch)
    settings: dict[str, Any] = {}
    tiers = [settings]
    if way == "full":  # an average on the CPU costs the same time at every batch, so the batch shrinks after it
        settings = {"ema_device": "cpu"}
        tiers = [{}, settings, {**settings, "optimizer_release_gradients": True, "grad_clip_method": "value"}]
        if "torchao" in machine.packages and not answers.optimizer:
            tiers.append({**tiers[-1], "optimizer": "ao-adamw8bit"})
        tiers.append({**{key: value for key, value in tiers[-1].items() if key != "ema_device"}, "use_ema": False})
    elif "torchao" in machine.packages:
        settings = {"text_encoder_1_precision": "int8-torchao", "quantize_via": "cpu"}
        tiers.append(settings)
    if way != "full" and "bitsandbytes" in machine.packages:
        tiers.append({**settings, "base_model_precision": "nf4-bnb"})
    for tier in tiers:
        for size in sizes[:1] if way == "full" and not tier else sizes:
            usual = first if size == batch else "the most that fits"
            yield Rung(way, size, tier, "as you said" if answers.train_batch_size else usual)
    if way == "full" and not answers.method:
        yield from ladder(answers, "lora", batch, machine, first)


def _halves(batch: int) -> list[int]:
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    return sizes


def preset(answers: Answers, name: str, way: Method) -> str:
    """The packaged example of a model and a method."""
    if name == POCKET:
        return POCKET if way == "full" else f"{POCKET}-{way}"
    return f"sana-{answers.kind}-{way}"


def resolution(answers: Answers, pictures: Pictures, shape: Shape) -> Choice:
    """The edge to train at."""
    if answers.resolution:
        return Choice(answers.resolution, "as you said", True)
    half = shape.native // 2
    if pictures.edge < 0.6 * shape.native and half % shape.alignment == 0:
        return Choice(half, f"most pictures are about {pictures.edge} px: {shape.native} would only enlarge them")
    return Choice(shape.native, "what the model was made for")


def precision(answers: Answers, machine: Machine, weights: str) -> Choice:
    """The dtype of the work."""
    if answers.mixed_precision:
        return Choice(answers.mixed_precision, "as you said", True)
    if weights == POCKET:
        return Choice("no", "the pocket's recipe was found in float32")
    if not machine.gib:
        return Choice("no", "a CPU gains nothing from bf16")
    if not machine.bf16:
        return Choice("no", "this card has no bf16")
    return Choice("bf16", "half the memory, and Sana is stable in it")


def propose(
    answers: Answers,
    pictures: Pictures,
    machine: Machine,
    shape: Shape,
    presets: Callable[[str], Mapping[str, Any]],
    fits: Fits,
) -> Proposal:
    """The whole proposal: the first rung of the ladder that fits, else the last.

    Args:
        answers: What a person said.
        pictures: What the folder holds.
        machine: What trains.
        shape: Of the model that ``model`` chose.
        presets: The config.json of a packaged example by its name.
        fits: Whether a proposal fits the card; None where that cannot be told.
    """
    weights, way = model(answers, pictures, machine), method(answers, machine)
    usual = presets(preset(answers, weights.value, way.value))
    theirs = int(usual["train_batch_size"])
    batch = min(theirs, pictures.count)
    first = "of the preset" if batch == theirs else f"as many as there are pictures; the preset has {theirs}"
    for rung in ladder(answers, way.value, batch, machine, first):
        chosen = _assembled(rung, answers, pictures, machine, shape, presets)
        fitting = fits(chosen)
        if fitting is not False:
            break
    return replace(chosen, fits=fitting)


def _assembled(
    rung: Rung,
    answers: Answers,
    pictures: Pictures,
    machine: Machine,
    shape: Shape,
    presets: Callable[[str], Mapping[str, Any]],
) -> Proposal:
    """The proposal of one rung."""
    weights, way = model(answers, pictures, machine), method(answers, machine)
    if rung.method != way.value:
        way = Choice(rung.method, f"training all weights does not fit into {machine.gib:g} GiB")
    edge = resolution(answers, pictures, shape)
    base = preset(answers, weights.value, rung.method)
    usual = presets(base)
    edges = taught(answers, edge.value, shape)
    smallest = min(min(pictures.buckets(one, shape.alignment).values()) for one in edges)
    several = -(-rung.batch // smallest) - 1
    optimizer = _asked(answers.optimizer, usual["optimizer"], f"of the preset {base}")
    if "optimizer" in rung.settings:
        optimizer = Choice(rung.settings["optimizer"], "its state takes a byte a weight, and memory is short")
    choices = {
        "model": weights,
        "method": way,
        "resolution": _both(edge, edges),
        "train_batch_size": Choice(rung.batch, rung.why, bool(answers.train_batch_size)),
        "mixed_precision": precision(answers, machine, weights.value),
        "optimizer": optimizer,
        "learning_rate": _asked(answers.learning_rate, usual["learning_rate"], _rate_from(weights.value, rung.method)),
        "max_train_steps": _steps(answers, usual, pictures, rung),
        "captions": captions(answers, pictures),
        "output_dir": Choice(
            str(answers.output_dir or f"output/{_slug(pictures)}-{rung.method}"),
            "as you said" if answers.output_dir else "named after the pictures",
            bool(answers.output_dir),
        ),
    }
    settings = {key: value for key, value in rung.settings.items() if key != "optimizer"}
    if machine.gib and weights.value != POCKET:
        settings["memory"] = "auto"
    rare = answers.kind == "domain" and several > 0
    return Proposal(choices, base, edges, settings, 0 if rare else several, rare)


def _asked(value: Any, usual: Any, why: str) -> Choice:
    return Choice(value, "as you said", True) if value else Choice(usual, why)


def _rate_from(weights: str, way: Method) -> str:
    """Where a learning rate comes from."""
    if weights == POCKET:
        return "the best of those tried on the pocket model"
    if way == "full":
        return "the usual one for all weights of Sana"
    return "ten times that of all weights, the best ratio on the pocket model"


def taught(answers: Answers, edge: int, shape: Shape) -> tuple[int, ...]:
    """The edges of a preset's datasets: of a subject or style half of ``edge`` too, where the model knows that size."""
    half = edge // 2
    two = answers.kind != "domain" and half % shape.alignment == 0 and half >= known_edges(shape.native)[0]
    return (edge, half) if two else (edge,)


def _both(edge: Choice, edges: tuple[int, ...]) -> Choice:
    also = [f"; every picture is trained at {half} as well, as a dataset of its own" for half in edges[1:]]
    return replace(edge, why=edge.why + "".join(also))


def captions(answers: Answers, pictures: Pictures) -> Choice:
    """Where captions come from."""
    there, strategy = len(pictures.captions), pictures.strategy(answers.kind == "subject")
    if answers.captions:
        return Choice(answers.captions, "as you said", True)
    if strategy == "textfile":
        return Choice(strategy, "the text files beside the pictures: at least half of them have one")
    what = "the names of the files" if strategy == "filename" else "one for all"
    few = (
        f"; {there} of {counted(pictures.count, 'picture')} have a caption file: fewer than half, so these are not read"
    )
    return Choice(strategy, f"{what}{few if there else ''}")


def _steps(answers: Answers, usual: Mapping[str, Any], pictures: Pictures, rung: Rung) -> Choice:
    """How long: as the preset, but no picture more often than ``MOST_VIEWS``; of photographs the pocket needs more."""
    batch, pocket = rung.batch, POCKET in str(usual["pretrained_model_name_or_path"])
    usual = {**usual, "max_train_steps": POCKET_STEPS} if pocket else usual
    steps = answers.max_train_steps or int(usual["max_train_steps"])
    most = max(FEWEST_STEPS, MOST_VIEWS * pictures.count // batch)
    if pocket and not answers.max_train_steps:
        return _pocket_steps(min(most, steps), batch, pictures, rung.method)
    if not answers.max_train_steps and most < steps:
        return Choice(most, f"each picture is seen {MOST_VIEWS} times; the preset's {steps} are for more pictures")
    each = steps * batch / pictures.count
    seen = f"each picture is seen {each:.0f} times" if each >= 1 else "not every picture is seen"
    return Choice(steps, f"as you said: {seen}" if answers.max_train_steps else seen, bool(answers.max_train_steps))


def _pocket_steps(steps: int, batch: int, pictures: Pictures, way: Method) -> Choice:
    """What to expect of the pocket model, which has never seen a photograph."""
    seen = f"each picture is seen {counted(round(steps * batch / pictures.count), 'time')}"
    rough = "a rough likeness" if way == "full" else "its colours and rough shape; method full learns more of it"
    return Choice(
        steps,
        f"{seen}; 60 give a smear of the right colours, about {POCKET_STEPS} {rough}, and more learn the pictures by heart",
    )


def _slug(pictures: Pictures) -> str:
    return "-".join("".join(c if c.isalnum() else " " for c in pictures.folder.resolve().name).split()) or "pictures"


def problems(proposal: Proposal, pictures: Pictures, shape: Shape) -> Iterator[Row]:
    """Rows (key, value, reason, remedy) about what must not be; rules of config.json itself are asked elsewhere."""
    edge, batch = proposal.value("resolution"), proposal.value("train_batch_size")
    least, most = known_edges(shape.native)
    if not least <= edge <= most:
        fitting = [name for name in FLAVOURS if edge <= int(name.rpartition("-")[2]) <= 2 * edge]
        other = f", or a model for it: {', '.join(fitting)}" if fitting else ""
        yield ("resolution", edge, what_it_knows(shape.native), f"use {shape.native}{other}")
    if batch > pictures.count:
        reason = (
            f"your folder holds {counted(pictures.count, 'picture')}, so one step would see some of them more than once"
        )
        yield ("train_batch_size", batch, reason, f"use {pictures.count} or less, or add pictures")


def validation_share(config: Mapping[str, Any], prompts: int, tokens: float, drawn: float, steps: int) -> float:
    """How long validation pictures take, as a multiple of the training itself; by counts of forward passes.

    A training picture is a forward and a backward pass of twice the work; with a third more where blocks are recomputed. A
    validation picture is a pass for each sampler step, two with guidance.

    Args:
        config: Options by key.
        prompts: Drawn each time.
        tokens: Of a training picture, on average.
        drawn: Tokens of a validation picture.
        steps: Optimizer steps.
    """
    again = 4 / 3 if config.get("gradient_checkpointing", True) else 1.0
    training = 3 * again * steps * int(config["train_batch_size"]) * tokens
    interval = int(config.get("validation_step_interval") or 0)
    times = 2 + (max(0, (steps - 1) // interval) if interval else 0)
    both = 2 if config.get("use_ema") and config.get("ema_validation", "comparison") == "comparison" else 1
    passes = int(config["validation_num_inference_steps"]) * (2 if float(config["validation_guidance"]) > 1 else 1)
    return times * prompts * both * passes * drawn / training
