"""Configuration of an exported model, and the checks on it before anything is built."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import timm

from lfi_pipeline.core.errors import ConfigError, ExportError
from lfi_pipeline.students.config import HEADS, QueryConfig, StudentConfig

FORMAT, VERSION = "lfi-model", 1
READOUTS = ("auto", "class", "text")
TASKS = ("classification", "multi-label", "none")
_SHAPES = ("depth", "depths", "layers", "embed_dim", "embed_dims", "dims", "num_heads", "patch_size", "window_size")
_OTHERS = (
    *("mlp_ratio", "qkv_bias", "qk_norm", "init_values", "class_token", "no_embed_class", "reg_tokens", "pre_norm"),
    *("global_pool", "fc_norm", "pos_embed", "act_layer", "norm_layer", "drop_rate", "pos_drop_rate"),
    *("patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "drop_block_rate", "output_stride"),
    *("stem_width", "stem_type", "stem_chs", "groups", "expand_ratio", "mlp_layer", "ls_init_value", "conv_mlp"),
    *("channels", "cardinality", "base_width", "img_size", "avg_down", "dynamic_img_size", "strict_img_size"),
)
ARGUMENTS = frozenset((*_SHAPES, *_OTHERS))
"""Arguments of `timm.create_model` that a file may name: shapes and rates, nothing that fetches or runs anything."""
_LARGEST_NUMBER = 65_536
_LARGEST_SIDE = 8_192
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """How to build an exported model again.

    Attributes:
        name: of the run it was made of.
        architecture: timm's name; "" for a module of the user's own.
        arguments: of `timm.create_model`.
        image_size: (height, width) in pixels.
        taps: indices into the features.
        mean, std: of each colour, in units of 0 to 255.
        classes: names of the outputs.
        task: one of `TASKS`.
        head: one of `students.HEADS`.
        readout, query_width, query_heads, state, query_scale: of the queries, see `QueryConfig`. Exports of earlier
            releases do not name their scale.
        embedding_dim: E, of the text embeddings.
        words: names beside the classes that the model knows, whose embeddings lie in the file.
        teacher: name and tag of the text encoder that the embeddings are of.
    """

    name: str
    architecture: str
    arguments: Mapping[str, Any]
    image_size: tuple[int, int]
    taps: tuple[int, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: tuple[str, ...]
    task: str
    head: str
    readout: str
    query_width: int
    query_heads: int
    state: str
    embedding_dim: int
    words: tuple[str, ...]
    teacher: tuple[str, str]
    query_scale: str = "1/sqrt(d)"

    def __post_init__(self) -> None:
        _require(self.task in TASKS, "task", self.task, f"one of {', '.join(TASKS)}")
        _require(self.head in HEADS, "head", self.head, f"one of {', '.join(HEADS)}")
        _require(self.readout in READOUTS, "readout", self.readout, f"one of {', '.join(READOUTS)}")
        _require(all(0 < side <= _LARGEST_SIDE for side in self.image_size), "image_size", self.image_size, "pixels")
        _require(all(0 <= tap < 1000 for tap in self.taps), "taps", self.taps, "indices of features")
        _require(len(self.classes) <= _MOST_CLASSES, "classes", len(self.classes), f"at most {_MOST_CLASSES}")
        _require(all(0 < value < _LARGEST_NUMBER for value in self.std), "std", self.std, "positive")
        for name in ("query_width", "query_heads", "embedding_dim"):
            _require(0 < getattr(self, name) <= _LARGEST_NUMBER, name, getattr(self, name), "1 to 65536")
        if self.architecture and not timm.is_model(self.architecture):
            raise ConfigError(f"architecture must be a model of timm {timm.__version__}, got {self.architecture!r}.")
        for name, value in self.arguments.items():
            if name not in ARGUMENTS or not _is_plain(value):
                raise ConfigError(
                    f"arguments of an exported model must be shapes and rates of timm's models, got {name} = {value!r}."
                )
        _ = self.queries  # its own checks

    @property
    def student(self) -> StudentConfig:
        """The backbone and its taps."""
        height, width = self.image_size
        arguments = dict(self.arguments)
        if height != width:
            arguments["img_size"] = (height, width)
        return StudentConfig(
            name=self.architecture, image_size=height if height == width else None, kwargs=arguments, taps=self.taps
        )

    @property
    def queries(self) -> QueryConfig:
        """Shape of the queries."""
        return QueryConfig(
            width=self.query_width,
            heads=self.query_heads,
            scale=self.query_scale,
            state=self.state,
            readout=self.readout,
        )

    def to_json(self) -> str:
        """Content of the file."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read what `to_json` wrote.

        Raises:
            ExportError: it is something else, or of another version.
            ConfigError: a value that cannot be.
        """
        try:
            body = json.loads(text)
            if not isinstance(body, dict) or body.get("format") != FORMAT:
                raise ValueError("it is no description of an exported model")
            if body.get("version") != VERSION:
                raise ValueError(f"its version must be {VERSION}, got {body.get('version')!r}")
            content = {name: value for name, value in body.items() if name not in ("format", "version")}
            return cls(**{name: _typed(name, value) for name, value in content.items()})
        except (ValueError, TypeError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ExportError(f"The exported model cannot be read: {error}.") from error


_TEXTS = ("name", "architecture", "task", "head", "readout", "state", "query_scale")
_LISTS: Mapping[str, tuple[type, int | None]] = {
    "image_size": (int, 2),
    "taps": (int, None),
    "mean": (float, 3),
    "std": (float, 3),
    "classes": (str, None),
    "words": (str, None),
    "teacher": (str, 2),
}


def _typed(name: str, value: Any) -> Any:
    if name in _LISTS:
        kind, count = _LISTS[name]
        allowed = (int, float) if kind is float else (kind,)
        fits = isinstance(value, list) and all(isinstance(each, allowed) for each in value)
        if fits and not any(isinstance(each, bool) for each in value) and count in (None, len(value)):
            return tuple(value)
    elif name == "arguments":
        if isinstance(value, dict):
            return value
    elif isinstance(value, str if name in _TEXTS else int) and not isinstance(value, bool):
        return value
    raise ValueError(f"{name} is {str(value)[:100]!r}")


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 64 and all(_is_plain(each) for each in value)
    if isinstance(value, int | float):
        return abs(value) <= _LARGEST_NUMBER
    return value is None or (isinstance(value, str) and len(value) <= 64)


def _require(fits: bool, name: str, value: object, wanted: str) -> None:
    if not fits:
        raise ConfigError(f"{name} of an exported model must be {wanted}, got {str(value)[:100]}.")
