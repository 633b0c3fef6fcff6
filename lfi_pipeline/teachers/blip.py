"""BLIP's captioner as a teacher: its decoder looks at the patches by cross-attention while it reads a caption.

Li et al., "BLIP", ICML 2022, arXiv 2201.12086. The model is transformers' own `BlipForConditionalGeneration`; its size
is checked before it is built. It learnt to write and not to compare: there is no space that images and texts share, so
a cache made by it has no zero-shot classifier. Words are embedded by the decoder's own table of tokens, and an image by
the decoder's state at the start of a text, where it has read the image and nothing else.

With s_w the log-probability of the word's tokens, A the attention of one layer [H, T, 1+N], at the steps that emit them:

- `gradcam`, the default: mean over heads of A * relu(d s_w / dA) (Chefer, Gur, Wolf, ICCV 2021, arXiv 2103.15679,
  equation 5; of a cross-attention as in ALBEF, Li et al., NeurIPS 2021, arXiv 2107.07651).
- `attention`: mean over heads of A; row `reading` is the step after the word was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lfi_pipeline.core.runtime import autocast
from lfi_pipeline.students.pretrained import bounded_build
from lfi_pipeline.targets import LayerSpec, MapSpec, TeacherSpec
from lfi_pipeline.teachers.attention import outputs_of
from lfi_pipeline.teachers.captioner import BEAMS, LONGEST, SHORTEST
from lfi_pipeline.teachers.config import require_row
from lfi_pipeline.teachers.contrastive import artefact_patches, without_artefacts
from lfi_pipeline.teachers.settings import COMMON_WORDS, on_device, settings_of_kind
from lfi_pipeline.teachers.teacher import BaseTeacher, InteractionMaps, choose_layers, normalised, require_images
from lfi_pipeline.teachers.text import EncodedText, Word
from lfi_pipeline.teachers.transformers_folder import (
    BLIP,
    Depth,
    Eps,
    Side,
    Words,
    checked_config,
    load_weights,
    pixels_of,
    read_weights,
    tokenizer_of,
)

KINDS = ("gradcam", "attention")
LAYERS = "text_decoder.bert.encoder.layer"
_Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 20)]


class _Vision(msgspec.Struct):
    """Fields that are read; what is left out has the value that transformers gives it."""

    hidden_size: Side = 768
    intermediate_size: Side = 3072
    num_hidden_layers: Depth = 12
    num_attention_heads: Side = 12
    image_size: Side = 384
    patch_size: Side = 16
    hidden_act: Literal["gelu"] = "gelu"
    layer_norm_eps: Eps = 1e-5


class _Text(msgspec.Struct):
    vocab_size: Words = 30524
    hidden_size: Side = 768
    encoder_hidden_size: Side = 768
    intermediate_size: Side = 3072
    num_hidden_layers: Depth = 12
    num_attention_heads: Side = 8
    max_position_embeddings: Side = 512
    hidden_act: Literal["gelu"] = "gelu"
    layer_norm_eps: Eps = 1e-12
    bos_token_id: _Id = 30522
    pad_token_id: _Id = 0
    eos_token_id: _Id = 2
    sep_token_id: _Id = 102


class _Config(msgspec.Struct):
    vision_config: _Vision = msgspec.field(default_factory=_Vision)
    text_config: _Text = msgspec.field(default_factory=_Text)


def load_blip(folder: Path) -> tuple[nn.Module, Any]:
    """Build the captioner in a folder that transformers saved; returns it and open_clip's wrapper of its tokenizer.

    Raises:
        TeacherError: a size is out of bounds, or the weights are not those of the config.
    """
    from transformers import BlipConfig, BlipForConditionalGeneration

    config = checked_config(folder, _Config)
    vision, text = msgspec.to_builtins(config.vision_config), msgspec.to_builtins(config.text_config)
    text["encoder_hidden_size"] = vision["hidden_size"]  # what is read; some files have an older number
    with bounded_build(str(folder)), torch.random.fork_rng(devices=[]):
        model: Any = BlipForConditionalGeneration(BlipConfig(vision_config=vision, text_config=text))
    weights = {name: value.float() for name, value in read_weights(folder).items()}
    load_weights(model, weights, folder, BLIP, tied="text_decoder.cls.predictions.decoder.")
    model.tie_weights()
    model.pixels = pixels_of(folder)
    return model, tokenizer_of(folder, config.text_config.max_position_embeddings, "lower")


class BlipTeacher(BaseTeacher):
    """BLIP's captioner with its tokenizer; a `Teacher`.

    Args:
        model: `transformers.BlipForConditionalGeneration`; put in eval mode, parameters frozen.
        tokenizer: open_clip's wrapper of its tokenizer.
        identity: name, tag, weights digest, family and precision, recorded in the spec.
    """

    default_kind = KINDS[0]
    can_generate = True
    compares = False
    word_template = "{}"

    def __init__(self, model: Any, tokenizer: Any, identity: TeacherSpec) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer, self.identity = tokenizer, identity
        vision, self._text = model.config.vision_config, model.config.text_config
        self.image_size = (vision.image_size, vision.image_size)
        self.grid = (vision.image_size // vision.patch_size,) * 2
        self.embedding_dim = int(self._text.hidden_size)
        self.interpolation: str = model.pixels["interpolation"]
        self.mean: tuple[float, float, float] = model.pixels["mean"]
        self.std: tuple[float, float, float] = model.pixels["std"]

    @property
    def blocks(self) -> list[nn.Module]:
        """The transformer blocks of the vision trunk."""
        return list(self.model.vision_model.encoder.layers)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of map that it can give, the default first."""
        return KINDS

    @property
    def logit_scale(self) -> float:
        """Of no use here: images and texts share no space."""
        return 1.0

    def layers(self, kind: str, chosen: int | Sequence[int] | None) -> tuple[LayerSpec, ...]:
        """Return the decoder layers that a map is taken at; see `Teacher`."""
        self._require_kind(kind)
        return choose_layers(self.identity.name, LAYERS, int(self._text.num_hidden_layers), chosen)

    def map_settings(
        self, kind: str, *, centre: Sequence[str] = COMMON_WORDS, steps: int = 0, artefacts: str = "fill"
    ) -> MapSpec:
        """Return how a map of `kind` is made; no word is compared with others, so the centre means nothing."""
        self._require_kind(kind)
        return settings_of_kind(
            kind,
            own_steps=0,
            steps=steps,
            word_template=self.word_template,
            centre=(),
            artefacts=artefacts,
            support=0.0,
        )

    def encode_text(self, text: str, phrases: Sequence[str] = ()) -> EncodedText:
        """Tokenise `text`, begun as the decoder's texts begin, and find its content words or `phrases`."""
        encoded = super().encode_text(text, phrases)
        return EncodedText((self._text.bos_token_id, *encoded.ids[1:]), encoded.words)

    @torch.no_grad()
    def embed_texts(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Return the mean of each text's rows in the decoder's table of tokens, fp32 unit vectors [N, E]."""
        table, inside = self.model.get_input_embeddings().weight, self.tokenizer.tokenizer
        rows = [inside(text, add_special_tokens=False)["input_ids"] or [self._text.pad_token_id] for text in texts]
        means = [table[torch.tensor(row, device=table.device)].float().mean(0) for row in rows]
        return F.normalize(torch.stack(means), dim=-1).cpu() if means else torch.zeros(0, self.embedding_dim)

    @torch.no_grad()
    def encode_image(self, images: Tensor) -> Tensor:
        """Return embeddings [B, E] of images [B, 3, H, W]: the decoder's states at the start of a text."""
        return self._first_states(self._look(images)[0])

    def interaction_maps(
        self,
        images: Tensor,
        texts: Sequence[EncodedText],
        words: Sequence[Sequence[Word | None]],
        *,
        kind: str,
        layers: Sequence[LayerSpec],
        row: str = "emitting",
        image_of: Sequence[int] | None = None,
        settings: MapSpec | None = None,
    ) -> InteractionMaps:
        """Return the maps of `words[c]` (None leaves a row empty) while the teacher reads `texts[c]`; see `Teacher`."""
        self._require_kind(kind)
        require_row(row, kind)
        chosen = require_images(len(texts), len(images), image_of)
        settings = settings or self.map_settings(kind)
        tokens, last = self._look(images)
        numbers = [int(layer.name.rpartition(".")[2]) for layer in layers]
        index = on_device(torch.tensor(chosen), self.device)
        mass = self._read(tokens[index], texts, words, kind, numbers, row)
        if settings.artefacts == "fill":
            artefacts = artefact_patches(last, self.grid[0] * self.grid[1])[index]
            mass = without_artefacts(mass, artefacts[:, None].expand(-1, mass.shape[1], -1), self.grid)
        embedding = F.normalize(self._first_states(tokens).float(), dim=-1)
        return InteractionMaps(*normalised(mass, self.grid), embedding)

    def generate(self, images: Tensor) -> list[str]:
        """Return a caption of each image [B, 3, H, W], by transformers' beam search: the same for the same image."""
        lengths = {"num_beams": BEAMS, "min_length": SHORTEST, "max_length": LONGEST, "do_sample": False}
        ids = self.model.generate(pixel_values=images, **lengths)
        return [text.strip() for text in self.tokenizer.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    @torch.no_grad()
    def _look(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the decoder sees of the images [B, 1+N, D], and the tokens after the last block."""
        with autocast(self.device, self.precision), outputs_of(self.blocks[-1:]) as after:
            tokens = self.model.vision_model(pixel_values=images).last_hidden_state
        last = after[0][0] if isinstance(after[0], tuple) else after[0]
        return tokens.float(), last.float()

    @torch.no_grad()
    def _first_states(self, tokens: Tensor) -> Tensor:
        start = torch.full((len(tokens), 1), self._text.bos_token_id, device=tokens.device)
        states: Tensor = self._decode(start, torch.ones_like(start), tokens).hidden_states[-1][:, 0]
        return states

    def _decode(self, ids: Tensor, mask: Tensor, tokens: Tensor) -> Any:
        return self.model.text_decoder(
            input_ids=ids,
            attention_mask=mask,
            encoder_hidden_states=tokens,
            use_cache=False,
            output_hidden_states=True,
            return_dict=True,
        )

    def _read(
        self,
        tokens: Tensor,
        texts: Sequence[EncodedText],
        words: Sequence[Sequence[Word | None]],
        kind: str,
        layers: Sequence[int],
        row: str,
    ) -> Tensor:
        """Mass [C, L, M, 1+N] of the words of C texts, each beside its image's tokens."""
        longest, slots = max(len(text.ids) for text in texts), max(1, *map(len, words), 1)
        ids = torch.full((len(texts), longest), self._text.pad_token_id, dtype=torch.long)
        chosen = torch.zeros(slots, len(texts), longest)  # tokens of each word
        for c, (text, own) in enumerate(zip(texts, words, strict=True)):
            ids[c, : len(text.ids)] = torch.tensor(text.ids)
            for m, word in enumerate(own):
                if word is not None:
                    chosen[m, c, torch.tensor(word.positions)] = 1
        present = torch.arange(longest) < torch.tensor([[len(t.ids)] for t in texts])
        ids, chosen, present = (on_device(each, self.device) for each in (ids, chosen, present))
        gradient = kind == "gradcam"
        with torch.set_grad_enabled(gradient), self._probed(layers) as seen:
            logits = self._decode(ids, present.long(), tokens).logits
            spoken = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]  # [C, T-1]
        attention = [seen[layer] for layer in layers]  # each [C, H, T, 1+N]
        at = chosen if row == "reading" else F.pad(chosen, (0, 1))[..., 1:]  # the step before emits a token
        if not gradient:
            weighted = [each.mean(1).expand(slots, -1, -1, -1) for each in attention]
        else:
            gradients = torch.autograd.grad(spoken, attention, chosen[..., 1:], is_grads_batched=True)
            weighted = [(a * g.relu()).mean(2).detach() for a, g in zip(attention, gradients, strict=True)]
        return torch.stack([torch.einsum("mct,mcts->cms", at, each) for each in weighted], dim=1).float()

    @contextmanager
    def _probed(self, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Fill a dict with the cross-attention of decoder layers; it passes a dropout, which is a place to see it."""
        seen: dict[int, Tensor] = {}

        def see(number: int, probabilities: Tensor) -> Tensor:
            seen[number] = probabilities.requires_grad_() if torch.is_grad_enabled() else probabilities
            return seen[number]  # the very tensor that values are weighted by

        own = [self.model.text_decoder.bert.encoder.layer[i].crossattention.self.dropout for i in layers]
        handles = [
            dropout.register_forward_hook(lambda _module, _args, output, number=number: see(number, output))
            for number, dropout in zip(layers, own, strict=True)
        ]
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()
