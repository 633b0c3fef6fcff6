"""The recipe that made the embedded teacher: `python -m lfi_pipeline.teachers.scenes_coca.recipe --out DIR`.

Trains open_clip's own `CoCa` from `config.json` on freshly rendered `scenes` of `TAUGHT` domains (a seed of its own,
never the seed of a demo data set) with open_clip's `CoCaLoss`, contrastive and captioning. Domain `emblem` and every font
but OpenMoji's are held out of it, so that teacher and student can be scored on drawings that neither has seen. Everything
needed to use the result is written to DIR: config.json, bpe.txt.gz, model.safetensors (half precision), recipe.json (this
recipe, the losses and the sha256 of the weights). With `--dual` it makes a teacher of the other family: open_clip's `CLIP`,
whose blocks begin as the embedded teacher's and whose text tower is new, saved so that `--teacher local-dir:DIR` takes it.

The tiny teacher uses the tokenizer class of the large ones, so that word merging runs the same code for both.
Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units", ACL 2016, algorithm 1.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import itertools
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from open_clip.loss import ClipLoss, CoCaLoss
from safetensors.torch import save_file
from torch.nn import functional as F

from lfi_pipeline.core.runtime import progress_bar, tell
from lfi_pipeline.data.augment import mirrored_caption
from lfi_pipeline.data.scenes.write import render_scene
from lfi_pipeline.teachers.registry import load_coca_folder


def learn_merges(texts: Iterable[str], limit: int) -> list[tuple[str, str]]:
    """Return up to `limit` merges, most frequent pair first; ties go to the lexically smaller pair."""
    counts = Counter(word for text in texts for word in text.lower().replace(",", " ").split())
    words = {(*word[:-1], word[-1] + "</w>"): count for word, count in counts.items()}
    merges: list[tuple[str, str]] = []
    while len(merges) < limit:
        pairs: Counter[tuple[str, str]] = Counter()
        for symbols, count in words.items():
            for pair in itertools.pairwise(symbols):
                pairs[pair] += count
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {_merge(symbols, best): count for symbols, count in words.items()}
    return merges


def write_merges(merges: Iterable[tuple[str, str]], path: Path) -> None:
    """Write merges as CLIP does: gzip, a header line, one pair a line (same bytes for the same merges)."""
    text = "\n".join(["#version: lfi", *(" ".join(pair) for pair in merges)])
    path.write_bytes(gzip.compress(text.encode("utf-8"), mtime=0))


def _merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    merged: list[str] = []
    i = 0
    while i < len(symbols):
        if symbols[i : i + 2] == pair:
            merged.append(symbols[i] + symbols[i + 1])
            i += 2
        else:
            merged.append(symbols[i])
            i += 1
    return tuple(merged)


TAUGHT = (*("colour", "outline", "grey", "photo") * 2, *("varied",) * 5, *("icon",) * 7)
"""Domains that scenes take in turns."""
_SPLIT = "teacher"  # part of the scene's seed: no train or val scene of any data set is ever seen here


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that determines the weights, up to the arithmetic of the machine."""

    seed: int = 18733
    scenes: int = 24_000
    epochs: int = 14
    batch_size: int = 128
    learning_rate: float = 1.5e-3
    warmup_steps: int = 300
    weight_decay: float = 0.1
    caption_weight: float = 2.0
    contrastive_weight: float = 1.0
    largest_shift: int = 4  # pixels, reflected at the border
    merges: int = 500
    object_scale: float = 1.2


def _render(job: tuple[int, int, int, float]) -> tuple[npt.NDArray[np.uint8], tuple[str, ...]]:
    seed, index, size, object_scale = job
    domain = TAUGHT[index % len(TAUGHT)]
    scene = render_scene(seed=seed, split=_SPLIT, index=index, size=size, domain=domain, object_scale=object_scale)
    return scene.image, scene.captions


def train(recipe: Recipe, out: Path, *, init: Path | None = None, dual: bool = False) -> None:
    """Render, train one phase and write the teacher's files to `out`.

    Args:
        recipe: of this phase.
        out: where the files go.
        init: directory of the phase before, whose weights and vocabulary are taken over; None starts anew.
        dual: make a dual encoder, of the embedded teacher's blocks.
    """
    torch.manual_seed(recipe.seed)
    out.mkdir(parents=True, exist_ok=True)
    size = json.loads((Path(__file__).parent / "config.json").read_text(encoding="utf-8"))["vision_cfg"]["image_size"]
    jobs = [(recipe.seed, index, size, recipe.object_scale) for index in range(recipe.scenes)]
    with ProcessPoolExecutor() as pool:
        rendered = list(progress_bar(pool.map(_render, jobs, chunksize=64), total=len(jobs), desc="render"))
    images = torch.from_numpy(np.stack([image for image, _ in rendered])).permute(0, 3, 1, 2)
    captions = [texts for _, texts in rendered]
    phases: list[dict[str, Any]] = []
    weights = out / ("open_clip_model.safetensors" if dual else "model.safetensors")
    if dual:
        model, tokenizer = _dual(out)
    elif init is None:
        model, tokenizer = _fresh(captions, recipe, out)
    else:
        for name in ("config.json", "bpe.txt.gz"):
            shutil.copyfile(init / name, out / name)
        model, tokenizer = load_coca_folder(init)
        phases = json.loads((init / "recipe.json").read_text(encoding="utf-8"))["phases"]
    # tokens[mirror][caption][scene]
    tokens = [
        torch.stack([tokenizer([turn(texts[i]) for texts in captions]) for i in range(len(captions[0]))])
        for turn in (str, mirrored_caption)
    ]
    losses = _fit(model, images, torch.stack(tokens), recipe, weights)
    record = {
        "phases": [*phases, {"recipe": asdict(recipe), "final_losses": losses}],
        "domains": sorted(set(TAUGHT)),
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "versions": {"torch": torch.__version__, "open_clip": open_clip.__version__},
    }
    (out / "recipe.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _fresh(captions: Sequence[tuple[str, ...]], recipe: Recipe, out: Path) -> tuple[Any, open_clip.SimpleTokenizer]:
    """Learn the vocabulary, write it and the config to `out`, and build an untrained model."""
    config = json.loads((Path(__file__).parent / "config.json").read_text(encoding="utf-8"))
    write_merges(learn_merges((text for texts in captions for text in texts), recipe.merges), out / "bpe.txt.gz")
    context = config["text_cfg"]["context_length"]
    tokenizer = open_clip.SimpleTokenizer(str(out / "bpe.txt.gz"), context_length=context)
    for part in ("text_cfg", "multimodal_cfg"):
        config[part]["vocab_size"] = tokenizer.vocab_size
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    model = open_clip.CoCa(**{key: value for key, value in config.items() if key != "custom_text"})
    projection = model.text_decoder.text_projection  # open_clip leaves this one uninitialised
    torch.nn.init.normal_(projection, std=projection.shape[0] ** -0.5)
    return model, tokenizer


def _dual(out: Path) -> tuple[Any, open_clip.SimpleTokenizer]:
    """Write the config to `out`, and build a dual encoder whose blocks and patches are the embedded teacher's."""
    coca: Any = load_coca_folder(Path(__file__).parent)[0]
    own = json.loads((Path(__file__).parent / "config.json").read_text(encoding="utf-8"))
    vision = {name: own["vision_cfg"][name] for name in ("image_size", "patch_size", "width", "head_width", "layers")}
    text = {name: own["text_cfg"][name] for name in ("context_length", "width", "heads", "layers")}
    config = {"embed_dim": own["embed_dim"], "vision_cfg": vision, "text_cfg": text | {"vocab_size": 49408}}
    (out / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}), "utf-8")
    model = open_clip.CLIP(**config, output_dict=True)
    begun = {name: value for name, value in coca.visual.state_dict().items() if name != "proj"}
    model.visual.load_state_dict(begun, strict=False)  # its attentional pooler is the CoCa's alone
    return model, open_clip.SimpleTokenizer(context_length=text["context_length"])


def _fit(model: Any, images: torch.Tensor, tokens: torch.Tensor, recipe: Recipe, weights: Path) -> dict[str, float]:
    """Train in place and save after every epoch; returns the last epoch's mean losses.

    images uint8 [S, 3, H, W]; tokens int64 [mirror 2, captions C, S, T].
    """
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.98))
    steps_per_epoch = len(images) // recipe.batch_size
    steps = recipe.epochs * steps_per_epoch
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1.0, (step + 1) / recipe.warmup_steps) * 0.5 * (1 + np.cos(np.pi * step / steps)),
    )
    writes = isinstance(model, open_clip.CoCa)
    criterion = CoCaLoss(recipe.caption_weight, recipe.contrastive_weight) if writes else ClipLoss()
    mean = torch.tensor(open_clip.OPENAI_DATASET_MEAN).view(3, 1, 1) * 255
    std = torch.tensor(open_clip.OPENAI_DATASET_STD).view(3, 1, 1) * 255
    generator = torch.Generator().manual_seed(recipe.seed)
    size, shift = images.shape[-1], recipe.largest_shift
    totals = torch.zeros(2)
    for epoch in range(recipe.epochs):
        totals.zero_()
        began = time.monotonic()
        order = torch.randperm(len(images), generator=generator)
        for step in progress_bar(range(steps_per_epoch), desc=f"epoch {epoch + 1}/{recipe.epochs}"):
            rows = order[step * recipe.batch_size : (step + 1) * recipe.batch_size]
            flip = torch.rand(len(rows), generator=generator) < 0.5
            which = torch.randint(tokens.shape[1], (len(rows),), generator=generator)
            text = tokens[flip.long(), which, rows]
            text = text[:, : int((text != 0).sum(1).max())] if writes else text  # CLIP takes whole contexts alone
            batch = (images[rows] - mean) / std
            batch = torch.where(flip.view(-1, 1, 1, 1), batch.flip(-1), batch)
            top, left = torch.randint(2 * shift + 1, (2,), generator=generator).tolist()
            batch = F.pad(batch, (shift,) * 4, mode="reflect")[..., top : top + size, left : left + size]
            with torch.autocast("cpu", torch.bfloat16):
                output = model(batch, text)
            losses = criterion(**{n: v.float() if v.is_floating_point() else v for n, v in output.items()})
            contrastive, caption = losses if writes else (losses, torch.zeros(()))
            (contrastive + caption).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, float(np.log(100)))
            totals += torch.tensor([contrastive.item(), caption.item()])
        contrastive_mean, caption_mean = (totals / steps_per_epoch).tolist()
        save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, weights)
        tell(
            f"epoch {epoch + 1}: contrastive {contrastive_mean:.3f}, caption {caption_mean:.3f}, "
            f"{time.monotonic() - began:.0f} s"
        )
    return {"contrastive": contrastive_mean, "caption": caption_mean}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="directory of an earlier phase to go on from")
    for name, value in asdict(Recipe()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value)
    parser.add_argument("--dual", action="store_true", help="make a dual encoder of the embedded teacher's blocks")
    options = vars(parser.parse_args())
    train(out=options.pop("out"), init=options.pop("init"), dual=options.pop("dual"), recipe=Recipe(**options))
