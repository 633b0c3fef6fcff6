"""Ask an exported model what is in pictures and where, and draw its answers."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from lfi_pipeline.core.errors import ConfigError, ImageReadError, LFIError, OutputWriteError
from lfi_pipeline.data.augment import whole_images
from lfi_pipeline.data.images import read_image
from lfi_pipeline.exporting.model_config import ModelConfig
from lfi_pipeline.report.gallery import peak
from lfi_pipeline.report.overlay import MapColumn, contact_sheet
from lfi_pipeline.students import Student
from lfi_pipeline.targets.vocabulary import canonical

EncodeText = Callable[[Sequence[str]], torch.Tensor]
"""From names to text embeddings [n, E], by the teacher's text encoder."""
Readable = str | Path | Image.Image | npt.NDArray[np.uint8]
"""A file that Pillow reads, an image, or pixels [H, W, 3]."""
SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif", ".ico")
)
INDEX = "index.html"
_BATCH = 32


class Answering(Protocol):
    """Interface of the model that gives the answers: `exporting.model.Model`."""

    config: ModelConfig
    student: Student

    def answer(
        self, images: torch.Tensor, embeddings: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return logits [B, R] and maps [B, R, rows, columns], or None, of pixels [B, 3, H, W]."""

    def embeddings(self, names: Sequence[str], encode: EncodeText | None = None) -> torch.Tensor:
        """Return the text embeddings of names."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """One answer.

    Attributes:
        name: class or word.
        score: in [0, 1]: that it is in the image, or of one-label data that it is the label.
        map: fp32 [rows, columns] over the whole image, summing to 1; None of a model with a linear head.
    """

    name: str
    score: float
    map: npt.NDArray[np.float32] | None

    @property
    def peak(self) -> tuple[float, float] | None:
        """(x, y) of the map's largest cell, from 0 to 1."""
        if self.map is None:
            return None
        x, y = peak(self.map)
        return x / 100, y / 100


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """Answers of a model for one image.

    Attributes:
        source: path of the image; "" of one that was given as pixels.
        image: as it was read; None where it could not be.
        answers: best first.
        error: why the image could not be read; "" where it could.
    """

    source: str
    image: Image.Image | None
    answers: tuple[Found, ...] = ()
    error: str = ""

    def to_plain(self) -> dict[str, Any]:
        """Return the prediction as JSON values."""
        if self.image is None:
            return {"image": self.source, "error": self.error}
        answers = [
            {
                "name": answer.name,
                "score": answer.score,
                "peak": answer.peak,
                "map": None if answer.map is None else np.round(answer.map.astype(float), 6).tolist(),
            }
            for answer in self.answers
        ]
        return {"image": self.source, "width": self.image.width, "height": self.image.height, "answers": answers}


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Return files as they are, and every image below directories, sorted.

    Raises:
        ConfigError: a path that is not there, or no image at all.
    """
    images: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            images += sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
        elif path.exists():
            images.append(path)
        else:
            raise ConfigError(f"Images must be files or directories, and there is no {path}.")
    if not images:
        raise ConfigError("There is no image to look at; known file names end in " + ", ".join(sorted(SUFFIXES)) + ".")
    return images


@torch.no_grad()
def predict_images(
    model: Answering,
    images: Iterable[Readable],
    words: Sequence[str] | None = None,
    *,
    top: int = 5,
    encode: EncodeText | None = None,
    skip_unreadable: bool = False,
) -> Iterator[Prediction]:
    """Yield for each image its best answers, or those for `words`, with their scores and maps.

    Args:
        model: loaded.
        images: files, images or pixels.
        words: names to ask for, in any order; None: the classes.
        top: how many answers, the best ones; of `words` all.
        encode: the teacher's text encoder, for names that the model does not know.
        skip_unreadable: yield an image that cannot be read with its reason, instead of raising.

    Raises:
        ConfigError: names that the model cannot be asked for.
        ImageReadError: an image cannot be read.
    """
    if words is not None and not words:
        raise ConfigError("words must be one or more names, got none.")
    names = tuple(model.config.classes if words is None else dict.fromkeys(words))
    embeddings, places = None, list(range(len(names)))
    if not names:
        raise ConfigError("This model was trained without classes: say which words to ask it for.")
    if words is not None and model.student.word_head is not None:
        embeddings = model.embeddings(names, encode)
    elif words is not None:
        places = _places(model, names)
    for batch in _batches(_read(images, skip_unreadable)):
        shown = [image for _, image, _ in batch if image is not None]
        answers = iter(_answers(model, shown, names, embeddings, places, len(names) if words else top))
        for source, image, error in batch:
            image_answers = next(answers) if image is not None else ()
            yield Prediction(source=source, image=image, answers=image_answers, error=error)


def _places(model: Answering, names: Sequence[str]) -> list[int]:
    """Return which of the model's classes each name is; raises ConfigError for one that is none."""
    own = {canonical(name): place for place, name in enumerate(model.config.classes)}
    if any(canonical(name) not in own for name in names):
        model.embeddings(names)  # says why it cannot
    return [own[canonical(name)] for name in names]


def _answers(
    model: Answering,
    images: Sequence[Image.Image],
    names: Sequence[str],
    embeddings: torch.Tensor | None,
    places: Sequence[int],
    top: int,
) -> list[tuple[Found, ...]]:
    if not images:
        return []
    size, device = model.config.image_size, next(model.student.parameters()).device
    pixels = whole_images(images, size)
    logits, maps = model.answer(pixels.to(device), embeddings)
    one_label = model.config.task == "classification" and embeddings is None
    scores = (logits.softmax(1) if one_label else logits.sigmoid()).cpu()[:, places]
    answers = []
    for row, image_scores in enumerate(scores):
        best = image_scores.topk(min(top, len(places))).indices.tolist()
        answers.append(
            tuple(
                Found(
                    name=names[k],
                    score=float(image_scores[k]),
                    map=None if maps is None else maps[row, places[k]].cpu().numpy(),
                )
                for k in best
            )
        )
    return answers


def _read(images: Iterable[Readable], skip: bool) -> Iterator[tuple[str, Image.Image | None, str]]:
    for each in images:
        if isinstance(each, Image.Image):
            yield "", each.convert("RGB"), ""
        elif isinstance(each, np.ndarray):
            if each.dtype != np.uint8 or each.ndim != 3 or each.shape[2] != 3:
                raise ConfigError(f"Pixels must be uint8 [H, W, 3], got {each.dtype} {list(each.shape)}.")
            yield "", Image.fromarray(each), ""
        else:
            path = Path(each)
            try:
                yield str(each), read_image(path.parent, path.name)[0], ""
            except ImageReadError as error:
                if not skip:
                    raise
                yield str(each), None, str(error)


def _batches(
    images: Iterator[tuple[str, Image.Image | None, str]],
) -> Iterator[list[tuple[str, Image.Image | None, str]]]:
    batch: list[tuple[str, Image.Image | None, str]] = []
    for each in images:
        batch.append(each)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def draw(prediction: Prediction) -> Image.Image:
    """Draw an image with its answers, the map of each laid over it."""
    assert prediction.image is not None
    image, answers = prediction.image, prediction.answers
    title = Path(prediction.source).name or "image"
    lines = [f"{answer.name}  {100 * answer.score:.1f} %" for answer in answers]
    empty = np.zeros((1, 1), np.float32)
    shape = next((answer.map.shape for answer in answers if answer.map is not None), empty.shape)
    maps = [answer.map if answer.map is not None else np.zeros(shape, np.float32) for answer in answers]
    column = MapColumn(title=("where it looked",), image=image, maps=np.stack(maps) if maps else empty[None])
    return contact_sheet(image, title, lines, [answer.name for answer in answers], [column])


def save_predictions(predictions: Iterable[Prediction], folder: Path) -> Iterator[Prediction]:
    """Draw each prediction into `folder` and hand it on; at the end write a page that shows them all.

    Raises:
        OutputWriteError: the folder cannot be written.
    """
    rows: list[tuple[str, Prediction]] = []
    taken: set[str] = set()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for prediction in predictions:
            name = ""
            if prediction.image is not None:
                name = _free_name(Path(prediction.source).stem or "image", taken)
                draw(prediction).save(folder / name)
            rows.append((name, prediction))
            yield prediction
        (folder / INDEX).write_text(_page(rows), encoding="utf-8")
    except LFIError:  # of an image that cannot be read, which is an OSError too
        raise
    except OSError as error:
        raise OutputWriteError(f"Cannot write the pictures to {folder}: {error.strerror or error}.") from error


def _free_name(stem: str, taken: set[str]) -> str:
    name, number = f"{stem}.png", 2
    while name.lower() in taken:
        name, number = f"{stem}-{number}.png", number + 1
    taken.add(name.lower())
    return name


_STYLE = (
    "body{font:15px system-ui;margin:2rem;background:#fff;color:#1c1c22}"
    "main{display:grid;grid-template-columns:repeat(auto-fill,minmax(22rem,1fr));gap:1.5rem}"
    "img{width:100%;border:1px solid #ddd}figure{margin:0}figcaption{padding:.3rem 0}"
)


def _page(rows: Sequence[tuple[str, Prediction]]) -> str:
    """Return an HTML page that shows pictures in its own folder, with their best answers."""
    from urllib.parse import quote

    cells = []
    for name, prediction in rows:
        source = html.escape(prediction.source or name)
        if not name:
            cells.append(f"<figure><figcaption>{source}: {html.escape(prediction.error)}</figcaption></figure>")
            continue
        best = ", ".join(f"{html.escape(answer.name)} {100 * answer.score:.0f} %" for answer in prediction.answers[:3])
        link = html.escape(quote(name))
        cells.append(
            f'<figure><a href="{link}"><img loading="lazy" src="{link}" alt="{source}"></a>'
            f"<figcaption><b>{source}</b><br>{best}</figcaption></figure>"
        )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Answers</title>'
        f"<style>{_STYLE}</style><h1>{len(rows)} images</h1><main>{''.join(cells)}</main></html>\n"
    )
