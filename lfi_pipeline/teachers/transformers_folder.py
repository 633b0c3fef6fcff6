"""CLIP and SigLIP as transformers saves them, built of open_clip's and timm's own modules with the weights renamed.

`config.json` says how large the towers are, `model.safetensors` holds the weights, `preprocessor_config.json` how pixels
are normalised. Every kind of map of a dual encoder can be made of what is built. Of transformers itself nothing runs
but the tokenizer (extra `text`). Model types: `clip`, and `siglip`, which the SigLIP 2 checkpoints of one resolution
have too; `blip` is in `blip.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from open_clip.tokenizer import HFTokenizer
from open_clip.transformer import LayerNorm, QuickGELU, TextTransformer, VisionTransformer
from safetensors.torch import load_file
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from lfi_pipeline.core.errors import TeacherError
from lfi_pipeline.core.parse import read_json
from lfi_pipeline.students.pretrained import bounded_build

CONFIG = "config.json"
PIXELS = "preprocessor_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
"""Where weights may be; the first that is there counts."""
# Any one of them tells transformers of a tokenizer
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "spiece.model")

Side = Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
Depth = Annotated[int, msgspec.Meta(ge=1, le=256)]
Words = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
_Length = Annotated[int, msgspec.Meta(ge=4, le=1 << 12)]
Eps = Annotated[float, msgspec.Meta(gt=0, lt=1)]
_Act = Literal["quick_gelu", "gelu", "gelu_pytorch_tanh"]

_ACTS: Mapping[str, Any] = {
    "quick_gelu": QuickGELU,
    "gelu": nn.GELU,
    "gelu_pytorch_tanh": partial(nn.GELU, approximate="tanh"),
}


class _ClipVision(msgspec.Struct):
    """Fields of a vision tower that are read; what is left out has the value that transformers gives it."""

    hidden_size: Side = 768
    intermediate_size: Side = 3072
    num_hidden_layers: Depth = 12
    num_attention_heads: Side = 12
    image_size: Side = 224
    patch_size: Side = 32
    num_channels: Literal[3] = 3
    hidden_act: _Act = "quick_gelu"
    layer_norm_eps: Eps = 1e-5


class _ClipText(msgspec.Struct):
    hidden_size: Side = 512
    intermediate_size: Side = 2048
    num_hidden_layers: Depth = 12
    num_attention_heads: Side = 8
    vocab_size: Words = 49408
    max_position_embeddings: _Length = 77
    hidden_act: _Act = "quick_gelu"
    layer_norm_eps: Eps = 1e-5
    eos_token_id: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] | None = 49407


class _Clip(msgspec.Struct):
    text_config: _ClipText = msgspec.field(default_factory=_ClipText)
    vision_config: _ClipVision = msgspec.field(default_factory=_ClipVision)
    projection_dim: Side = 512


class _SiglipVision(_ClipVision):
    patch_size: Side = 16
    hidden_act: _Act = "gelu_pytorch_tanh"
    layer_norm_eps: Eps = 1e-6
    vision_use_head: Literal[True] = True


class _SiglipText(_ClipText):
    hidden_size: Side = 768
    intermediate_size: Side = 3072
    num_attention_heads: Side = 12
    vocab_size: Words = 32000
    max_position_embeddings: _Length = 64
    hidden_act: _Act = "gelu_pytorch_tanh"
    layer_norm_eps: Eps = 1e-6
    projection_size: Side | None = None


class _Siglip(msgspec.Struct):
    text_config: _SiglipText = msgspec.field(default_factory=_SiglipText)
    vision_config: _SiglipVision = msgspec.field(default_factory=_SiglipVision)


_CONFIGS: Mapping[str, Any] = {"clip": _Clip, "siglip": _Siglip}
BLIP = "blip"
MODEL_TYPES = (BLIP, *_CONFIGS)
_RESAMPLE = {2: "bilinear", 3: "bicubic"}  # numbers of Pillow's filters
Channels = tuple[float, float, float]


class _Pixels(msgspec.Struct):
    image_mean: Channels | None = None
    image_std: Channels | None = None
    resample: int | None = None


class TimmTower(nn.Module):
    """A vision transformer of timm whose pooled output is the image's embedding; laid out as open_clip's `TimmModel`."""

    def __init__(self, trunk: TimmVisionTransformer, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.trunk, self.head, self.image_size = trunk, nn.Identity(), image_size

    def forward(self, images: Tensor) -> Tensor:
        """Return embeddings [B, E] of images [B, 3, H, W]."""
        embeddings: Tensor = self.head(self.trunk(images))
        return embeddings


class TwoTowers(nn.Module):
    """A vision and a text tower with a temperature, as `DualTeacher` takes them."""

    def __init__(self, visual: nn.Module, text: TextTransformer) -> None:
        super().__init__()
        self.visual, self.text, self.logit_scale = visual, text, nn.Parameter(torch.zeros(()))

    def encode_image(self, images: Tensor) -> Tensor:
        """Return image embeddings [B, E] of images [B, 3, H, W]."""
        embeddings: Tensor = self.visual(images)
        return embeddings

    def encode_text(self, ids: Tensor) -> Tensor:
        """Return text embeddings [N, E] of token ids [N, T]."""
        embeddings: Tensor = self.text(ids)
        return embeddings


def model_type(folder: Path) -> str:
    """Return the model type in `config.json`; raises TeacherError where it is none of `MODEL_TYPES`."""
    config = read_json(folder / CONFIG, error=TeacherError)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind not in MODEL_TYPES:
        raise TeacherError(
            f"{folder / CONFIG}: model_type must be one of {', '.join(MODEL_TYPES)}, got {kind!r}. Other models of "
            "transformers cannot be teachers in this release."
        )
    return str(kind)


def load_folder(folder: Path) -> tuple[TwoTowers, Any]:
    """Load a CLIP or SigLIP that transformers saved; returns the model and open_clip's tokenizer of it.

    Raises:
        TeacherError: a file is not there, a size is out of bounds, or the weights are not those of the config.
    """
    kind = model_type(folder)
    config = checked_config(folder, _CONFIGS[kind])
    _require_heads(config, folder)
    with bounded_build(str(folder)), torch.random.fork_rng(devices=[]):
        model = _build_clip(config) if kind == "clip" else _build_siglip(config)
    load_weights(model, _renamed(read_weights(folder), kind), folder, kind)
    siglip, half = kind == "siglip", (0.5, 0.5, 0.5)
    model.visual.preprocess_cfg = pixels_of(folder, half, half) if siglip else pixels_of(folder)  # type: ignore[assignment]
    return model, tokenizer_of(
        folder, config.text_config.max_position_embeddings, "canonicalize" if siglip else "lower"
    )


def load_weights(model: nn.Module, weights: Mapping[str, Tensor], folder: Path, kind: str, tied: str = "\0") -> None:
    """Load all weights of a model of type `kind`; raises TeacherError. What begins with `tied` may be missing."""
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:  # shapes
        raise TeacherError(f"{folder}: the weights do not fit {CONFIG}: {_last_line(error)}") from error
    missing = [name for name in missing if not name.startswith(tied)]
    if missing or unexpected:
        names = [f"{len(missing)} are missing, such as {missing[0]}"] if missing else []
        names += [f"{len(unexpected)} are too many, such as {unexpected[0]}"] if unexpected else []
        raise TeacherError(f"{folder}: the weights must be those of a {kind} as {CONFIG} says, but {'; '.join(names)}.")


def pixels_of(folder: Path, mean: Channels = OPENAI_DATASET_MEAN, std: Channels = OPENAI_DATASET_STD) -> dict[str, Any]:
    """Return `interpolation`, `mean` and `std` by which images are prepared; `mean` and `std` where no file says."""
    pixels = _Pixels()
    if (folder / PIXELS).is_file():
        pixels = _convert(read_json(folder / PIXELS, error=TeacherError), _Pixels, folder / PIXELS)
    interpolation = _RESAMPLE.get(pixels.resample or 3, "bicubic")
    return {"interpolation": interpolation, "mean": pixels.image_mean or mean, "std": pixels.image_std or std}


def checked_config(folder: Path, kind: Any) -> Any:
    """Read `config.json` as `kind`, a Struct whose fields have bounds; raises TeacherError."""
    return _convert(read_json(folder / CONFIG, error=TeacherError), kind, folder / CONFIG)


def _convert(values: Any, kind: Any, path: Path) -> Any:
    try:
        return msgspec.convert(values, kind, strict=True)
    except msgspec.ValidationError as error:
        raise TeacherError(f"{path} must be of a model that can be built here: {error}.") from error


def _require_heads(config: Any, folder: Path) -> None:
    for part in (config.text_config, config.vision_config):
        if part.hidden_size % part.num_attention_heads:
            raise TeacherError(
                f"{folder / CONFIG}: hidden_size ({part.hidden_size}) must be a multiple of num_attention_heads "
                f"({part.num_attention_heads})."
            )
    vision = config.vision_config
    if vision.image_size % vision.patch_size:
        raise TeacherError(
            f"{folder / CONFIG}: image_size ({vision.image_size}) must be a multiple of patch_size "
            f"({vision.patch_size})."
        )


def _text_tower(text: Any, embed_dim: int, **options: Any) -> TextTransformer:
    return TextTransformer(
        context_length=text.max_position_embeddings,
        vocab_size=text.vocab_size,
        width=text.hidden_size,
        heads=text.num_attention_heads,
        layers=text.num_hidden_layers,
        mlp_ratio=text.intermediate_size / text.hidden_size,
        output_dim=embed_dim,
        act_layer=_ACTS[text.hidden_act],
        norm_layer=partial(LayerNorm, eps=text.layer_norm_eps),
        **options,
    )


def _build_clip(config: Any) -> TwoTowers:
    vision, text = config.vision_config, config.text_config
    visual = VisionTransformer(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        width=vision.hidden_size,
        layers=vision.num_hidden_layers,
        heads=vision.num_attention_heads,
        mlp_ratio=vision.intermediate_size / vision.hidden_size,
        output_dim=config.projection_dim,
        act_layer=_ACTS[vision.hidden_act],
        norm_layer=partial(LayerNorm, eps=vision.layer_norm_eps),
    )
    # Early configs say 2 for the end of a text, whatever the vocabulary; transformers takes the largest id then.
    pool = (
        {"pool_type": "argmax"} if text.eos_token_id in (2, None) else {"pool_type": "eos", "eos_id": text.eos_token_id}
    )
    return TwoTowers(visual, _text_tower(text, config.projection_dim, **pool))


def _build_siglip(config: Any) -> TwoTowers:
    vision, text = config.vision_config, config.text_config
    trunk = TimmVisionTransformer(
        img_size=vision.image_size,
        patch_size=vision.patch_size,
        embed_dim=vision.hidden_size,
        depth=vision.num_hidden_layers,
        num_heads=vision.num_attention_heads,
        mlp_ratio=vision.intermediate_size / vision.hidden_size,
        act_layer=_ACTS[vision.hidden_act],
        norm_layer=partial(nn.LayerNorm, eps=vision.layer_norm_eps),
        class_token=False,
        global_pool="map",
        num_classes=0,
    )
    size = (vision.image_size, vision.image_size)
    tower = _text_tower(
        text, text.projection_size or text.hidden_size, no_causal_mask=True, proj_bias=True, pool_type="last"
    )
    return TwoTowers(TimmTower(trunk, size), tower)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Return the weights in a folder, in whatever files they are; raises TeacherError."""
    present = next((folder / name for name in WEIGHTS if (folder / name).is_file()), None)
    if present is None:
        raise TeacherError(f"{folder} must hold the weights as one of {', '.join(WEIGHTS)}; none is there.")
    files = [present]
    if present.suffix == ".json":
        index = read_json(present, error=TeacherError)
        named = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(named, dict) or not all(
            isinstance(name, str) and re.fullmatch(r"[\w.-]+\.safetensors", name) for name in named.values()
        ):
            raise TeacherError(f"{present} must name a file of the same folder for each tensor, as weight_map.")
        files = [folder / name for name in sorted(set(named.values()))]
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            part = torch.load(file, map_location="cpu", weights_only=True) if file.suffix == ".bin" else load_file(file)
        except Exception as error:  # the readers raise many kinds; all mean that the file is not usable
            raise TeacherError(f"{file} must hold weights alone, in whole: {_last_line(error)}") from error
        if not isinstance(part, dict) or not all(isinstance(value, Tensor) for value in part.values()):
            raise TeacherError(f"{file} must hold tensors by name, as a model's state_dict.")
        state |= part
    return {name: value for name, value in state.items() if not name.endswith("position_ids")}


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()[:300]


_QKV = re.compile(r"(.*\.)self_attn\.([qkv])_proj\.(weight|bias)")
_CLIP_BLOCK = (
    (".self_attn.out_proj.", ".attn.out_proj."),
    (".layer_norm1.", ".ln_1."),
    (".layer_norm2.", ".ln_2."),
    (".mlp.fc1.", ".mlp.c_fc."),
    (".mlp.fc2.", ".mlp.c_proj."),
)
_TEXT = (
    ("text_model.embeddings.token_embedding.", "text.token_embedding."),
    ("text_model.embeddings.position_embedding.weight", "text.positional_embedding"),
    ("text_model.encoder.layers.", "text.transformer.resblocks."),
    ("text_model.final_layer_norm.", "text.ln_final."),
    ("text_model.head.", "text.text_projection."),
)
_CLIP_VISION = (
    ("vision_model.embeddings.class_embedding", "visual.class_embedding"),
    ("vision_model.embeddings.patch_embedding.", "visual.conv1."),
    ("vision_model.embeddings.position_embedding.weight", "visual.positional_embedding"),
    ("vision_model.pre_layrnorm.", "visual.ln_pre."),  # as transformers writes it
    ("vision_model.encoder.layers.", "visual.transformer.resblocks."),
    ("vision_model.post_layernorm.", "visual.ln_post."),
)
_SIGLIP_BLOCK = ((".self_attn.out_proj.", ".attn.proj."), (".layer_norm1.", ".norm1."), (".layer_norm2.", ".norm2."))
_SIGLIP_VISION = (
    ("vision_model.embeddings.patch_embedding.", "visual.trunk.patch_embed.proj."),
    ("vision_model.embeddings.position_embedding.weight", "visual.trunk.pos_embed"),
    ("vision_model.encoder.layers.", "visual.trunk.blocks."),
    ("vision_model.post_layernorm.", "visual.trunk.norm."),
    ("vision_model.head.probe", "visual.trunk.attn_pool.latent"),
    ("vision_model.head.attention.out_proj.", "visual.trunk.attn_pool.proj."),
    ("vision_model.head.layernorm.", "visual.trunk.attn_pool.norm."),
    ("vision_model.head.mlp.", "visual.trunk.attn_pool.mlp."),
)


def _renamed(state: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Give weights of transformers the names, and the shapes, that the modules built here have."""
    renamed: dict[str, Tensor] = {}
    joined: dict[str, dict[str, Tensor]] = {}  # the three projections of an attention, which are one matrix here
    siglip = kind == "siglip"
    for name, value in state.items():
        value = value.float()
        if part := _QKV.fullmatch(name):
            joined.setdefault(f"{part[1]}{part[3]}", {})[part[2]] = value
        elif name == "logit_scale":
            renamed[name] = value.reshape(())
        elif name == "logit_bias" and siglip:
            continue  # it moves all logits alike, and no map
        elif name in ("visual_projection.weight", "text_projection.weight"):
            renamed["visual.proj" if name[0] == "v" else "text.text_projection"] = value.T.contiguous()
        elif name.startswith("vision_model.head.attention.in_proj_"):
            query, key_value = value[: len(value) // 3], value[len(value) // 3 :]
            ending = name.rpartition("_")[2]
            renamed[f"visual.trunk.attn_pool.q.{ending}"] = query
            renamed[f"visual.trunk.attn_pool.kv.{ending}"] = key_value
        else:
            new = _name(name, siglip)
            renamed[new] = value[None] if new == "visual.trunk.pos_embed" else value
    for name, parts in joined.items():
        if parts.keys() != {"q", "k", "v"}:
            raise TeacherError(f"{name}: an attention must have weights for queries, keys and values.")
        place, _, ending = name.rpartition(".")
        own = siglip and name.startswith("vision_model.")
        attention = f"{_name(f'{place}.', siglip)}attn.{f'qkv.{ending}' if own else f'in_proj_{ending}'}"
        renamed[attention] = torch.cat([parts["q"], parts["k"], parts["v"]])
    return renamed


def _name(name: str, siglip: bool) -> str:
    """The name that a weight, or the beginning of one, has in the modules built here."""
    block = _SIGLIP_BLOCK if siglip and name.startswith("vision_model.") else _CLIP_BLOCK
    for old, new in (*(_SIGLIP_VISION if siglip else _CLIP_VISION), *_TEXT, *block):
        name = name.replace(old, new)
    return name


def tokenizer_of(folder: Path, context_length: int, clean: str) -> Any:
    """Return open_clip's wrapper of the tokenizer in a folder; raises TeacherError where there is none."""
    if not any((folder / name).is_file() for name in TOKENIZER):
        raise TeacherError(f"{folder} must hold a tokenizer ({' or '.join(TOKENIZER)}); none is there.")
    return HFTokenizer(str(folder), context_length=context_length, clean=clean)
