"""Dual encoders: real configs against a second way to compute their maps, from raw weights, one word at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from timm.layers import apply_rot_embed_cat
from torch import Tensor
from torch.nn import functional as F

from lfi_pipeline.core.errors import ConfigError, TeacherError, UnknownNameError
from lfi_pipeline.targets import TeacherSpec
from lfi_pipeline.teachers.dual import DUAL_KINDS, DualTeacher
from lfi_pipeline.teachers.dual_trunks import POOL, trunk_of
from lfi_pipeline.teachers.settings import WORD_TEMPLATE
from lfi_pipeline.teachers.text import EncodedText, Word

LAYERS = 3  # of each trunk and text tower; widths, heads, pooling and grids are the configs' own
CONFIGS = {"ViT-B-32": "token", "ViT-B-16-SigLIP": "attention", "EVA02-B-16": "token"}
WORDS = ("dog", "umbrella")
CENTRE = ("cat", "dog", "owl", "bicycle")


@pytest.fixture(scope="module", params=CONFIGS)
def real(request: pytest.FixtureRequest, real_config: Callable[..., DualTeacher], sentencepiece_folder: Path) -> Any:
    """A dual encoder as open_clip builds it, its trunk cut after building where timm names its depth."""
    changes: dict[str, Any] = {"text_cfg.layers": LAYERS}
    if "timm" not in str(open_clip.get_model_config(request.param)["vision_cfg"]):
        changes["vision_cfg.layers"] = LAYERS
    if "SigLIP" in request.param:
        changes["text_cfg.hf_tokenizer_name"] = str(sentencepiece_folder)
    teacher = real_config(request.param, changes)
    if len(teacher.trunk.blocks) > LAYERS:
        trunk = teacher.model.visual.trunk
        trunk.blocks = trunk.blocks[:LAYERS]
        generator = torch.Generator().manual_seed(1)
        for parameter in trunk.parameters():  # timm leaves biases and queries at zero, which would hide them
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
        teacher = DualTeacher(teacher.model, teacher.tokenizer, teacher.identity)
    return teacher


# --- the second way -----------------------------------------------------------------------------------------


@dataclass
class Reference:
    """One image: [1, ...] tensors on the path of `embedding`."""

    after: list[Tensor]  # tokens after each block [1+N or N, D]
    entering: list[Tensor]  # tokens that enter each block's attention
    attention: list[Tensor]  # [H, T, T] of each block
    pool: Tensor | None  # [H, 1, N]
    pooled_from: Tensor | None  # tokens that enter the pool
    embedding: Tensor  # [E], unit


def _heads(x: Tensor, heads: int) -> Tensor:
    return torch.stack(x.chunk(heads, dim=-1))  # [H, T, C]


def _soft(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    probabilities = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
    return torch.cat(list(probabilities @ v), dim=-1), probabilities


def _clip_block(block: Any, x: Tensor, reference: Reference) -> Tensor:
    attn, y = block.attn, F.layer_norm(x, x.shape[-1:], block.ln_1.weight, block.ln_1.bias)
    q, k, v = (_heads(part, attn.num_heads) for part in (y @ attn.in_proj_weight.T + attn.in_proj_bias).chunk(3, -1))
    mixed, probabilities = _soft(q, k, v)
    reference.entering.append(y)
    reference.attention.append(probabilities)
    x = x + mixed @ attn.out_proj.weight.T + attn.out_proj.bias
    return x + block.mlp(block.ln_2(x))


def _timm_block(block: Any, x: Tensor, rope: Tensor | None, reference: Reference) -> Tensor:
    attn, y = block.attn, block.norm1(x)
    if getattr(attn, "q_proj", None) is not None:
        q, k, v = attn.q_proj(y), attn.k_proj(y), attn.v_proj(y)
    else:
        bias = attn.qkv.bias
        if bias is None and getattr(attn, "q_bias", None) is not None:
            bias = torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
        q, k, v = F.linear(y, attn.qkv.weight, bias).chunk(3, -1)
    q, k, v = (_heads(part, attn.num_heads) for part in (q, k, v))
    if rope is not None:  # of the patches, not of CLS
        q, k = (torch.cat([part[:, :1], apply_rot_embed_cat(part[:, 1:], rope)], dim=1) for part in (q, k))
    mixed, probabilities = _soft(q, k, v)
    reference.entering.append(y)
    reference.attention.append(probabilities)
    x = x + F.linear(attn.norm(mixed), attn.proj.weight, attn.proj.bias)
    return x + block.mlp(block.norm2(x))


def _map_pool(pool: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """[N, D] -> [D] and the attention [H, 1, N]."""
    q = _heads(F.linear(pool.latent[0], pool.q.weight, pool.q.bias), pool.num_heads)
    width = pool.kv.weight.shape[0] // 2
    k, v = (
        _heads(F.linear(x, pool.kv.weight[part], pool.kv.bias[part]), pool.num_heads)
        for part in (slice(0, width), slice(width, None))
    )
    mixed, probabilities = _soft(q, k, v)
    y = mixed @ pool.proj.weight.T + pool.proj.bias
    return (y + pool.mlp(pool.norm(y)))[0], probabilities


def _reference(model: Any, image: Tensor) -> Reference:
    visual = model.visual
    found = Reference([], [], [], None, None, torch.empty(0))
    if hasattr(visual, "trunk"):
        trunk = visual.trunk
        patches = trunk.patch_embed.proj(image[None]).flatten(2).mT
        rope = None
        if trunk.cls_token is not None:
            patches = torch.cat([trunk.cls_token, patches], dim=1)
        x = (patches + trunk.pos_embed)[0]
        if getattr(trunk, "rope", None) is not None:
            rope = trunk.rope.get_embed()
        for block in trunk.blocks:
            x = _timm_block(block, x, rope, found)
            found.after.append(x)
        x = F.layer_norm(x, x.shape[-1:], trunk.norm.weight, trunk.norm.bias, trunk.norm.eps)
        if trunk.attn_pool is not None:
            found.pooled_from = x
            pooled, found.pool = _map_pool(trunk.attn_pool, x)
        else:
            pooled = x[0]
        pooled = visual.head(trunk.head(trunk.fc_norm(pooled)))
    else:
        patches = F.conv2d(image[None], visual.conv1.weight, stride=visual.patch_size).flatten(2).mT[0]
        x = torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding
        x = visual.ln_pre(x)
        for block in visual.transformer.resblocks:
            x = _clip_block(block, x, found)
            found.after.append(x)
        pooled = visual.ln_post(x[0]) @ visual.proj
    found.embedding = pooled / pooled.norm()
    return found


def _embedded_alone(model: Any, token: Tensor) -> Tensor:
    visual = model.visual
    if not hasattr(visual, "trunk"):
        return visual.ln_post(token) @ visual.proj
    trunk = visual.trunk
    y = trunk.norm(token)
    if trunk.attn_pool is not None:
        pool = trunk.attn_pool
        width = pool.kv.weight.shape[0] // 2
        y = pool.proj(F.linear(y, pool.kv.weight[width:], pool.kv.bias[width:]))
        y = y + pool.mlp(pool.norm(y))
    return visual.head(trunk.head(trunk.fc_norm(y)))


def _masses(teacher: DualTeacher, image: Tensor, word: str, kind: str) -> list[Tensor]:
    model = teacher.model
    with torch.no_grad():
        each = model.encode_text(teacher.tokenizer([f"a photo of a {text}." for text in (word, *CENTRE)]))
        each = each / each.norm(dim=-1, keepdim=True)
        e, t = each[0] - each[1:].mean(0), float(model.logit_scale.exp())
    reference = _reference(model, image.clone().requires_grad_())
    score = t * (reference.embedding @ e)
    patches = teacher.grid[0] * teacher.grid[1]
    if kind == "similarity":
        alone = [torch.stack([_embedded_alone(model, x) for x in tokens[-patches:]]) for tokens in reference.after]
        return [(t * (each @ e) / each.norm(dim=-1)).softmax(0).detach() for each in alone]
    if kind == "value":
        attn, width = model.visual.transformer.resblocks[-1].attn, reference.entering[-1].shape[-1]
        read = F.linear(
            reference.entering[-1][-patches:], attn.in_proj_weight[2 * width :], attn.in_proj_bias[2 * width :]
        )
        each = model.visual.ln_post(F.linear(read, attn.out_proj.weight, attn.out_proj.bias)) @ model.visual.proj
        return [(t * (each @ e) / each.norm(dim=-1)).softmax(0).detach()]
    if kind == "contrastive":  # every model here has a look to weigh
        look = reference.attention[-1] if reference.pool is None else reference.pool
        entering = reference.entering[-1] if reference.pooled_from is None else reference.pooled_from
        at_tokens, at_look = torch.autograd.grad(score, [entering, look])
        weighted = (look * at_look.clamp_min(0)).mean(0)[0]
        return [((at_tokens * entering).sum(-1).clamp_min(0) * weighted).detach()]
    if kind == "gradcam":
        places = reference.attention if reference.pool is None else [reference.pool]
        gradients = torch.autograd.grad(score, places)
        return [(a * g.clamp_min(0)).mean(0)[0].detach() for a, g in zip(places, gradients, strict=True)]
    x = reference.entering[-1] if reference.pooled_from is None else reference.pooled_from
    return [(torch.autograd.grad(score, x)[0] * x).sum(-1).clamp_min(0).detach()]


# --- against the first --------------------------------------------------------------------------------------


def _words(texts: Sequence[str]) -> list[Word]:
    return [Word(text, (i,)) for i, text in enumerate(texts)]


def _images(teacher: DualTeacher, count: int) -> Tensor:
    return torch.randn(count, 3, *teacher.image_size, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("kind", DUAL_KINDS)
def test_maps_of_real_configs_are_those_of_the_definition(real: DualTeacher, kind: str) -> None:
    if kind not in real.kinds:
        assert kind == "value"
        assert not real.trunk.own_blocks
        return
    images, text = _images(real, 2), EncodedText((), ())
    layers = real.layers(kind, LAYERS)
    words = [[*_words(WORDS), None], [None, *_words(WORDS[:1])]]
    settings = replace(real.map_settings(kind, centre=CENTRE), support=0.0)
    found = real.interaction_maps(images, [text] * 2, words, kind=kind, layers=layers, settings=settings)
    assert found.maps.shape == (2, len(layers), 3, *real.grid)
    present = torch.tensor([[1.0, 1, 0], [0, 1, 0]])[:, None].expand(found.maps.shape[:3])
    torch.testing.assert_close(found.maps.sum((-1, -2)), present, atol=1e-5, rtol=0)
    patches = real.grid[0] * real.grid[1]
    for b, m, word in ((0, 0, WORDS[0]), (0, 1, WORDS[1]), (1, 1, WORDS[0])):
        masses = _masses(real, images[b], word, kind)
        assert len(masses) == len(layers)
        for layer, mass in enumerate(masses):
            expected = mass[-patches:] / mass[-patches:].sum()
            difference = (found.maps[b, layer, m].flatten() - expected).abs().max()
            assert difference <= 1e-5
            assert difference <= 0.05 * expected.std()  # maps of random weights are nearly flat
            torch.testing.assert_close(found.kept[b, layer, m], mass[-patches:].sum() / mass.sum(), atol=1e-5, rtol=0)


def test_embeddings_are_those_of_the_model(real: DualTeacher) -> None:
    images = _images(real, 2)
    with torch.no_grad():
        expected = F.normalize(real.model.encode_image(images), dim=-1)
        words = F.normalize(real.model.encode_text(real.tokenizer(["a photo of a dog."])), dim=-1)
    for kind in real.kinds:
        found = real.interaction_maps(
            images, [EncodedText((), ())] * 2, [_words(WORDS)] * 2, kind=kind, layers=real.layers(kind, 1)
        )
        torch.testing.assert_close(found.image_embedding, expected, atol=1e-5, rtol=1e-4)
        assert not found.maps.requires_grad
    torch.testing.assert_close(real.embed_words(["dog"]), words, atol=1e-5, rtol=1e-4)
    assert real.embed_words([]).shape == (0, real.embedding_dim)
    assert found.image_embedding.shape == (2, real.embedding_dim)


@pytest.mark.parametrize("kind", DUAL_KINDS)
def test_captions_of_one_image_share_its_pass_and_get_their_own_maps(real: DualTeacher, kind: str) -> None:
    if kind not in real.kinds:
        return
    images, text, layers = _images(real, 2), EncodedText((), ()), real.layers(kind, 1)
    dog, umbrella = _words(WORDS)
    seen: list[Tensor] = []
    handle = real.model.visual.register_forward_hook(lambda _module, args, _output: seen.append(args[0]))
    shared = real.interaction_maps(
        images,
        [text] * 3,
        [[dog], [umbrella], [dog, umbrella]],
        kind=kind,
        layers=layers,
        image_of=[1, 0, 1],
    )
    handle.remove()
    assert [len(each) for each in seen] == [2]
    single = real.interaction_maps(images, [text] * 2, [[dog, umbrella]] * 2, kind=kind, layers=layers).maps
    torch.testing.assert_close(shared.maps[0, :, 0], single[1, :, 0], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(shared.maps[1, :, 0], single[0, :, 1], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(shared.maps[2], single[1], atol=1e-6, rtol=1e-4)
    assert not shared.maps[:2, :, 1].any()
    assert shared.image_embedding.shape[0] == 2


@pytest.mark.parametrize("kind", DUAL_KINDS)
def test_reduced_precision_stays_near_and_is_fp32_where_it_is_differentiated(real: DualTeacher, kind: str) -> None:
    if kind not in real.kinds:
        return
    images, text, layers = _images(real, 1), EncodedText((), ()), real.layers(kind, 1)
    half = DualTeacher(real.model, real.tokenizer, _with_precision(real.identity))
    assert half.precision == "bf16"
    exact, found = (
        teacher.interaction_maps(images, [text], [_words(WORDS)], kind=kind, layers=layers) for teacher in (real, half)
    )
    assert found.maps.dtype == torch.float32
    torch.testing.assert_close(found.maps.sum((-1, -2)), torch.ones(1, 1, 2), atol=1e-5, rtol=0)
    away = (found.maps - exact.maps).abs().sum((-1, -2))
    assert away.max() < 0.1  # of a total mass of 1
    assert away.max() > 0  # it did run in less than fp32
    torch.testing.assert_close(found.image_embedding, exact.image_embedding, atol=2e-2, rtol=0)
    assert not torch.is_autocast_enabled("cpu")


def _with_precision(identity: TeacherSpec) -> TeacherSpec:
    return TeacherSpec(
        name=identity.name,
        tag=identity.tag,
        weights_sha256=identity.weights_sha256,
        family=identity.family,
        precision="bf16",
    )


# --- a small one --------------------------------------------------------------------------------------------

TEXT = {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1}
VISION = {"image_size": 32, "patch_size": 8, "width": 32, "head_width": 8, "layers": 4}
IDENTITY = TeacherSpec(name="small", tag="test", weights_sha256="0" * 64, family="dual")


def small(**vision: object) -> DualTeacher:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.CLIP(embed_dim=16, vision_cfg={**VISION, **vision}, text_cfg=TEXT)
    return DualTeacher(model, open_clip.SimpleTokenizer(context_length=32), IDENTITY)


@pytest.mark.parametrize("vision", [{}, {"pool_type": "avg"}, {"pool_type": "avg", "final_ln_after_pool": True}])
@pytest.mark.parametrize("kind", DUAL_KINDS)
def test_the_map_of_the_mirrored_image_is_mirrored_where_the_teacher_is_blind_to_sides(
    vision: dict[str, object], kind: str
) -> None:
    teacher = small(**vision)
    if kind not in teacher.kinds:
        return
    visual = teacher.model.visual
    visual.conv1.weight.data += visual.conv1.weight.data.flip(-1)
    positions = visual.positional_embedding.data[1:].view(4, 4, -1)
    positions += positions.flip(1).clone()
    images, text, layers = _images(teacher, 2), EncodedText((), ()), teacher.layers(kind, 2)
    plain, mirrored = (
        teacher.interaction_maps(x, [text] * 2, [_words(WORDS)] * 2, kind=kind, layers=layers).maps
        for x in (images, images.flip(-1))
    )
    torch.testing.assert_close(mirrored, plain.flip(-1), atol=1e-5, rtol=1e-3)
    assert (plain - plain.flip(-1)).abs().max() > 1e-4
    torch.testing.assert_close(plain.sum((-1, -2)), torch.ones(2, len(layers), 2))


def test_relevance_with_cls_ignores_what_the_last_block_does_not_show_it() -> None:
    """With the value rows of the last attention zero, nothing passes from patches to CLS: no map, and no NaN."""
    teacher = small()
    attn = teacher.model.visual.transformer.resblocks[-1].attn
    attn.in_proj_weight.data[-32:] = 0
    found = teacher.interaction_maps(
        _images(teacher, 1),
        [EncodedText((), ())],
        [_words(WORDS)],
        kind="relevance",
        layers=teacher.layers("relevance", 1),
    )
    assert not found.maps.any()
    assert torch.isfinite(found.kept).all()


def test_layers_by_number_and_by_index() -> None:
    teacher = small()
    names = [layer.name for layer in teacher.layers("similarity", 2)]
    assert names == ["visual.transformer.resblocks.1", "visual.transformer.resblocks.3"]
    chosen = teacher.layers("gradcam", [0, 2])
    assert [(layer.name[-1], layer.depth) for layer in chosen] == [("0", 0.25), ("2", 0.75)]
    assert len(teacher.layers("relevance", 9)) == 1
    for wrong in (0, 5, [4], [2, 1], [1, 1], []):
        with pytest.raises(ConfigError, match="layer"):
            teacher.layers("similarity", wrong)


def test_what_it_cannot_do_is_refused() -> None:
    teacher = small()
    text, images = teacher.encode_text("a dog"), _images(teacher, 1)
    layers = teacher.layers("similarity", 1)
    with pytest.raises(UnknownNameError, match=r"map kind 'attention'.*gradcam, relevance, similarity"):
        teacher.interaction_maps(images, [text], [text.words], kind="attention", layers=layers)
    with pytest.raises(ConfigError, match="row must be 'emitting' for small"):
        teacher.interaction_maps(images, [text], [text.words], kind="similarity", layers=layers, row="reading")
    with pytest.raises(ConfigError, match=r"image_of must name one of 1 image\(s\) for each of 2 text"):
        teacher.interaction_maps(images, [text] * 2, [text.words] * 2, kind="similarity", layers=layers)
    with pytest.raises(TeacherError, match="small cannot write captions"):
        teacher.generate(images)
    assert not teacher.can_generate
    assert teacher.default_kind in teacher.kinds


def test_the_template_is_what_a_word_is_read_in() -> None:
    teacher = small()
    bare = DualTeacher(copy.deepcopy(teacher.model), teacher.tokenizer, IDENTITY, word_template="{}")
    with torch.no_grad():
        expected = F.normalize(
            teacher.model.encode_text(teacher.tokenizer(["dog", WORD_TEMPLATE.format("dog")])), dim=-1
        )
    torch.testing.assert_close(bare.embed_words(["dog"])[0], expected[0])
    torch.testing.assert_close(teacher.embed_words(["dog"])[0], expected[1])


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("RN50", "a ModifiedResNet"),
        ("convnext_base", "a ConvNeXt"),
        ("ViTamin-S", "its patches come out of a HybridEmbed"),
        ("coca_ViT-B-32", "its attentional pooler belongs to a CoCa"),
    ],
)
def test_towers_without_plain_patches_are_refused(name: str, why: str) -> None:
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        visual = open_clip.model._build_vision_tower(config["embed_dim"], config["vision_cfg"])
    with pytest.raises(TeacherError, match=rf"{name} must be a plain vision transformer.*{why}"):
        trunk_of(visual, name)


@pytest.mark.parametrize("kind", ["contrastive", "similarity", "gradcam"])
def test_blocks_are_compiled_up_to_where_maps_are_made(real: DualTeacher, kind: str) -> None:
    images, texts, words = _images(real, 2), [EncodedText((), ())] * 2, [_words(WORDS)] * 2
    options: dict[str, Any] = {"kind": kind, "layers": real.layers(kind, 1)}
    plain = real.interaction_maps(images, texts, words, **options)
    graphs: list[Any] = []

    def backend(graph: Any, _inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    with real.compiled(2, 8, backend=backend):
        made = real.interaction_maps(images, texts, words, **options)
    assert graphs
    torch.testing.assert_close(made.maps, plain.maps, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(made.image_embedding, plain.image_embedding, atol=1e-5, rtol=1e-4)


def test_the_pool_of_siglip_is_the_only_place_of_its_gradcam(real: DualTeacher) -> None:
    names = [layer.name for layer in real.layers("gradcam", 2)]
    assert (names == [POOL]) == (real.trunk.pooling == "attention")
    assert CONFIGS[real.identity.name.removesuffix("-cut")] == real.trunk.pooling
