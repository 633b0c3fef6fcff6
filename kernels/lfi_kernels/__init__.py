"""Fused interaction-query attention: the op, and the student block that is built on it.

Depends on torch alone. Nothing here knows about teachers, caches or training.
"""

from __future__ import annotations

from lfi_kernels.interaction_attention import Companding, attention_map, interaction_attention
from lfi_kernels.interaction_query import InteractionQueryBlock

__all__ = ["Companding", "InteractionQueryBlock", "attention_map", "interaction_attention"]
