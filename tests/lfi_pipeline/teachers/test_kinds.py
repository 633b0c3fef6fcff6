"""Every kind against a second way to compute it: raw projection weights, one image and one word at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lfi_pipeline.teachers import CocaTeacher
from lfi_pipeline.teachers.kinds import KINDS
from lfi_pipeline.teachers.text import EncodedText, Word

FORMS = ("pooler", "cascade", "parallel", "no pooler")
STEPS = 8
CENTRE = ("owl", "dog", "elephant", "strawberry")
CAPTIONS = ("a strawberry left of a dog", "an owl", "there is a pineapple and a dog with a dog above an elephant")


def _attend(layer: nn.MultiheadAttention, queries: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """[T, C], [S, C'] -> output [T, C] and the probabilities [H, T, S] that lie on its path."""
    width, heads = layer.embed_dim, layer.num_heads
    if layer.in_proj_weight is None:
        weights = [layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight]
    else:
        weights = [layer.in_proj_weight[i * width : (i + 1) * width] for i in range(3)]
    biases = [layer.in_proj_bias[i * width : (i + 1) * width] for i in range(3)]
    q, k, v = (x @ w.T + b for x, w, b in zip((queries, inputs, inputs), weights, biases, strict=True))
    size = width // heads
    parts = [slice(head * size, (head + 1) * size) for head in range(heads)]
    probabilities = torch.stack([(q[:, part] @ k[:, part].T / size**0.5).softmax(-1) for part in parts])
    mixed = torch.cat([probabilities[head] @ v[:, part] for head, part in enumerate(parts)], dim=-1)
    return mixed @ layer.out_proj.weight.T + layer.out_proj.bias, probabilities


@dataclass
class Reference:
    """What one image and one caption give, all on the path of `log_probability`."""

    entering: list[Tensor]  # [1+N, D] of the pooler, or [N, D] of each decoder layer; normalised
    decoder: list[Tensor]  # per layer [H, T-1, Q]
    pooler: Tensor | None  # [H, queries, 1+N]
    log_probability: Tensor  # [T-1]

    def score(self, word: Word) -> Tensor:
        return torch.stack([self.log_probability[position - 1] for position in word.positions]).mean()


def _blocks(model: Any, image: Tensor) -> list[Tensor]:
    """The tokens [1+N, D] after each block of the trunk."""
    caught: list[Tensor] = []
    handles = [
        block.register_forward_hook(lambda layer, args, output: caught.append(output[0]))
        for block in model.visual.transformer.resblocks
    ]
    with torch.no_grad():
        model.visual(image[None])
    for handle in handles:
        handle.remove()
    return caught


def _contrastive(teacher: CocaTeacher, form: str, tokens: Tensor, word: Word) -> Tensor:
    """Integrated gradients from the mean patch, times the first query's Grad-CAM; by autograd."""
    model, visual = teacher.model, teacher.model.visual
    with torch.no_grad():
        texts = torch.cat(
            [
                model.encode_text(teacher.tokenizer([teacher.word_template.format(text)]), normalize=True)
                for text in (word.text, *CENTRE)
            ]
        )
    direction = texts[0] - texts[1:].mean(0)
    pool = visual.attn_pool if form == "pooler" else visual.attn_pool_contrastive

    def score(x: Tensor) -> tuple[Tensor, Tensor]:
        normed = pool.ln_k(x if form == "pooler" else visual.ln_post(x))
        pooled, attention = _attend(pool.attn, pool.ln_q(pool.query), normed)
        embedding = (visual.ln_post(pooled) if form == "pooler" else pooled)[0] @ visual.proj
        return embedding @ direction / embedding.norm(), attention

    start, path = tokens[1:].mean(0, keepdim=True), []
    for middle in (0.125, 0.375, 0.625, 0.875):
        x = (start + (tokens - start) * middle).requires_grad_()
        path.append(torch.autograd.grad(score(x)[0], x)[0])
    first = (torch.stack(path).mean(0) * (tokens - start)).sum(-1).clamp_min(0)
    value, attention = score(tokens.clone().requires_grad_())
    (at_attention,) = torch.autograd.grad(value, [attention])
    return (first * (attention * at_attention.clamp_min(0))[:, 0].mean(0)).detach()


def _read(model: Any, form: str, tokens: Tensor, ids: Tensor) -> Reference:
    visual, decoder = model.visual, model.text_decoder
    pooler, normed = None, []
    if form == "no pooler":
        seen = visual.ln_post(tokens)[1:]
    else:
        pool = visual.attn_pool
        normed = [pool.ln_k(tokens if form == "pooler" else visual.ln_post(tokens))]
        pooled, pooler = _attend(pool.attn, pool.ln_q(pool.query), normed[0])
        seen = visual.ln_post(pooled)[1:] if form == "pooler" else pooled
    text = model.text(ids[None])[1][0, :-1]
    maps = []
    for block, cross in zip(decoder.resblocks, decoder.cross_attn, strict=True):
        text = block(text[None], attn_mask=decoder.attn_mask[: len(text), : len(text)])[0]
        kv = cross.ln_1_kv(seen)
        if pooler is None:
            normed.append(kv)
        mixed, probabilities = _attend(cross.attn, cross.ln_1(text), kv)
        maps.append(probabilities)
        text = text + mixed
        text = text + cross.mlp(cross.ln_2(text))
    logits = decoder.ln_final(text) @ decoder.text_projection
    return Reference(normed, maps, pooler, logits.log_softmax(-1)[torch.arange(len(text)), ids[1:]])


def _to_patches(reference: Reference, row: Tensor) -> Tensor:
    if reference.pooler is None:
        return row
    return row @ reference.pooler.mean(0)[-len(row) :]


def _mass(
    teacher: CocaTeacher, form: str, image: Tensor, encoded: EncodedText, word: Word, kind: str, row: str
) -> list[Tensor]:
    """Unnormalised mass [1+N or N] per layer, from the definitions."""
    model, after = teacher.model, _blocks(teacher.model, image)
    if kind == "contrastive":
        return [_contrastive(teacher, form, tokens, word) for tokens in after]
    ids, tokens = torch.tensor(encoded.ids), after[-1].clone().requires_grad_()
    reference = _read(model, form, tokens, ids)
    positions = [position - (row == "emitting") for position in word.positions]
    if kind == "attention":
        return [_to_patches(reference, a.mean(0)[positions].mean(0)) for a in reference.decoder]
    if kind == "gradcam":
        gradients = torch.autograd.grad(reference.score(word), reference.decoder)
        pairs = zip(reference.decoder, gradients, strict=True)
        return [_to_patches(reference, (a * g.clamp_min(0)).mean(0)[positions].mean(0)) for a, g in pairs]
    if kind == "gradcam_pooler":
        gradient = torch.autograd.grad(reference.score(word), reference.pooler)[0]
        return [(reference.pooler * gradient.clamp_min(0)).mean(0).sum(0)]
    if kind == "relevance":
        gradients = torch.autograd.grad(reference.score(word), reference.entering)
        return [sum((g * x).sum(-1) for g, x in zip(gradients, reference.entering, strict=True)).clamp_min(0)]
    if kind == "agreement":
        parts = [_mass(teacher, form, image, encoded, word, part, row)[0] for part in ("integrated", "gradcam_pooler")]
        return [parts[0] * parts[1]]
    if kind == "agreement_contrastive":
        parts = [_mass(teacher, form, image, encoded, word, part, row)[-1] for part in ("agreement", "contrastive")]
        return [parts[0] * parts[1]]
    assert kind == "integrated"
    start = tokens.detach()[1:].mean(0, keepdim=True)
    path = []
    for step in range(1, STEPS + 1):
        x = (start + (tokens.detach() - start) * step / STEPS).requires_grad_()
        path.append(torch.autograd.grad(_read(model, form, x, ids).score(word), x)[0])
    return [(torch.stack(path).mean(0) * (tokens.detach() - start)).sum(-1).clamp_min(0)]


def _images() -> Tensor:
    return torch.randn(len(CAPTIONS), 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kind", "row"), [("attention", "reading"), *((kind, "emitting") for kind in KINDS)])
def test_maps_are_those_of_the_definition(
    random_coca: Callable[[str], CocaTeacher], form: str, kind: str, row: str
) -> None:
    teacher = random_coca(form)
    if kind not in teacher.kinds:
        assert form in ("no pooler", "cascade")
        assert "contrastive" in kind or (form == "no pooler" and kind in ("gradcam_pooler", "agreement"))
        return
    texts = [teacher.encode_text(caption) for caption in CAPTIONS]
    words: list[list[Word | None]] = [[None, *text.words] for text in texts]
    layers = teacher.layers(kind, 2 if kind == "contrastive" else 3)  # all
    settings = teacher.map_settings(kind, centre=CENTRE, artefacts="keep")
    assert settings.steps == {"integrated": 8, "agreement": 8, "agreement_contrastive": 8, "contrastive": 4}.get(
        kind, 1
    )
    settings = replace(settings, support=0.0)
    found = teacher.interaction_maps(_images(), texts, words, kind=kind, layers=layers, row=row, settings=settings)
    assert found.maps.shape == (3, len(layers), max(map(len, words)), 4, 4)
    compared = 0
    for b, (image, text) in enumerate(zip(_images(), texts, strict=True)):
        for m, word in enumerate(words[b]):
            if word is None:
                continue
            expected = _mass(teacher, form, image, text, word, kind, row)
            assert len(expected) == len(layers)
            for layer, mass in enumerate(expected):
                patches = mass[-16:]
                torch.testing.assert_close(
                    found.maps[b, layer, m].flatten(), patches / patches.sum(), atol=1e-5, rtol=1e-4
                )
                torch.testing.assert_close(found.kept[b, layer, m], patches.sum() / mass.sum(), atol=1e-5, rtol=1e-4)
                assert (patches / patches.sum()).std() > 1e-3  # not a uniform map, which anything would match
                compared += 1
    assert compared == len(layers) * sum(len(text.words) for text in texts)


# Random weights as open_clip draws them. All keep their widths, heads and pooling, and lose layers, the largest one patches
# too. The text tower
# of coca_roberta and its tokenizer are made here: theirs are on the hub.
CONFIGS: dict[str, dict[str, Any]] = {
    "coca_ViT-B-32": {"vision_cfg.layers": 3, "text_cfg.layers": 1, "multimodal_cfg.layers": 3},
    "coca_ViT-L-14": {
        "vision_cfg.layers": 1,
        "vision_cfg.image_size": 98,
        "text_cfg.layers": 1,
        "multimodal_cfg.layers": 2,
    },
    "coca_base": {"vision_cfg.layers": 1, "text_cfg.layers": 1, "multimodal_cfg.layers": 2},
    "coca_roberta-ViT-B-32": {"vision_cfg.layers": 1, "multimodal_cfg.layers": 2},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_maps_of_every_config_are_those_of_the_definition(
    real_config: Callable[..., CocaTeacher], request: pytest.FixtureRequest, name: str
) -> None:
    changes = dict(CONFIGS[name])
    if "roberta" in name:
        folder = str(request.getfixturevalue("roberta_folder"))
        changes |= {"text_cfg.hf_model_name": folder, "text_cfg.hf_tokenizer_name": folder}
    teacher = real_config(name, changes)
    form = "pooler" if teacher.pooler is not None else "no pooler"
    text = teacher.encode_text("an unbelievable dog")
    word = text.words[0]
    image = torch.randn(3, *teacher.image_size, generator=torch.Generator().manual_seed(3))
    patches = teacher.grid[0] * teacher.grid[1]
    masses: dict[str, list[Tensor]] = {}
    products = {"agreement": ("integrated", "gradcam_pooler"), "agreement_contrastive": ("agreement", "contrastive")}
    for kind in sorted(teacher.kinds, key=[*KINDS].index):  # so that the factors of a product come before it
        if kind in products:
            first, second = products[kind]
            masses[kind] = [masses[first][0] * masses[second][-1]]
        else:
            masses[kind] = _mass(teacher, form, image, text, word, kind, "emitting")
        layers = teacher.layers(kind, min(2, len(masses[kind])))
        settings = replace(teacher.map_settings(kind, centre=CENTRE), support=0.0)
        found = teacher.interaction_maps(
            image[None], [text], [[word]], kind=kind, layers=layers, settings=settings
        ).maps[0, :, 0]
        torch.testing.assert_close(found.sum((-1, -2)), torch.ones(len(layers)), atol=1e-5, rtol=0)
        one = len(masses[kind]) == 1
        chosen = [masses[kind][-1 if one else int(layer.name.rpartition(".")[2])] for layer in layers]
        for i, mass in enumerate(chosen):
            expected = mass[-patches:] / mass[-patches:].sum()
            difference = (found[i].flatten() - expected).abs().max()
            assert difference <= 1e-5, (kind, i)
            assert difference <= 0.05 * expected.std(), (kind, i)  # maps of random weights are nearly flat
