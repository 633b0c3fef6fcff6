"""Attention of interaction queries with its divergence from target maps; `reference` specifies it."""

from __future__ import annotations

from lfi_kernels.interaction_attention.inputs import Companding
from lfi_kernels.interaction_attention.reference import attention_map, interaction_attention

__all__ = ["Companding", "attention_map", "interaction_attention"]
