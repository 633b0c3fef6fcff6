from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lfi_pipeline.core.errors import ConfigError, UnknownNameError
from lfi_pipeline.teachers import CocaTeacher, InteractionMaps
from lfi_pipeline.teachers.attention import probe_attention
from lfi_pipeline.teachers.config import require_row
from lfi_pipeline.teachers.kinds import KINDS
from lfi_pipeline.teachers.text import Word

FORMS = ("pooler", "cascade", "parallel", "no pooler")
SHORT, LONG = "an owl", "there is a strawberry left of a dog with an umbrella above a pineapple"

Build = Callable[[str], CocaTeacher]


def _images(count: int) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def _maps(
    teacher: CocaTeacher, images: Tensor, captions: list[str], kind: str, words: list[list[Word | None]] | None = None
) -> InteractionMaps:
    texts = [teacher.encode_text(caption) for caption in captions]
    chosen = words or [list(text.words) for text in texts]
    return teacher.interaction_maps(images, texts, chosen, kind=kind, layers=teacher.layers(kind, 2))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_distributions_and_rows_without_a_word_are_zero(random_coca: Build, kind: str) -> None:
    teacher = random_coca("pooler")
    words = list(teacher.encode_text(LONG).words)
    found = _maps(teacher, _images(3), [LONG] * 3, kind, [[words[0], None, words[1]], [], [None, words[2]]])
    assert found.maps.dtype == torch.float32
    assert found.maps.shape == (3, len(teacher.layers(kind, 2)), 3, 4, 4)
    sums = found.maps.sum((-1, -2))
    present = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0]]).bool()[:, None].expand_as(sums)
    torch.testing.assert_close(sums[present], torch.ones_like(sums[present]))
    assert (found.maps >= 0).all()
    assert not found.maps[~present].any()
    assert not found.kept[~present].any()
    assert ((found.kept[present] > 0) & (found.kept[present] <= 1 + 1e-6)).all()


def test_mass_on_cls_is_not_kept(random_coca: Build) -> None:
    assert _maps(random_coca("pooler"), _images(1), [LONG], "attention").kept.max() < 0.9999
    kept = _maps(random_coca("no pooler"), _images(1), [LONG], "attention").kept  # the decoder does not see CLS
    torch.testing.assert_close(kept, torch.ones_like(kept))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_image_alone_gets_the_maps_it_gets_beside_longer_captions(random_coca: Build, form: str, kind: str) -> None:
    teacher = random_coca(form)
    if kind not in teacher.kinds:
        return
    images = _images(3)
    alone = _maps(teacher, images[:1], [SHORT], kind)
    together = _maps(teacher, images, [SHORT, LONG, LONG], kind)
    slots = alone.maps.shape[2]
    torch.testing.assert_close(together.maps[:1, :, :slots], alone.maps, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.kept[:1, :, :slots], alone.kept, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together.image_embedding[:1], alone.image_embedding, atol=1e-5, rtol=1e-4)
    assert not together.maps[:1, :, slots:].any()


def test_the_maps_of_a_word_are_the_mean_of_its_tokens_rows(random_coca: Build) -> None:
    teacher = random_coca("pooler")
    whole = next(word for word in teacher.encode_text(LONG).words if len(word.positions) >= 3)
    pieces: list[Word | None] = [Word("piece", (position,)) for position in whole.positions]
    found = _maps(teacher, _images(1), [LONG], "attention", [[whole, *pieces]])
    mass = found.maps * found.kept[..., None, None]
    torch.testing.assert_close(mass[:, :, 0], mass[:, :, 1:].mean(2), atol=1e-6, rtol=1e-5)


def test_reading_row_of_a_token_is_the_emitting_row_of_the_next(random_coca: Build) -> None:
    teacher = random_coca("pooler")
    text, layers = teacher.encode_text(LONG), teacher.layers("attention", 3)
    rows: list[Word | None] = [Word("x", (4,)), Word("y", (5,))]
    reading, emitting = (
        teacher.interaction_maps(_images(1), [text], [rows], kind="attention", layers=layers, row=row).maps
        for row in ("reading", "emitting")
    )
    torch.testing.assert_close(reading[:, :, 0], emitting[:, :, 1])
    assert (reading[:, :, 0] - emitting[:, :, 0]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_the_map_of_the_mirrored_image_is_mirrored_where_the_teacher_is_blind_to_sides(
    random_coca: Build, kind: str
) -> None:
    """Filters and positions made symmetric, nothing but the orientation of the grid is left to tell the views apart."""
    built = random_coca("pooler")
    teacher = CocaTeacher(copy.deepcopy(built.model), built.tokenizer, built.identity)
    visual = teacher.model.visual
    visual.conv1.weight.data += visual.conv1.weight.data.flip(-1)
    positions = visual.positional_embedding.data[1:].view(4, 4, -1)
    positions += positions.flip(1).clone()
    images = _images(2)
    plain, mirrored = (_maps(teacher, x, [LONG] * 2, kind).maps for x in (images, images.flip(-1)))
    torch.testing.assert_close(mirrored, plain.flip(-1), atol=1e-4, rtol=1e-3)
    assert (plain - plain.flip(-1)).abs().max() > 1e-2
    assert (plain - plain.transpose(-1, -2)).abs().max() > 1e-2


@pytest.mark.parametrize("form", FORMS)
def test_embeddings_are_those_of_the_model(random_coca: Build, form: str) -> None:
    teacher = random_coca(form)
    found = _maps(teacher, _images(2), [SHORT, LONG], "attention").image_embedding
    with torch.no_grad():
        expected = teacher.model.encode_image(_images(2), normalize=True).reshape(2, -1)
    assert found.shape == (2, teacher.embedding_dim)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_word_embeddings_are_those_of_the_text_tower_whatever_the_batch(random_coca: Build) -> None:
    teacher = random_coca("pooler")
    words = ["dog", "pineapple", "owl"]
    found = teacher.embed_words(words, batch_size=2)
    with torch.no_grad():
        texts = [f"a photo of a {word}." for word in words]  # as text towers were trained: on captions
        expected = teacher.model.encode_text(teacher.tokenizer(texts), normalize=True)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))
    assert teacher.embed_words([]).shape == (0, teacher.embedding_dim)


@pytest.mark.parametrize("form", FORMS)
def test_logits_are_unchanged_by_the_probe_and_by_having_read(random_coca: Build, form: str) -> None:
    teacher = random_coca(form)
    model, ids = teacher.model, teacher.tokenizer([SHORT, LONG])
    probes = {f"{i}": block.attn for i, block in enumerate(model.text_decoder.cross_attn)}
    if teacher.pooler is not None:
        probes["pooler"] = teacher.pooler.attn
    with torch.no_grad():
        plain = model(_images(2), ids)["logits"]
        with probe_attention(probes) as seen:
            probed = model(_images(2), ids)["logits"]
        assert set(seen) == set(probes)
        torch.testing.assert_close(probed, plain, atol=1e-4, rtol=1e-4)
        for kind in teacher.kinds:
            _maps(teacher, _images(2), [SHORT, LONG], kind)
        torch.testing.assert_close(model(_images(2), ids)["logits"], plain, atol=0, rtol=0)
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())


def test_gradient_kinds_work_where_the_caller_has_switched_gradients_off(random_coca: Build) -> None:
    teacher = random_coca("pooler")
    expected = _maps(teacher, _images(1), [LONG], "relevance").maps
    with torch.no_grad():
        found = _maps(teacher, _images(1), [LONG], "relevance").maps
    torch.testing.assert_close(found, expected)
    assert not found.requires_grad


@pytest.mark.parametrize(("count", "chosen"), [(1, [2]), (2, [1, 2]), (3, [0, 1, 2])], ids=["one", "two", "three"])
def test_layers_are_evenly_spaced_and_end_at_the_last(random_coca: Build, count: int, chosen: list[int]) -> None:
    layers = random_coca("pooler").layers("attention", count)
    assert [layer.name for layer in layers] == [f"text_decoder.cross_attn.{i}" for i in chosen]
    assert [layer.depth for layer in layers] == [pytest.approx((i + 1) / 3) for i in chosen]


@pytest.mark.parametrize("kind", ["relevance", "integrated", "gradcam_pooler", "agreement"])
def test_kinds_of_one_place_have_one_layer_however_many_are_asked_for(random_coca: Build, kind: str) -> None:
    assert len(random_coca("pooler").layers(kind, 99)) == 1


@pytest.mark.parametrize("count", [0, 4, -1])
def test_a_number_of_layers_that_the_decoder_lacks_is_refused(random_coca: Build, count: int) -> None:
    with pytest.raises(ConfigError, match=rf"layers must be 1 to 3 for random pooler, got {count}"):
        random_coca("pooler").layers("gradcam", count)


def test_unknown_kind_lists_the_choices_that_this_teacher_has(random_coca: Build) -> None:
    teacher = random_coca("no pooler")
    with pytest.raises(
        UnknownNameError, match=r"map kind 'gradcam_pooler'.*Choices: attention, gradcam, integrated, r"
    ):
        teacher.layers("gradcam_pooler", 1)
    with pytest.raises(UnknownNameError, match=r"map kind 'saliency'.*attention.*relevance"):
        teacher.interaction_maps(_images(1), [teacher.encode_text(SHORT)], [[]], kind="saliency", layers=())


def test_rows_that_a_kind_lacks_are_refused(random_coca: Build) -> None:
    teacher = random_coca("pooler")
    text = teacher.encode_text(SHORT)
    for kind in set(KINDS) - {"attention"}:
        with pytest.raises(ConfigError, match=rf"'reading' exists for the kind 'attention' only, got kind '{kind}'"):
            teacher.interaction_maps(
                _images(1), [text], [text.words], kind=kind, layers=teacher.layers(kind, 1), row="reading"
            )
    with pytest.raises(UnknownNameError, match=r"row 'writing'.*emitting, reading"):
        require_row("writing", "attention")


def test_layers_may_be_given_by_index(random_coca: Build) -> None:
    teacher = random_coca("pooler")
    assert [layer.name[-1] for layer in teacher.layers("attention", [0, 2])] == ["0", "2"]
    every = teacher.layers("gradcam", 3)
    assert teacher.layers("gradcam", (0, 1, 2)) == every
    text = teacher.encode_text(LONG)
    maps = [
        teacher.interaction_maps(_images(1), [text], [text.words], kind="gradcam", layers=layers).maps
        for layers in (every, teacher.layers("gradcam", [1]))
    ]
    torch.testing.assert_close(maps[1][:, 0], maps[0][:, 1])
    for wrong in ([3], [1, 0], [-1], []):
        with pytest.raises(ConfigError, match=r"layer indices must be ascending and in 0\.\.2 for random pooler"):
            teacher.layers("attention", wrong)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_captions_of_one_image_share_its_pass_through_the_trunk(random_coca: Build, form: str, kind: str) -> None:
    teacher = random_coca(form)
    if kind not in teacher.kinds:
        return
    images, captions, image_of = _images(2), [SHORT, LONG, "a dog"], [1, 0, 1]
    texts = [teacher.encode_text(caption) for caption in captions]
    seen: list[int] = []
    handle = teacher.model.visual.conv1.register_forward_hook(lambda _module, args, _output: seen.append(len(args[0])))
    layers = teacher.layers(kind, 2)
    shared = teacher.interaction_maps(
        images, texts, [text.words for text in texts], kind=kind, layers=layers, image_of=image_of
    )
    handle.remove()
    assert seen == [2]
    expected = _maps(teacher, images[image_of], captions, kind)
    torch.testing.assert_close(shared.maps, expected.maps, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(shared.kept, expected.kept, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(shared.image_embedding[image_of], expected.image_embedding)
    with pytest.raises(ConfigError, match=r"image_of must name one of 2 image\(s\) for each of 3 text\(s\), got 0, 1"):
        _maps(teacher, images, captions, kind)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_words_in_one_product_get_what_each_gets_alone(
    random_coca: Build, form: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All at once, one slot at a time, and captions one by one: the slow way."""
    teacher = random_coca(form)
    if kind not in teacher.kinds:
        return
    images, captions = _images(3), [LONG, SHORT, "a pineapple above a dog"]
    texts = [teacher.encode_text(caption) for caption in captions]
    words: list[list[Word | None]] = [list(reversed(text.words)) for text in texts]  # slots need not follow the text
    together = _maps(teacher, images, captions, kind, words)
    monkeypatch.setattr("lfi_pipeline.teachers.caption_reader.GROUP_NUMBERS", 1)
    monkeypatch.setattr("lfi_pipeline.teachers.coca.SEEN_NUMBERS", 1)
    apart = _maps(teacher, images, captions, kind, words)
    torch.testing.assert_close(apart.maps, together.maps, atol=1e-5, rtol=1e-4)
    for b, row in enumerate(words):
        for m, word in enumerate(row):
            alone = _maps(teacher, images[b : b + 1], captions[b : b + 1], kind, [[word]])
            torch.testing.assert_close(alone.maps[0, :, 0], together.maps[b, :, m], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_in_reduced_precision_maps_stay_near_and_their_arithmetic_is_fp32(random_coca: Build, kind: str) -> None:
    built = random_coca("pooler")
    identity = dataclasses.replace(built.identity, precision="bf16")
    teacher = CocaTeacher(copy.deepcopy(built.model), built.tokenizer, identity)
    assert teacher.precision == "bf16"
    exact, found = (_maps(each, _images(2), [LONG] * 2, kind) for each in (built, teacher))
    assert found.maps.dtype == torch.float32
    sums = found.maps.sum((-1, -2))
    torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-5, rtol=0)
    away = (found.maps - exact.maps).abs().sum((-1, -2))  # of a total mass of 1; weights here are sharper than any real
    assert 0 < away.mean() < 0.15
    torch.testing.assert_close(found.image_embedding, exact.image_embedding, atol=0.05, rtol=0)
    torch.testing.assert_close(teacher.embed_words(["dog"]), built.embed_words(["dog"]), atol=0.05, rtol=0)
