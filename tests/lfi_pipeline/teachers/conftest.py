"""Random CoCas of every form that open_clip builds, with the vocabulary of the tiny teacher."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory

from lfi_pipeline.targets import TeacherSpec
from lfi_pipeline.teachers import CocaTeacher, Teacher, load_teacher

# form -> (attentional_pool, width of the vision trunk); the decoder is 32 wide, so only "pooler" has kdim != embed_dim
FORMS: dict[str, tuple[bool | str, int]] = {
    "pooler": (True, 24),
    "cascade": ("cascade", 32),
    "parallel": ("parallel", 32),
    "no pooler": (False, 32),
}


@pytest.fixture(scope="session")
def random_coca(tiny_teacher: CocaTeacher) -> Callable[[str], CocaTeacher]:
    """form -> a CoCa of 32 pixels in a grid of 4 x 4, three decoder layers, and sharp attention."""
    tokenizer = tiny_teacher.tokenizer
    text = {
        "context_length": tokenizer.context_length,
        "vocab_size": tokenizer.vocab_size,
        "width": 32,
        "heads": 4,
        "layers": 3,
    }

    @cache
    def build(form: str) -> CocaTeacher:
        pool, width = FORMS[form]
        with torch.random.fork_rng():  # open_clip draws biases and the class embedding from the global generator
            torch.manual_seed(1)
            model = open_clip.CoCa(
                embed_dim=32,
                vision_cfg={
                    "image_size": 32,
                    "patch_size": 8,
                    "width": width,
                    "head_width": 8,
                    "layers": 2,
                    "attentional_pool": pool,
                    "attn_pooler_queries": 5,
                    "attn_pooler_heads": 2,
                    "output_tokens": True,
                },
                text_cfg={**text, "embed_cls": True, "output_tokens": True},
                multimodal_cfg={**text, "attn_pooler_heads": 2},
            )
        generator = torch.Generator().manual_seed(len(form))
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.data = 0.35 * torch.randn(parameter.shape, generator=generator)
            else:
                parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        return CocaTeacher(
            model, tokenizer, TeacherSpec(name=f"random {form}", tag="test", weights_sha256="0" * 64, family="coca")
        )

    return build


Config = Callable[[str, dict[str, Any]], Teacher]


@pytest.fixture(scope="module")
def real_config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """(name, changes) -> the teacher of one of open_clip's configs with `{"part.key": value}` changed, random weights.

    A part that is cut to fewer layers keeps its widths, heads, pooling and norms.
    """
    folder = tmp_path_factory.mktemp("configs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
        patch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))

        def build(name: str, changes: dict[str, Any]) -> Teacher:
            config = open_clip.get_model_config(name)
            for path, value in changes.items():
                part, _, key = path.partition(".")
                config[part][key] = value
            (folder / f"{name}-cut.json").write_text(json.dumps(config), encoding="utf-8")
            open_clip.add_model_config(folder / f"{name}-cut.json")
            return load_teacher(f"{name}-cut:random")

        yield build


CAPTIONS = (
    "a strawberry left of a dog",
    "two guinea pigs on the wooden table, near 42 unbelievable umbrellas",
    "it's the dog's bowl: naïve café! GRÜNER Käse (photo)",
)


@pytest.fixture(scope="session")
def roberta_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a byte-level tokenizer as roberta-base has and the config of a text tower of two layers."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("roberta")
    inner = tokenizers.ByteLevelBPETokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    inner.train_from_iterator(CAPTIONS, vocab_size=330, special_tokens=special, show_progress=False)
    inner._tokenizer.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner._tokenizer, unk_token="<unk>", **names)
    tokenizer.save_pretrained(folder)
    transformers.RobertaConfig(
        vocab_size=400, num_hidden_layers=2, pad_token_id=1, bos_token_id=0, eos_token_id=2, max_position_embeddings=130
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a unigram tokenizer as SigLIP has: words begin with the mark of a space, and `</s>` ends a text."""
    transformers = pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path_factory.mktemp("sentencepiece")
    inner = tokenizers.Tokenizer(tokenizers.models.Unigram())
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    inner.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=70, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>", show_progress=False
    )
    inner.train_from_iterator([caption.lower() for caption in CAPTIONS], trainer)
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    tokenizer.save_pretrained(folder)
    return folder
