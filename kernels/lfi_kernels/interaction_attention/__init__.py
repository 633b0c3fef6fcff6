"""Attention of interaction queries with its divergence from target maps; `reference` specifies it."""

from __future__ import annotations

from lfi_kernels.interaction_attention.costs import interaction_costs
from lfi_kernels.interaction_attention.dispatch import interaction_attention
from lfi_kernels.interaction_attention.inputs import Companding
from lfi_kernels.interaction_attention.reference import attention_map

__all__ = ["Companding", "attention_map", "interaction_attention", "interaction_costs"]
