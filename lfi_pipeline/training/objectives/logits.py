"""Conclude what the teacher concludes: its zero-shot class logits."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from lfi_pipeline.errors import ConfigError
from lfi_pipeline.students import Features, Student
from lfi_pipeline.targets import TargetStore
from lfi_pipeline.training.data import IMAGE_EMBEDDING
from lfi_pipeline.training.objectives.term import StepContext, Term, blended
