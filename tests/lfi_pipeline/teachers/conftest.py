"""Random CoCas of every form that open_clip builds, with the vocabulary of the tiny teacher."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import open_clip
import pytest
import torch

from lfi_pipeline.targets import TeacherSpec
from lfi_pipeline.teachers import CocaTeacher

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
