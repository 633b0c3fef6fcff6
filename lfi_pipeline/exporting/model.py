"""The whole student as one module with its head: written to two files, and loaded from them without its cache."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lfi_pipeline.core.errors import ConfigError, ExportError
from lfi_pipeline.exporting.model_config import ModelConfig
from lfi_pipeline.exporting.predict import EncodeText, Prediction, Readable, predict_images
from lfi_pipeline.students import Student
from lfi_pipeline.students.student import merged_maps
from lfi_pipeline.targets.vocabulary import canonical

WEIGHTS, CONFIG = "lfi.safetensors", "lfi.json"
_WORDS = "words"
_CENTRE = "queries.centre"
_LARGEST_CONFIG = 1 << 28  # bytes


class Answer(NamedTuple):
    """Scores and maps of a model for B images.

    Attributes:
        logits: fp32 [B, K].
        maps: fp32 [B, K, rows, columns], where the query of each class looked, summing to 1; None with a linear head.
    """

    logits: Tensor
    maps: Tensor | None


class Model(nn.Module):
    """A student with its head. `model(images)` gives logits and maps, `model.predict(image)` names, scores and maps.

    Args:
        student: trained.
        config: how it was built.
        words: text embeddings of `config.words`.
    """

    def __init__(self, student: Student, config: ModelConfig, words: Tensor | None = None) -> None:
        super().__init__()
        self.student, self.config = student, config
        self.words = words

    def forward(self, images: Tensor) -> Answer:
        """Answer for images [B, 3, H, W] of `config.image_size`: uint8, or float of the same range, 0 to 255."""
        return self.answer(images)

    def answer(self, images: Tensor, embeddings: Tensor | None = None) -> Answer:
        """Return logits and maps as `forward`; with text embeddings [R, E], of their names instead of the classes."""
        head = self.student.query_head
        if embeddings is None and head is None:
            logits = self.student(images).logits
            if logits is None:
                raise ConfigError("This student was trained without labels: ask it for words.")
            return Answer(logits.float(), None)
        tokens, grids = self.student.tapped(images)
        queries = self.student.queries
        logits, maps = queries.logits_and_maps(tokens, embeddings)  # type: ignore[union-attr, operator]
        return Answer(logits.float(), merged_maps(maps, grids))

    @torch.no_grad()
    def predict(
        self,
        image: Readable,
        words: Sequence[str] | None = None,
        *,
        top: int = 5,
        encode: EncodeText | None = None,
    ) -> Prediction:
        """Predict what is in one image, and where; arguments as of `exporting.predict.predict_images`."""
        return next(iter(predict_images(self, [image], words, top=top, encode=encode)))

    def embeddings(self, names: Sequence[str], encode: EncodeText | None = None) -> Tensor:
        """Return the text embeddings [n, E] of names: of the classes, of the words it knows, or by `encode`.

        Raises:
            ConfigError: the model cannot be asked for names that are not its classes, or does not know one.
        """
        queries = self.student.word_head
        if queries is None:
            kind = "a linear head" if self.student.query_head is None else "the readout 'class'"
            raise ConfigError(
                f"A model with {kind} scores its own classes alone. Train with head='queries' and readout='text' to "
                "ask for any name."
            )
        known = {canonical(word): place for place, word in enumerate(self.config.words)}
        own = {canonical(name): place for place, name in enumerate(self.config.classes)}
        embeddings: dict[str, Tensor] = {}
        for name in names:
            if canonical(name) in own:
                embeddings[name] = queries.classes[own[canonical(name)]]
            elif canonical(name) in known and self.words is not None:
                embeddings[name] = self.words[known[canonical(name)]]
        missing = [name for name in names if name not in embeddings]
        if missing and encode is None:
            teacher = ":".join(self.config.teacher)
            raise ConfigError(
                f"The model does not know {', '.join(map(repr, missing[:5]))}: neither a class nor a word of the cache "
                f"it was trained on. Give the text encoder of its teacher, {teacher}, or ask for words it knows."
            )
        if missing and encode is not None:
            embeddings |= dict(zip(missing, encode(missing).float(), strict=True))
        return torch.stack([embeddings[name].to(queries.classes) for name in names])


def save_model(folder: Path, model: Model) -> None:
    """Write the two files of `model` into `folder`."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.student.state_dict().items()}
    if model.words is not None:
        tensors[_WORDS] = model.words.half().cpu().contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / CONFIG).write_text(model.config.to_json(), encoding="utf-8")


def load(path: str | Path, *, device: str | torch.device = "cpu", backbone: nn.Module | None = None) -> Model:
    """Load an exported model, in evaluation mode.

    What the files say is checked before anything of its size is allocated.

    Example:
        >>> import lfi_pipeline as lfi
        >>> lfi.load("exported").predict("photo.jpg").answers[0].name      # doctest: +SKIP
        'dog'

    Args:
        path: directory of an export.
        device: where it goes.
        backbone: the module of one's own that it was trained with, where it is none of timm's.

    Raises:
        ExportError: no export of a whole model, or one whose files do not fit each other.
        ConfigError: settings that cannot be.
    """
    folder = Path(path)
    described, weights = folder / CONFIG, folder / WEIGHTS
    if not described.is_file() or not weights.is_file():
        raise ExportError(f"{folder} must hold {CONFIG} and {WEIGHTS}, as an export does. Export the run again.")
    if described.stat().st_size > _LARGEST_CONFIG:
        raise ExportError(f"{described} must describe a model, and has {described.stat().st_size} bytes.")
    config = ModelConfig.from_json(described.read_text(encoding="utf-8"))
    if not config.architecture and backbone is None:
        raise ConfigError(f"{folder} was trained with a module of one's own: give it as backbone.")
    _require_fit(config, weights, backbone)
    tensors = load_file(weights)
    words = tensors.pop(_WORDS, None)
    student = _student(config, backbone)
    student.load_state_dict(tensors)
    student.mean.copy_(torch.tensor(config.mean).view(3, 1, 1))
    student.std.copy_(torch.tensor(config.std).view(3, 1, 1))
    return Model(student, config, None if words is None else words.float()).to(device).eval()


def _student(config: ModelConfig, backbone: nn.Module | None) -> Student:
    return Student(
        config.student,
        classes=len(config.classes),
        embedding_dim=config.embedding_dim,
        queries=config.queries if config.head == "queries" else None,
        head=config.head,
        backbone=backbone,
    )


def _require_fit(config: ModelConfig, weights: Path, backbone: nn.Module | None) -> None:
    """Raise ExportError unless the file's tensors have the names and shapes of the model; allocates none of it."""
    try:
        with safe_open(weights, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118, no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise ExportError(f"{weights} is damaged or no safetensors file ({error}). Export the run again.") from error
    words = shapes.pop(_WORDS, None)
    if words is not None and words != (len(config.words), config.embedding_dim):
        raise ExportError(f"{weights} must hold the embeddings of {len(config.words)} words, got {list(words)}.")
    if backbone is not None:
        return  # it is in memory already, and loading names what does not fit
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in _student(config, None).state_dict().items()}
    if _CENTRE in expected:  # earlier exports have none
        shapes.setdefault(_CENTRE, expected[_CENTRE])
    wrong = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
    if wrong:
        raise ExportError(
            f"{weights} does not fit the model that {CONFIG} describes: {len(wrong)} tensors differ, {wrong[0]} the "
            f"first ({shapes.get(wrong[0])} where {expected.get(wrong[0])} belongs). Export the run again."
        )
