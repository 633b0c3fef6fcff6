"""The frozen description of targets: whatever changes the stored bytes is named here, and nothing else is.

Two caches with equal specs hold interchangeable targets; `fingerprint` is the short form of that statement.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from lfi_pipeline.core.errors import ConfigError, TargetsError
from lfi_pipeline.core.schema import check_types, from_plain, plain_differences, to_plain
from lfi_pipeline.targets.codec import get_codec

VERSION = 2
KNOWN_VERSIONS = (1, VERSION)
"""Version 1 did not say how a map is made beyond its kind: `MapSpec.of_version_1` has what it meant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSpec:
    """The model that made the maps.

    Attributes:
        name: architecture name.
        tag: name of the weights.
        weights_sha256: hex digest of the weights file.
        family: how its maps are taken ("coca", "dual", ...).
        precision: what its vision trunk and text tower compute in; the arithmetic of maps is fp32.
    """

    name: str
    tag: str
    weights_sha256: str
    family: str
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class PreprocessingSpec:
    """What happened to an image before the teacher saw it.

    Attributes:
        image_size: (height, width) in pixels.
        resize: "squash": the whole image, aspect ratio ignored, so a map covers [0, 1]^2 of the image.
        interpolation: name of the filter.
        mean: per RGB channel, of values in [0, 1].
        std: per RGB channel, of values in [0, 1].
    """

    image_size: tuple[int, int]
    resize: Literal["squash"] = "squash"
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        check_types(self)
        _positive("preprocessing.image_size", *self.image_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetSpec:
    """The samples, in order.

    Attributes:
        name: data set name.
        split: split name.
        classes: class names; labels index into it.
        listing_sha256: hex digest of the ordered listing of samples.
        samples: number of samples.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    listing_sha256: str
    samples: int

    def __post_init__(self) -> None:
        check_types(self)
        _positive("dataset.samples", self.samples)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpec:
    """A teacher layer that maps were taken from.

    Attributes:
        name: module path or label of the layer.
        depth: relative depth in (0, 1]; 1 is the last layer.
    """

    name: str
    depth: float

    def __post_init__(self) -> None:
        check_types(self)
        if not 0.0 < self.depth <= 1.0:
            raise ConfigError(f"layers.depth must be in (0, 1], got {self.depth}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class MapSpec:
    """How a map of a kind is made, beyond what the kind's name says.

    Attributes:
        steps: of integrated gradients; 1 is the gradient at the image itself.
        word_template: what a word is put into before its text embedding is taken, with one `{}`.
        centre: words whose mean text embedding is taken off that of a word that is asked for; empty for none. Held here
            so that every shard, process and extension takes off the same.
        artefacts: what becomes of patches that the teacher uses as a store: `fill` gives them the median of their
            neighbours, `keep` leaves them.
        support: standard deviation, in cells, of the Gaussian by which a map is blurred before it is multiplied by
            itself, so that a patch counts as much as its surroundings do; 0 leaves the map.
    """

    steps: int = 1
    word_template: str = "{}"
    centre: tuple[str, ...] = ()
    artefacts: Literal["fill", "keep"] = "keep"
    support: float = 0.0

    def __post_init__(self) -> None:
        check_types(self)
        _positive("maps.steps", self.steps)
        if not 0.0 <= self.support <= 100.0:
            raise ConfigError(f"maps.support must be in [0, 100] cells, got {self.support}.")
        if [self.word_template.count(part) for part in ("{}", "{", "}")] != [1, 1, 1]:
            raise ConfigError(f"maps.word_template must have exactly one {{}}, got {self.word_template!r}.")

    @classmethod
    def of_version_1(cls, kind: str, family: str) -> MapSpec:
        """Return the settings that a spec of version 1, which does not record them, stands for."""
        return cls(
            steps=8 if kind in ("integrated", "agreement") else 1,
            word_template="a photo of a {}." if family == "dual" else "{}",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class TextSpec:
    """Where the words come from.

    Attributes:
        mode: the data set's captions, prompts made of class names, or captions that the teacher wrote.
        captions: which of an image's captions (or prompts) were used.
        prompts: the templates, with one `{}`; empty unless they were used.
        stop_words_sha256: hex digest of the list of dropped words.
        vocabulary: the words that captions by the teacher were made of, each image's by its own scores; empty where it
            wrote sentences.
    """

    mode: Literal["captions", "prompts", "generate"]
    captions: Literal["first", "all", "longest"]
    prompts: tuple[str, ...] = ()
    stop_words_sha256: str
    vocabulary: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_types(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class CodecSpec:
    """How maps become bytes.

    Attributes:
        name: a name in `lfi_pipeline.targets.codec.CODECS`.
        compressor: lossless compressor of every array.
        level: its level, 1 to 22.
    """

    name: str = "uint8_sqrt"
    compressor: Literal["zstd"] = "zstd"
    level: int = 3

    def __post_init__(self) -> None:
        check_types(self)
        get_codec(self.name)
        if not 1 <= self.level <= 22:
            raise ConfigError(f"codec.level must be in 1..22, got {self.level}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class TargetSpec:
    """The frozen description of one cache of targets.

    Attributes:
        version: of the format; this release knows `KNOWN_VERSIONS`.
        teacher: the model that made the maps.
        preprocessing: what it saw.
        dataset: of which samples.
        kind: how a map is made ("attention", "gradcam", "relevance", ...).
        layers: L teacher layers, shallow to deep.
        maps: how a map of that kind is made.
        row: whether a word's map is taken where the word is emitted or where it is read.
        heads: how attention heads were reduced.
        text: where the words come from.
        words_per_sample: M, the most words kept of one sample.
        grid: (gh, gw), cells of a map.
        views: versions of each image that the teacher saw ("full", "hflip").
        embedding_dim: E, of the image embeddings and of the vocabulary.
        codec: how maps become bytes.
        samples_per_shard: samples in one commit unit; the last shard may hold fewer.
    """

    version: int = VERSION
    teacher: TeacherSpec
    preprocessing: PreprocessingSpec
    dataset: DatasetSpec
    kind: str
    layers: tuple[LayerSpec, ...]
    maps: MapSpec = field(default_factory=MapSpec)
    row: Literal["emitting", "reading"]
    heads: Literal["mean"] = "mean"
    text: TextSpec
    words_per_sample: int
    grid: tuple[int, int]
    views: tuple[str, ...]
    embedding_dim: int
    codec: CodecSpec
    samples_per_shard: int

    def __post_init__(self) -> None:
        _check_version(self.version)
        check_types(self)
        _positive("words_per_sample", self.words_per_sample)
        _positive("grid", *self.grid)
        _positive("embedding_dim", self.embedding_dim)
        _positive("samples_per_shard", self.samples_per_shard)
        if self.version == 1 and self.maps != MapSpec.of_version_1(self.kind, self.teacher.family):
            raise ConfigError(f"maps must be as in version 1, where the spec does not say, got {self.maps!r}.")
        if not self.layers:
            raise ConfigError("layers must name at least one teacher layer, got none.")
        if not self.views or len(set(self.views)) != len(self.views):
            raise ConfigError(f"views must be one or more distinct names, got {self.views!r}.")
        for view in self.views:
            if not re.fullmatch(r"[a-z][a-z0-9_]*", view):
                raise ConfigError(f"views must be lower-case names such as 'full', got {view!r}.")

    @property
    def shards(self) -> int:
        """Number of shards that hold `dataset.samples` samples."""
        return -(-self.dataset.samples // self.samples_per_shard)

    def shard_range(self, shard: int) -> range:
        """Positions of the samples of one shard.

        Raises:
            ConfigError: no such shard.
        """
        if not 0 <= shard < self.shards:
            raise ConfigError(f"shard must be in 0..{self.shards - 1}, got {shard}.")
        first = shard * self.samples_per_shard
        return range(first, min(first + self.samples_per_shard, self.dataset.samples))

    def to_plain(self) -> dict[str, Any]:
        """The spec as dicts, lists, strings and numbers; one of version 1 has the fields of version 1."""
        plain: dict[str, Any] = to_plain(self)
        if self.version == 1:
            del plain["maps"]
        if not self.text.vocabulary:  # a field that came later: a spec without it keeps its fingerprint
            del plain["text"]["vocabulary"]
        return plain

    def to_json(self) -> str:
        """The spec as canonical JSON: sorted keys, no spaces."""
        return json.dumps(self.to_plain(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> TargetSpec:
        """Read what `to_json` wrote.

        Raises:
            TargetsError: not JSON, an unknown version, or a missing, unknown or ill-typed field (named).
        """
        try:
            plain = json.loads(text)
        except ValueError as error:
            raise TargetsError(f"The spec is not valid JSON: {error}.") from error
        return cls.from_plain(plain)

    @classmethod
    def from_plain(cls, plain: Any) -> TargetSpec:
        """Read what `to_plain` made.

        Raises:
            TargetsError: an unknown version, or a missing, unknown or ill-typed field (named).
        """
        if isinstance(plain, dict) and "version" in plain:
            _check_version(plain["version"])
            if plain["version"] == 1:
                if "maps" in plain:
                    raise TargetsError("The spec cannot be read: unknown field maps in version 1.")
                plain = plain | {"maps": to_plain(_maps_of_version_1(plain))}
        if isinstance(plain, dict) and isinstance(plain.get("text"), dict):
            plain = plain | {"text": {"vocabulary": []} | plain["text"]}
        try:
            return from_plain(cls, plain)
        except TargetsError:
            raise
        except ValueError as error:
            raise TargetsError(f"The spec cannot be read: {error}") from error

    @property
    def fingerprint(self) -> str:
        """sha256 hex digest of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def differences(self, other: TargetSpec) -> list[str]:
        """Name every field that differs, one line each: `"teacher.tag: 'a' != 'b'"` (ours first)."""
        return plain_differences(self.to_plain(), other.to_plain())


def _maps_of_version_1(plain: dict[str, Any]) -> MapSpec:
    teacher = plain.get("teacher")
    family = teacher.get("family") if isinstance(teacher, dict) else ""
    return MapSpec.of_version_1(str(plain.get("kind")), str(family))


def _check_version(version: Any) -> None:
    if version not in KNOWN_VERSIONS or isinstance(version, bool):
        known = "versions " + " and ".join(map(str, KNOWN_VERSIONS))
        raise TargetsError(
            f"Targets have version {version!r}; this release knows {known}. "
            "Read them with the release that wrote them, or extract them again with this one."
        )


def _positive(name: str, *values: int) -> None:
    if min(values) < 1:
        raise ConfigError(f"{name} must be positive, got {values[0] if len(values) == 1 else values}.")
