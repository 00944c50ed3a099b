"""Search for the recipe that teaches the pocket Sana the bundled "blueprint" style best.

What it does: trains many recipes side by side and measures each as ``ev`` and ``score`` of the prototype did.
Recipes of one batch size and length are trained as one stack: parameters get a leading "model" dimension and
``torch.func.vmap`` runs them all in one call, because a single pocket is far too small to keep a GPU busy. Every
recipe sees the same draws (pictures, noise, sigma quantiles, dropped captions) for the same training seed. Sampling
goes through ``SanaPipeline`` itself.

The 24 eval pictures are split by sorted file name: even positions are the CHOOSE half, odd ones the REPORT half.
Stages, all on the choose half but the last:

1. ``grid``: the prototype recipe, and one or two changes to it at a time;
2. ``mutate``: rounds of random changes to the best recipes so far, until the time is up;
3. ``confirm``: the best few again, with fresh training seeds, each at several guidance values and sampling steps;
4. ``report``: the one chosen recipe and the prototype, again with fresh training seeds, on the report half.

"Best" means: of the recipes with mean held-out loss and palette inside the limits, the highest mean top-1. Top-1 is
among the 12 pictures of the half, so chance is 1/12.

Run: ``python bench/pocket_search.py --out results.jsonl [--seconds 300] [--workers 5]`` on CUDA;
rehearse on a CPU with ``python bench/pocket_search.py --rehearse``. Needs diffusers and transformers; fp32, no TF32.
``--only '{"batch": 8, "steps": 300}'`` skips the search and reports that recipe (changes to the prototype) at once.
"""

import argparse
import dataclasses
import itertools
import json
import math
import random
import statistics
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import SanaPipeline
from PIL import Image
from torch import nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

POCKET = Path(__file__).resolve().parent.parent / "simpletuner" / "pocket"
TOKENS = 32
SAMPLING_SEEDS = (0, 1, 2)
HALVES = {"choose": slice(0, None, 2), "report": slice(1, None, 2)}
LOSS_LIMIT, PALETTE_LIMIT = 0.94, 0.89  # on the choose half: a little inside the targets of 0.95 and 0.88


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One recipe; the defaults are the prototype's.

    ``entries`` are dataset entries over the same folder: "128" as it is, "96s" resized to 96 px, "112r" a random
    112 px crop (one fixed box a picture). optimi's AdamW is torch's arithmetic in fp32, with other defaults:
    betas 0.9 and 0.99, eps 1e-6.
    """

    batch: int = 8
    steps: int = 200
    lr: float = 5e-4
    schedule: str = "linear"  # constant, linear, cosine, polynomial
    power: float = 2.0  # polynomial only
    end: float = 0.1  # final learning rate as a share of the first
    warmup: int = 20
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01
    ema: float = 0.98
    clip: float = 1.0
    dropout: float = 0.1
    density: str = "logit_normal"  # or uniform
    scale: float = 1.1
    offset: float = 0.3
    shift: float = 1.0
    entries: tuple = ("128",)

    def lr_at(self, step):
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        left = {
            "constant": 1.0,
            "linear": 1 - done,
            "cosine": 0.5 * (1 + math.cos(math.pi * done)),
            "polynomial": (1 - done) ** self.power,
        }[self.schedule]
        return self.lr * (left if self.schedule == "constant" else self.end + (1 - self.end) * left)

    def changes(self):
        """What differs from the prototype."""
        ours, base = dataclasses.asdict(self), dataclasses.asdict(Recipe())
        return {k: v for k, v in ours.items() if v != base[k]}


def seconds_on_two_cores(recipe):
    """Training time on two CPU cores, from 0.094, 0.14, 0.19 and 0.27 s a step at batch 4, 8, 16 and 24."""
    return recipe.steps * {2: 0.08, 4: 0.094, 8: 0.14, 12: 0.17, 16: 0.19, 24: 0.27}[recipe.batch]


# --- the pictures and the metrics -----------------------------------------------------------------------------------


def read_pictures(folder):
    """Pictures in -1..1 and captions, by sorted file name."""
    files = sorted(folder.glob("*.png"))
    pictures = [np.asarray(Image.open(f).convert("RGB").resize((128, 128))).copy() for f in files]
    tensor = torch.stack([torch.from_numpy(p).permute(2, 0, 1).float() / 127.5 - 1 for p in pictures])
    return tensor, [f.with_suffix(".txt").read_text().strip() for f in files]


def hist(x):
    """Style features: the joint colour histogram (4x4x4) of each picture, normalised to sum to 1."""
    q = ((x.clamp(-1, 0.999) + 1) * 2).long()
    q = q[:, 0] * 16 + q[:, 1] * 4 + q[:, 2]
    return torch.stack([torch.bincount(v.flatten(), minlength=64).float() / v.numel() for v in q])


class Stack(nn.Module):
    """Many transformers of one architecture, behind the interface of one.

    The batch it is called with is [copies of (model, prompts)]: the pipeline's guidance puts two copies behind one
    another, each holding every model's prompts in turn.
    """

    def __init__(self, transformer, count):
        super().__init__()
        self.one = transformer
        self.names = [n for n, _ in transformer.named_parameters()]
        self.shapes = [p.shape for _, p in transformer.named_parameters()]
        flat = torch.cat([p.detach().flatten() for _, p in transformer.named_parameters()])
        self.flat = flat.repeat(count, 1)
        self.count, self.config = count, transformer.config
        self.dtype, self.device = torch.float32, self.flat.device

    def named(self, flat):
        parts = flat.split([s.numel() for s in self.shapes], dim=1)
        return {n: p.view(self.count, *s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}

    def predict(self, flat, noisy, embeds, mask, times):
        """Velocities; every argument has a leading model dimension."""

        def one(params, x, e, m, t):
            inputs = {"encoder_hidden_states": e, "encoder_attention_mask": m, "timestep": t * 1000}
            return functional_call(self.one, params, (x,), {**inputs, "return_dict": False})[0]

        if self.count == 1:
            params = {n: p[0] for n, p in self.named(flat).items()}
            return one(params, noisy[0], embeds[0], mask[0], times[0])[None]
        with sdpa_kernel(SDPBackend.MATH):
            return vmap(one)(self.named(flat), noisy, embeds, mask, times)

    def forward(self, hidden_states, encoder_hidden_states, encoder_attention_mask, timestep, **_):
        copies = hidden_states.shape[0] // (self.count * self.prompts)

        def fold(x):  # [copies * model * prompts] -> [model, copies * prompts]
            x = x.view(copies, self.count, self.prompts, *x.shape[1:])
            return x.transpose(0, 1).flatten(1, 2)

        with torch.no_grad():
            out = self.predict(
                self.flat,
                fold(hidden_states),
                fold(encoder_hidden_states),
                fold(encoder_attention_mask),
                fold(timestep) / 1000,
            )
        out = out.view(self.count, copies, self.prompts, *out.shape[2:]).transpose(0, 1)
        return (out.flatten(0, 2),)


class Bench:
    """The pocket, its pictures and everything that is the same for all recipes."""

    def __init__(self):
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        self.pipe = SanaPipeline.from_pretrained(POCKET / "model", torch_dtype=torch.float32).to(self.device)
        self.pipe.set_progress_bar_config(disable=True)
        self.transformer = self.pipe.transformer.requires_grad_(False)
        self.pipe.vae.requires_grad_(False).eval()
        self.pipe.text_encoder.requires_grad_(False).eval()
        self.factor = self.pipe.vae.config.scaling_factor
        self.train_pictures, captions = read_pictures(POCKET / "blueprint" / "train")
        self.eval_pictures, self.eval_captions = read_pictures(POCKET / "blueprint" / "eval")
        self.embeds, self.mask = self.read(captions)
        self.no_embeds, self.no_mask = self.read([""])
        self.eval_embeds, self.eval_mask = self.read(self.eval_captions)
        self.eval_pictures = self.eval_pictures.to(self.device)
        self.eval_latents = self.encode(self.eval_pictures)
        self.prompts = self.pipe.encode_prompt(self.eval_captions, True, device=self.device, max_sequence_length=TOKENS)
        self.latents = {}

    @torch.no_grad()
    def read(self, captions):
        t = self.pipe.tokenizer(
            captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        ).to(self.device)
        return self.pipe.text_encoder(t.input_ids, attention_mask=t.attention_mask)[0], t.attention_mask

    @torch.no_grad()
    def encode(self, pictures):
        parts = [self.pipe.vae.encoder(p.to(self.device)) for p in pictures.split(1024)]
        return torch.cat(parts) * self.factor

    def entry_latents(self, entry):
        """Latents of the training pictures as a dataset entry (see Recipe) presents them."""
        if entry not in self.latents:
            pictures, edge = self.train_pictures, int(entry.rstrip("rs"))
            if entry.endswith("r"):
                boxes = random.Random(entry)
                spare = 128 - edge
                pictures = torch.stack(
                    [
                        p[
                            :,
                            (y := boxes.randint(0, spare)) : y + edge,
                            (x := boxes.randint(0, spare)) : x + edge,
                        ]
                        for p in pictures
                    ]
                )
            elif edge != 128:
                pictures = F.interpolate(pictures, (edge, edge), mode="bicubic", antialias=True).clamp(-1, 1)
            self.latents[entry] = self.encode(pictures)
        return self.latents[entry]

    # --- training ---------------------------------------------------------------------------------------------------

    def plan(self, entries, batch, steps, seeds):
        """Entry of each step, and picture numbers [seed, step, batch]: epochs without replacement."""
        count = len(self.train_pictures)
        per_entry = -(-count // batch)
        order, epochs = [], -(-steps // (per_entry * len(entries)))
        for epoch in range(epochs):
            ordered = [e for e in entries for _ in range(per_entry)]
            random.Random(f"order/{epoch}").shuffle(ordered)
            order += ordered
        draws = []
        for seed in seeds:
            queues = {}
            for e in entries:
                picks = []
                for epoch in range(epochs):
                    chosen = random.Random(f"{seed}/{e}/{epoch}")
                    lacking = per_entry * batch - count
                    picks += chosen.sample(range(count), count) + chosen.sample(range(count), lacking)
                queues[e] = iter(picks)
            draws.append([[next(queues[e]) for _ in range(batch)] for e in order[:steps]])
        return order[:steps], torch.tensor(draws)

    def train(self, recipes, seeds):
        """Train every recipe with every seed; the Stack holds the averaged weights, recipe-major.

        The recipes agree in batch, steps and entries.
        """
        batch, steps, entries = recipes[0].batch, recipes[0].steps, recipes[0].entries
        rows = [r for r in recipes for _ in seeds]
        stack = Stack(self.transformer, len(rows))
        weights = stack.flat.clone().requires_grad_(True)
        average, first, second = stack.flat, torch.zeros_like(weights), torch.zeros_like(weights)
        device, n_rec = self.device, len(recipes)

        def column(values, *more):
            return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, *more)

        def per_row(values):  # [seed, ...] -> [recipe * seed, ...]
            return values.repeat(n_rec, *[1] * (values.dim() - 1))

        beta1, beta2 = column([r.beta1 for r in rows]), column([r.beta2 for r in rows])
        eps, decay_w = column([r.eps for r in rows]), column([r.weight_decay for r in rows])
        clip, dropout = column([r.clip for r in rows]), column([r.dropout for r in rows])
        scale, offset = column([r.scale for r in rows]), column([r.offset for r in rows])
        shift = column([r.shift for r in rows])
        uniform = column([float(r.density == "uniform") for r in rows])
        order, picks = self.plan(entries, batch, steps, seeds)
        picks = picks.to(device)
        generators = [torch.Generator(device).manual_seed(1000 + s) for s in seeds]
        for step in range(steps):
            latents = self.entry_latents(order[step])
            shape = (batch, *latents.shape[1:])
            noise = per_row(torch.stack([torch.randn(shape, generator=g, device=device) for g in generators]))
            normal = per_row(torch.stack([torch.randn(batch, generator=g, device=device) for g in generators]))
            chance = per_row(torch.stack([torch.rand(batch, generator=g, device=device) for g in generators]))
            index = per_row(picks[:, step])
            sigma = torch.sigmoid(scale * normal + offset)
            sigma = torch.where(uniform > 0, torch.special.ndtr(normal), sigma)
            sigma = (shift * sigma / (1 + (shift - 1) * sigma)).clamp(1e-3, 1 - 1e-3)
            dropped = (chance < dropout)[:, :, None]
            embeds = torch.where(dropped[..., None], self.no_embeds, self.embeds[index])
            mask = torch.where(dropped, self.no_mask, self.mask[index])
            clean, s = latents[index], sigma[:, :, None, None, None]
            found = stack.predict(weights, (1 - s) * clean + s * noise, embeds, mask, sigma)
            losses = (found - (noise - clean)).pow(2).flatten(1).mean(1)
            (grad,) = torch.autograd.grad(losses.sum(), weights)
            with torch.no_grad():
                grad *= (clip / (grad.norm(dim=1, keepdim=True) + 1e-6)).clamp(max=1)
                rate = column([r.lr_at(step) for r in rows])
                weights.mul_(1 - rate * decay_w)
                first.lerp_(grad, 1 - beta1)
                second.mul_(beta2).add_(grad.square_().mul_(1 - beta2))
                bottom = (second / (1 - beta2 ** (step + 1))).sqrt_().add_(eps)
                weights.sub_((first / bottom).mul_(rate / (1 - beta1 ** (step + 1))))
                decay = column([min(r.ema, (1 + step) / (10 + step)) for r in rows])
                average.lerp_(weights, 1 - decay)
        return stack

    # --- measuring --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def held_out(self, stack, half):
        """The prototype's ``ev`` on a half, for each model: fixed noise and times."""
        z, n = self.eval_latents[half], stack.count
        generator, total = torch.Generator().manual_seed(1), 0.0
        for t in (0.1, 0.3, 0.5, 0.7, 0.9):
            noise = torch.randn(z.shape, generator=generator).to(self.device)
            args = [(1 - t) * z + t * noise, self.eval_embeds[half], self.eval_mask[half]]
            args.append(torch.full((len(z),), t, device=self.device))
            found = stack.predict(stack.flat, *[a.expand(n, *a.shape) for a in args])
            total = total + (found - (noise - z)).pow(2).flatten(1).mean(1) / 5
        return total.tolist()

    @torch.no_grad()
    def sample(self, stack, guidance, steps, seed):
        """Pictures [model, prompt, 3, 128, 128] through the pipeline, rounded to bytes as saved ones are."""
        n, count = stack.count, len(self.eval_captions)
        stack.prompts, self.pipe.transformer = count, stack
        embeds, mask, no_embeds, no_mask = self.prompts
        start = torch.randn((count, 8, 16, 16), generator=torch.Generator("cpu").manual_seed(seed))
        try:
            latents = self.pipe(
                prompt=None,
                negative_prompt=None,
                prompt_embeds=embeds.repeat(n, 1, 1),
                prompt_attention_mask=mask.repeat(n, 1),
                negative_prompt_embeds=no_embeds.repeat(n, 1, 1),
                negative_prompt_attention_mask=no_mask.repeat(n, 1),
                latents=start.repeat(n, 1, 1, 1).to(self.device),
                height=128,
                width=128,
                num_inference_steps=steps,
                guidance_scale=guidance,
                use_resolution_binning=False,
                complex_human_instruction=None,
                max_sequence_length=TOKENS,
                output_type="latent",
            ).images
        finally:
            self.pipe.transformer = self.transformer
        pictures = torch.cat([self.pipe.vae.decoder(z / self.factor) for z in latents.split(512)])
        pictures = ((pictures / 2 + 0.5).clamp(0, 1) * 255).round() / 127.5 - 1
        return pictures.view(n, count, 3, 128, 128)

    @torch.no_grad()
    def score(self, pictures, half):
        """The prototype's ``score`` on a half, for each model: palette match and top-1."""
        n, real = len(pictures), self.eval_latents[half].flatten(1)
        pictures = pictures[:, half]
        h, r = hist(pictures.flatten(0, 1)).view(n, -1, 64), hist(self.eval_pictures[half])
        palette = torch.minimum(h, r.mean(0)).sum(2).mean(1)
        made = self.encode(pictures.flatten(0, 1)).reshape(n, len(real), -1)
        made = F.normalize(made - made.mean(1, keepdim=True), dim=2)
        alike = made @ F.normalize(real - real.mean(0), dim=1).T
        top1 = (alike.argmax(2) == torch.arange(len(real), device=self.device)).float().mean(1)
        return palette.tolist(), top1.tolist()

    def measure(self, stack, halves, settings, sampling_seeds):
        """For each half and model: its loss, and for each (guidance, steps) a list of (palette, top-1), one a seed."""
        found = {h: [{"loss": v, "scores": {}} for v in self.held_out(stack, HALVES[h])] for h in halves}
        for guidance, steps in settings:
            for seed in sampling_seeds:
                pictures = self.sample(stack, guidance, steps, seed)
                for half in halves:
                    palette, top1 = self.score(pictures, HALVES[half])
                    for row, p, t in zip(found[half], palette, top1, strict=True):
                        row["scores"].setdefault(f"{guidance:g}/{steps}", []).append((p, t))
        return found


# --- the search -----------------------------------------------------------------------------------------------------

BENCH = None


def work(task):
    """Train and measure one stack, in a worker process."""
    global BENCH
    if BENCH is None:
        torch.set_num_threads(2)
        BENCH = Bench()
    start, training = time.time(), 0.0
    recipes, seeds, halves = task["recipes"], task["seeds"], task["halves"]
    # A CPU gains nothing from stacking: there every model is trained by itself.
    shares = [(recipes, seeds)] if BENCH.device == "cuda" else [([r], [s]) for r in recipes for s in seeds]
    found = {half: [] for half in halves}
    try:
        for share in shares:
            began = time.time()
            stack = BENCH.train(*share)
            training += time.time() - began
            for half, runs in BENCH.measure(stack, halves, task["settings"], task["sampling_seeds"]).items():
                found[half] += runs
    except torch.OutOfMemoryError:
        if len(recipes) == 1:
            raise
        found = None
    stack = None
    if BENCH.device == "cuda":
        torch.cuda.empty_cache()  # the workers share one GPU
    if found is None:
        cut = len(recipes) // 2
        return work({**task, "recipes": recipes[:cut]}) + work({**task, "recipes": recipes[cut:]})
    rows = []
    for half, (i, recipe) in itertools.product(halves, enumerate(recipes)):
        rows.append({"stage": task["stage"], "half": half, "recipe": dataclasses.asdict(recipe)})
        rows[-1]["training_seeds"] = list(seeds)
        rows[-1]["runs"] = found[half][i * len(seeds) : (i + 1) * len(seeds)]
    print(
        f"  {task['stage']}: {len(recipes) * len(seeds)} models x {recipes[0].steps} steps of "
        f"{recipes[0].batch}: {training:.0f}s training, {time.time() - start - training:.0f}s measuring",
        flush=True,
    )
    return rows


def summary(row, setting):
    """(loss, palette, top-1, sd of the top-1 of single runs, sd of the means of training seeds)."""
    scores = [run["scores"][setting] for run in row["runs"]]
    tops = [t for run in scores for _, t in run]
    by_seed = [statistics.mean(t for _, t in run) for run in scores]
    return {
        "loss": statistics.mean(run["loss"] for run in row["runs"]),
        "loss_sd": statistics.pstdev([run["loss"] for run in row["runs"]]),
        "palette": statistics.mean(p for run in scores for p, _ in run),
        "palette_sd": statistics.pstdev([p for run in scores for p, _ in run]),
        "top1": statistics.mean(tops),
        "top1_sd": statistics.pstdev(tops),
        "top1_seed_sd": statistics.pstdev(by_seed),
    }


def merit(row, setting):
    """Top-1, less a heavy penalty for each limit missed."""
    s = summary(row, setting)
    return s["top1"] - 3 * max(0, s["loss"] - LOSS_LIMIT) - 3 * max(0, PALETTE_LIMIT - s["palette"])


def line(row, setting):
    s = summary(row, setting)
    recipe = Recipe(**{**row["recipe"], "entries": tuple(row["recipe"]["entries"])})
    return (
        f"top-1 {s['top1']:.3f} (sd {s['top1_sd']:.3f}, of seeds {s['top1_seed_sd']:.3f}) "
        f"palette {s['palette']:.3f}±{s['palette_sd']:.3f} loss {s['loss']:.3f}±{s['loss_sd']:.3f} "
        f"guidance/steps {setting} {seconds_on_two_cores(recipe):.0f}s {json.dumps(recipe.changes())}"
    )


def grid():
    """The prototype, and recipes one or two changes away from it."""
    base = [{}, {"steps": 400, "lr": 2e-4}, {"steps": 400, "lr": 1e-4}]
    for batch, steps in ((8, 100), (8, 200), (8, 300), (4, 400), (16, 150)):
        for lr, dropout, shift in itertools.product((1.5e-4, 3e-4, 6e-4), (0.1, 0.4, 0.7), (1.0, 2.0, 4.0)):
            base.append({"batch": batch, "steps": steps, "lr": lr, "dropout": dropout, "shift": shift})
    changes = [{"scale": 1.0, "offset": 0.0, "shift": 3.0}, {"scale": 0.6}, {"density": "uniform"}]
    changes += [{"ema": e} for e in (0.5, 0.9)] + [{"weight_decay": w} for w in (0.0, 0.1, 1.0)]
    changes += [
        {"beta2": 0.99, "eps": 1e-6},
        {"beta2": 0.95},
        {"clip": 0.3},
        {"beta1": 0.95},
        {"warmup": 100},
    ]
    changes += [{"schedule": "constant"}, {"schedule": "cosine", "end": 0.0}]
    changes += [{"schedule": "polynomial", "power": 2.0, "end": 0.0}]
    changes += [{"entries": ("128", "112r")}, {"entries": ("128", "112s", "144s")}]
    base += [{"dropout": 0.4, **change} for change in changes]
    return list(dict.fromkeys(Recipe(**b) for b in base))


LENGTHS = [
    (4, 200),
    (4, 400),
    (8, 100),
    (8, 150),
    (8, 200),
    (8, 300),
    (8, 400),
    (16, 100),
    (16, 150),
    (16, 200),
]
CHOICES = {
    "lr": [5e-5, 1e-4, 1.5e-4, 2e-4, 3e-4, 4e-4, 5e-4, 7e-4, 1e-3],
    "schedule": ["constant", "linear", "cosine", "polynomial"],
    "end": [0.0, 0.1],
    "warmup": [0, 20, 50, 100],
    "beta1": [0.9, 0.95],
    "beta2": [0.95, 0.99, 0.999],
    "weight_decay": [0.0, 0.01, 0.1, 0.3, 1.0],
    "ema": [0.5, 0.9, 0.95, 0.98],
    "clip": [0.3, 1.0],
    "dropout": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
    "scale": [0.7, 1.0, 1.1, 1.4],
    "offset": [-0.3, 0.0, 0.3, 0.6],
    "shift": [0.7, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
}


def mutate(recipe, dice):
    """A recipe with one to three values changed."""
    values = dataclasses.asdict(recipe)
    for _ in range(dice.randint(1, 3)):
        key = dice.choice(["length", *CHOICES, "lr", "shift", "dropout"])
        if key == "length":
            values["batch"], values["steps"] = dice.choice(LENGTHS)
        else:
            values[key] = dice.choice(CHOICES[key])
    return Recipe(**values)


def stacks(recipes, seeds, samples, stage, halves, settings):
    """Tasks: recipes that can be trained side by side, at most ``samples`` pictures a step."""
    groups = {}
    for recipe in recipes:
        groups.setdefault((recipe.batch, recipe.steps, recipe.entries), []).append(recipe)
    tasks = []
    for (batch, _, _), members in groups.items():
        size = max(1, samples // (batch * len(seeds)))
        size = -(-len(members) // -(-len(members) // size))  # equal shares
        for i in range(0, len(members), size):
            tasks.append({"recipes": members[i : i + size], "seeds": seeds, "stage": stage, "halves": halves})
            tasks[-1] |= {"settings": settings, "sampling_seeds": SAMPLING_SEEDS}
    return sorted(tasks, key=lambda t: -t["recipes"][0].steps)  # the longest first


def search(args, run):
    """Stages 1 to 3; returns the chosen recipe and its sampling setting."""
    deadline = args.began + args.seconds
    first, dice = (3.5, 20), random.Random(args.seed)
    key = f"{first[0]:g}/{first[1]}"
    rows, seen = [], set()
    recipes = [Recipe(batch=2, steps=2), Recipe(batch=2, steps=2, lr=1e-3)] if args.rehearse else grid()
    if args.start and Path(args.start).exists():
        recipes = [Recipe(**{**c, "entries": tuple(c.get("entries", ("128",)))}) for c in read_lines(args.start)]
        recipes = list(dict.fromkeys([Recipe(), *recipes]))
    stage = "grid"
    while recipes:
        seen |= set(recipes)
        began = time.time()
        rows += run(stacks(recipes, args.seeds, args.samples, stage, ["choose"], [first]))
        took = time.time() - began
        rows.sort(key=lambda r: -merit(r, key))
        print(f"== {stage}: {len(rows)} recipes, {time.time() - args.began:.0f}s", flush=True)
        for row in rows[:12]:
            print(line(row, key), flush=True)
        stage = "mutate"
        room = (deadline - time.time()) / max(took / len(recipes), 1e-6)  # recipes there is time for
        if args.rehearse or room < 20:
            break
        parents = [as_recipe(r) for r in rows[:10]]
        recipes, tries = [], 0
        while len(recipes) < min(args.round, room * 0.8) and tries < 10_000:
            tries += 1
            child = mutate(dice.choice(parents), dice)
            if child not in seen and child not in recipes and seconds_on_two_cores(child) <= args.cpu_seconds:
                recipes.append(child)
    settings = [first] if args.rehearse else [(g, s) for g in (3.5, 4.5, 6.0, 8.0) for s in (20, 30)]
    finalists = [as_recipe(r) for r in rows[: args.finalists]]
    found = run(stacks(finalists, args.confirm_seeds, args.samples, "confirm", ["choose"], settings))
    ranked = [(merit(r, k), k, r) for r in found for k in r["runs"][0]["scores"]]
    ranked.sort(key=lambda x: -x[0])
    print(f"== confirm, {time.time() - args.began:.0f}s", flush=True)
    for _, k, row in ranked[:30]:
        print(line(row, k), flush=True)
    # The recipe by its mean merit over the settings, then the setting: less to be lucky at.
    by_recipe = {}
    for m, k, r in ranked:
        by_recipe.setdefault(as_recipe(r), []).append((m, k))
    for recipe, marks in sorted(by_recipe.items(), key=lambda x: -statistics.mean(m for m, _ in x[1])):
        mean = statistics.mean(m for m, _ in marks)
        print(f"mean merit over settings {mean:.3f} {json.dumps(recipe.changes())}", flush=True)
    chosen = max(by_recipe, key=lambda r: statistics.mean(m for m, _ in by_recipe[r]))
    guidance, steps = max(by_recipe[chosen])[1].split("/")
    return chosen, (float(guidance), int(steps))


def as_recipe(row):
    return Recipe(**{**row["recipe"], "entries": tuple(row["recipe"]["entries"])})


def read_lines(path):
    return [json.loads(text) for text in Path(path).read_text().splitlines() if text.strip()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="pocket_search.jsonl")
    parser.add_argument("--seconds", type=float, default=300, help="stop mutating after this long")
    parser.add_argument("--workers", type=int, default=5)
    parser.add_argument("--samples", type=int, default=512, help="pictures a step in one stack")
    parser.add_argument("--round", type=int, default=120, help="recipes in a round of mutations")
    parser.add_argument("--finalists", type=int, default=8)
    parser.add_argument("--cpu-seconds", type=float, default=95, help="longest training on two CPU cores")
    parser.add_argument("--start", help="JSON lines of changes to the prototype, instead of the grid")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="JSON of changes to the prototype: report it, search nothing")
    parser.add_argument("--guidance", type=float, default=3.5, help="with --only")
    parser.add_argument("--sampling-steps", type=int, default=20, help="with --only")
    parser.add_argument("--rehearse", action="store_true", help="two recipes of two steps, in this process")
    args = parser.parse_args()
    args.began = time.time()
    args.seeds, args.confirm_seeds, report_seeds = (0, 1, 2), tuple(range(10, 16)), (20, 21, 22)
    if args.rehearse:
        args.seeds = args.confirm_seeds = report_seeds = (0, 1)
    pool = None
    if not args.rehearse:
        pool = torch.multiprocessing.get_context("spawn").Pool(args.workers)

    def run(tasks):
        rows = []
        for got in map(work, tasks) if pool is None else pool.imap_unordered(work, tasks):
            rows += got
            with open(args.out, "a", encoding="utf-8") as f:
                f.writelines(json.dumps(row) + "\n" for row in got)
        return rows

    if args.only:
        changes = json.loads(args.only)
        chosen = Recipe(**{**changes, "entries": tuple(changes.get("entries", ("128",)))})
        setting = (args.guidance, args.sampling_steps)
    else:
        chosen, setting = search(args, run)
    print(f"== chosen: {json.dumps(dataclasses.asdict(chosen))} guidance {setting[0]:g} steps {setting[1]}")
    print("== report: first the chosen recipe, then the prototype")
    base = Recipe(batch=2, steps=2) if args.rehearse else Recipe()
    for recipe in dict.fromkeys([chosen, base]):
        settings = list(dict.fromkeys([setting, (3.5, 20)]))
        for row in run(stacks([recipe], report_seeds, args.samples, "report", list(HALVES), settings)):
            for key in row["runs"][0]["scores"]:
                print(f"{row['half']}: {line(row, key)}", flush=True)
    print(f"== done, {time.time() - args.began:.0f}s")
    if pool:
        pool.terminate()


if __name__ == "__main__":
    main()
