"""Choose the kind of map to extract by comparing kinds on some images of the user's own data.

With masks, a word's map scores the mean of two things: whether its peak lies in the object's mask, and the share of its
mass there. Without masks, the score is that of deletion (Petsiuk, Das, Saenko, BMVC 2018, arXiv 1806.07421, at one
size): how far <z, d> of the word (z the image's embedding, d as `settings` says) falls when the patches where its map
is greatest are painted over with the mean colour. Deletion favours maps that come from <z, d> itself, masks do not.

Kinds are compared on the same words. The kind that is taken is the cheapest whose mean is within one standard error of
the best one's, the error being that of the difference, by a bootstrap over images. Cost is counted, in floating-point
operations over those of the plain vision forward, so that every process and rerun takes the same kind.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from lfi_pipeline.core.errors import ConfigError, DatasetError, ImageReadError, UnknownNameError
from lfi_pipeline.core.io import output_errors, seal, write_atomic
from lfi_pipeline.core.runtime import OperationCounter, progress_bar, tell
from lfi_pipeline.data import Dataset, Sample
from lfi_pipeline.data.augment import WHOLE, view_image
from lfi_pipeline.data.dataset import class_mask
from lfi_pipeline.data.images import read_image
from lfi_pipeline.evaluation.grounding import mass_in_mask, peaks_in_mask
from lfi_pipeline.report.overlay import MapColumn, contact_sheet
from lfi_pipeline.targets import MapSpec, TargetStore
from lfi_pipeline.targets.commits import MANIFEST
from lfi_pipeline.targets.manifest import KindChoice, KindScore
from lfi_pipeline.targets.verify import evenly_spaced
from lfi_pipeline.targets.vocabulary import classes_of_words
from lfi_pipeline.teachers.settings import AskedWords, data_centre
from lfi_pipeline.teachers.shards import maps_of_texts
from lfi_pipeline.teachers.teacher import Teacher, normalised_images
from lfi_pipeline.teachers.text import TextSource, ViewWords, sample_words, view_words

AUTO = "auto"
RESAMPLES = 1000
DELETED = 0.2
"""Share of the patches that is painted over."""
COSTED_IMAGES, COSTED_WORDS = 4, 8
TABLE = "table.json"
"""Of `OUT.kinds/`, beside pictures of some images by every kind."""


@dataclass(frozen=True, slots=True, eq=False)
class _Batch:
    pixels: Tensor  # [B, 3, H, W], normalised
    found: list[ViewWords]
    masks: list[list[Tensor | None]]  # of each row


def choose_kind(
    teacher: Teacher,
    dataset: Dataset,
    source: TextSource,
    *,
    kinds: Sequence[str] = (),
    images: int = 200,
    words: int = 8,
    batch_size: int = 32,
    seed: int = 0,
) -> KindChoice:
    """Compare kinds of map on images spread evenly over `dataset`, and return the one to take.

    Args:
        teacher: that is to be run.
        dataset: the split that is to be extracted; its masks are used where its classes are words of the texts.
        source: of its texts.
        kinds: to compare; all of the teacher's by default.
        images: looked at, or all where there are fewer.
        words: of an image, at most.
        batch_size: images per forward pass.
        seed: of the bootstrap.

    Raises:
        UnknownNameError: unknown kind.
        ConfigError: `images`, `words` or `batch_size` is not positive; there are no masks, and `teacher` compares no
            images with texts.
        DatasetError: no image has a word.
        ImageReadError: an image cannot be read.
    """
    if min(images, words, batch_size) < 1:
        raise ConfigError(f"images, words and batch_size must be 1 or more, got {images}, {words}, {batch_size}.")
    for kind in kinds:
        if kind not in teacher.kinds:
            raise UnknownNameError("map kind", kind, teacher.kinds)
    places = evenly_spaced(np.arange(len(dataset)), images).tolist()
    samples = [dataset.samples[place] for place in places]
    batches = [
        _batch(teacher, dataset, source, samples[first : first + batch_size], words)
        for first in range(0, len(samples), batch_size)
    ]
    centre = data_centre(teacher.encode_text, dataset, source)
    by_masks = any(mask is not None for batch in batches for row in batch.masks for mask in row)
    if not by_masks and not teacher.compares:
        raise ConfigError(
            f"Without masks kinds are compared by what {teacher.identity.name} says of an image and a word, but it "
            f"compares no images with texts. Name one: {', '.join(teacher.kinds)}.",
            argument="kind",
        )
    parts: dict[str, list[npt.NDArray[np.float64]]] = {}
    chosen = kinds or teacher.kinds
    for kind in progress_bar(chosen, desc="kinds of map", unit="kind", leave=False):
        settings = teacher.map_settings(kind, centre=centre)
        parts[kind] = [_scored(teacher, batch, kind, settings, centre, by_masks) for batch in batches]
    owners = np.concatenate([part[:, 0] + i * batch_size for i, part in enumerate(parts[chosen[0]])])
    if not len(owners):
        raise DatasetError(f"{dataset.name}, split {dataset.split}, must have words in its texts, got none to compare.")
    values = {kind: np.concatenate(each) for kind, each in parts.items()}
    best = max(chosen, key=lambda kind: values[kind][:, 1].mean())
    scores = []
    for kind in chosen:
        behind = values[best][:, 1] - values[kind][:, 1]
        scores.append(
            KindScore(
                kind=kind,
                cost=_cost(teacher, batches[0], kind, teacher.map_settings(kind, centre=centre)),
                score=float(values[kind][:, 1].mean()),
                behind=float(behind.mean()),
                error=_error(behind, owners, seed),
                pointing=float(values[kind][:, 2].mean()) if by_masks else None,
                mass_in_mask=float(values[kind][:, 3].mean()) if by_masks else None,
                same_peak=_same_peak(values[kind][:, 4], owners),
            )
        )
    scores.sort(key=lambda each: each.cost)
    taken = next(each.kind for each in scores if each.behind <= each.error)
    return KindChoice(
        kind=taken,
        by="masks" if by_masks else "deletion",
        images=len(samples),
        words=len(owners),
        scores=tuple(scores),
    )


def resolve_kind(
    kind: str, teacher: Teacher, dataset: Dataset, source: TextSource, out: Path
) -> tuple[str, KindChoice | None]:
    """Return the kind that `kind` stands for: itself, the teacher's default where it is empty, or what `AUTO` chooses.

    With it comes the comparison by which it was chosen. A cache that was begun keeps both: a rerun, or another process,
    need not choose again.
    """
    if kind != AUTO or len(teacher.kinds) == 1:
        return kind if kind not in ("", AUTO) else teacher.default_kind, None
    if (out.expanduser() / MANIFEST).exists():
        store = TargetStore.open(out, require_complete=False)
        return store.spec.kind, store.manifest.choice
    choice = choose_kind(teacher, dataset, source)
    tell(choice_text(choice))
    folder = out.expanduser().absolute().with_name(f"{out.name}.kinds")
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / TABLE, seal(asdict(choice)))
        for number, picture in enumerate(kind_pictures(teacher, dataset, source, choice), start=1):
            picture.save(folder / f"{number}.png")
    tell(f"What each kind looks like: {folder}")
    return choice.kind, choice


def kind_pictures(
    teacher: Teacher, dataset: Dataset, source: TextSource, choice: KindChoice, *, images: int = 6, words: int = 4
) -> Iterator[Image.Image]:
    """Draw some images for people to judge: a row a word, a column a kind, the cheapest first, with its scores.

    Args:
        teacher, dataset, source: as `choose_kind` took them.
        choice: what it returned.
        images: how many, spread evenly.
        words: of an image, at most.
    """
    places = evenly_spaced(np.arange(len(dataset)), images).tolist()
    samples = [dataset.samples[place] for place in places]
    batch = _batch(teacher, dataset, source, samples, words)
    centre = data_centre(teacher.encode_text, dataset, source)
    made = {
        each.kind: maps_of_texts(
            teacher, batch.pixels, batch.found, kind=each.kind, layers=teacher.layers(each.kind, 1), row="emitting",
            settings=teacher.map_settings(each.kind, centre=centre),
        ).maps[:, -1].float().cpu().numpy()
        for each in choice.scores
    }  # fmt: skip
    for b, sample in enumerate(samples):
        image = read_image(dataset.root, sample.path)[0]
        names = sample_words(teacher.encode_text, source(sample), words)
        columns = [
            MapColumn(title=_column_title(each, choice), image=image, maps=made[each.kind][b, : len(names)])
            for each in choice.scores
        ]
        yield contact_sheet(image, sample.key, list(source(sample).texts), names, columns)


def _column_title(score: KindScore, choice: KindChoice) -> tuple[str, str, str]:
    taken = " (taken)" if score.kind == choice.kind else ""
    return f"{score.kind}{taken}", f"score {score.score:.3f}", f"{score.cost:.2f} forwards"


def cost_beside_default(teacher: Teacher, dataset: Dataset, source: TextSource, kind: str) -> list[str]:
    """Return a line with the cost of a kind beside the teacher's default kind; none below 1.5 times its cost."""
    if kind == teacher.default_kind:
        return []
    try:
        samples = [dataset.samples[place] for place in range(min(COSTED_IMAGES, len(dataset)))]
        batch = _batch(teacher, dataset, source, samples, COSTED_WORDS)
    except ImageReadError:
        return []
    centre = data_centre(teacher.encode_text, dataset, source)
    cost: dict[str, float] = {}
    for each in (kind, teacher.default_kind) * 2:  # the second time words are embedded already
        cost[each] = _cost(teacher, batch, each, teacher.map_settings(each, centre=centre))
    own = cost[teacher.default_kind]
    if cost[kind] < 1.5 * own:
        return []
    return [
        f"Kind {kind} takes {cost[kind]:.1f} vision forwards an image and layer, by counting; {teacher.default_kind}, this "
        f"teacher's own, takes {own:.2f}."
    ]


def choice_text(choice: KindChoice) -> str:
    """Return the choice and its scores as text, a line for each kind."""
    judged = "peak and mass in the masks" if choice.by == "masks" else "fall of the score without the top patches"
    lines = [
        f"Kinds of map on {choice.images} images, {choice.words} words, by {judged}: {choice.kind} is taken, "
        "the cheapest within one standard error of the best."
    ]
    for each in choice.scores:
        masks = "" if each.pointing is None else f", peak {each.pointing:.3f}, mass {each.mass_in_mask:.3f}"
        same = "" if each.same_peak is None else f", {each.same_peak:.3f} of word pairs peak alike"
        lines.append(
            f"  {each.kind:22} {each.cost:6.2f} vision forwards, score {each.score:.3f}, behind {each.behind:.3f} "
            f"+- {each.error:.3f}{masks}{same}"
        )
    return "\n".join(lines)


def _batch(teacher: Teacher, dataset: Dataset, source: TextSource, samples: Sequence[Sample], limit: int) -> _Batch:
    pixels = [
        view_image(read_image(dataset.root, sample.path)[0], WHOLE, teacher.image_size, teacher.interpolation)
        for sample in samples
    ]
    view_texts, masks = [], []
    for sample in samples:
        texts = source(sample)
        words = sample_words(teacher.encode_text, texts, limit)
        view_texts.append(view_words(teacher.encode_text, texts, words, "full"))
        labels: list[int] = classes_of_words(words, dataset.classes).tolist()
        masks.append([_mask(dataset, sample, label if label >= 0 else None) for label in labels])
    return _Batch(normalised_images(teacher, pixels), view_texts, masks)


def _mask(dataset: Dataset, sample: Sample, label: int | None) -> Tensor | None:
    """The union of the masks of a class's objects, bool [H, W]; None for a word that names none."""
    mask = class_mask(dataset.instances.get(sample.key, ()), label, sample.height, sample.width)
    return None if mask is None else torch.from_numpy(mask)


def _scored(
    teacher: Teacher, batch: _Batch, kind: str, settings: MapSpec, centre: tuple[str, ...], by_masks: bool
) -> npt.NDArray[np.float64]:
    """Rows [P, 5] of the batch's words: image, score, peak in mask, mass in mask, cell of the peak."""
    layers = teacher.layers(kind, 1)
    made = maps_of_texts(
        teacher, batch.pixels, batch.found, kind=kind, layers=layers, row="emitting", settings=settings
    )
    maps = made.maps[:, -1].cpu()  # [B, M, gh, gw]
    word_slots = [
        (b, slot)
        for b, row in enumerate(batch.masks)
        for slot, mask in enumerate(row)
        if (mask is not None or not by_masks) and batch.found[b].present[slot]
    ]
    rows = np.zeros((len(word_slots), 5))
    drops = _drops(teacher, batch, maps, word_slots, settings, centre) if word_slots and not by_masks else None
    for i, (b, slot) in enumerate(word_slots):
        one, mask = maps[b, slot][None], batch.masks[b][slot]
        rows[i, 0], rows[i, 4] = b, int(one.flatten().argmax())
        if mask is not None and by_masks:
            rows[i, 2] = float(peaks_in_mask(one, mask[None])[0])
            rows[i, 3] = float(mass_in_mask(one, mask[None])[0])
            rows[i, 1] = (rows[i, 2] + rows[i, 3]) / 2
        elif drops is not None:
            rows[i, 1] = float(drops[i])
    return rows


@torch.no_grad()
def _drops(
    teacher: Teacher,
    batch: _Batch,
    maps: Tensor,
    word_slots: Sequence[tuple[int, int]],
    settings: MapSpec,
    centre: tuple[str, ...],
) -> Tensor:
    """How far <z, d> falls [P] when a map's greatest patches are painted over, the same d for all kinds."""
    embeddings = AskedWords(teacher.embed_texts)
    spec = MapSpec(word_template=settings.word_template, centre=centre)
    words = [[next(text[slot] for text in batch.found[b].rows if text[slot] is not None)] for b, slot in word_slots]
    directions = embeddings.directions(words, spec, teacher.device)[0]  # [P, E]
    images = torch.tensor([b for b, _ in word_slots], device=teacher.device)
    greatest = torch.stack([maps[b, slot].flatten() for b, slot in word_slots])
    count = max(1, round(DELETED * greatest.shape[1]))
    kept = torch.ones_like(greatest).scatter_(1, greatest.topk(count).indices, 0.0).to(teacher.device)
    grid, size = maps.shape[-2:], batch.pixels.shape[-2:]
    keep = torch.nn.functional.interpolate(kept.view(-1, 1, *grid), size=tuple(size), mode="nearest")
    whole = _embedded(teacher, batch.pixels)
    falls = []
    for first in range(0, len(word_slots), len(batch.pixels)):
        part = slice(first, first + len(batch.pixels))
        without = _embedded(teacher, batch.pixels[images[part]] * keep[part])  # 0 is the mean colour
        falls.append(((whole[images[part]] - without) * directions[part]).sum(-1))
    return torch.cat(falls).cpu()


def _embedded(teacher: Teacher, pixels: Tensor) -> Tensor:
    return torch.nn.functional.normalize(teacher.encode_image(pixels).float().flatten(1), dim=-1)


def _cost(teacher: Teacher, batch: _Batch, kind: str, settings: MapSpec) -> float:
    few, texts = batch.pixels[:COSTED_IMAGES], batch.found[:COSTED_IMAGES]
    counts = []
    for run in (
        lambda: _embedded(teacher, few),
        lambda: maps_of_texts(
            teacher, few, texts, kind=kind, layers=teacher.layers(kind, 1), row="emitting", settings=settings
        ),
    ):
        counter = OperationCounter()
        with torch.no_grad(), counter:
            run()
        counts.append(counter.total)
    return counts[1] / counts[0]


def _error(differences: npt.NDArray[np.float64], owners: npt.NDArray[np.float64], seed: int) -> float:
    """Standard error of the mean difference, images drawn anew with all their words."""
    _, place = np.unique(owners, return_inverse=True)
    total, count = np.bincount(place, differences), np.bincount(place)
    drawn = np.random.default_rng(seed).integers(len(total), size=(RESAMPLES, len(total)))
    return float((total[drawn].sum(1) / count[drawn].sum(1)).std())


def _same_peak(cells: npt.NDArray[np.float64], owners: npt.NDArray[np.float64]) -> float | None:
    same = pairs = 0
    for owner in np.unique(owners):
        peaks = cells[owners == owner]
        equal = peaks[:, None] == peaks
        same += (int(equal.sum()) - len(peaks)) // 2
        pairs += len(peaks) * (len(peaks) - 1) // 2
    return same / pairs if pairs else None
