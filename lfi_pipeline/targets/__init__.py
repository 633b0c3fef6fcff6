"""The cache of interaction maps: its spec, codec, writer, reader and verification."""

from lfi_pipeline.targets.codec import CODECS, codec_kl, decode_maps, encode_maps
from lfi_pipeline.targets.commits import Summary
from lfi_pipeline.targets.index import TargetIndex
from lfi_pipeline.targets.payload import ShardPayload, ViewArrays
from lfi_pipeline.targets.plan import PlannedSample, Vocabulary
from lfi_pipeline.targets.reader import SampleTargets, TargetStore
from lfi_pipeline.targets.spec import (
    CodecSpec,
    DatasetSpec,
    LayerSpec,
    PreprocessingSpec,
    TargetSpec,
    TeacherSpec,
    TextSpec,
)
from lfi_pipeline.targets.verify import Fault, verify
from lfi_pipeline.targets.writer import TargetWriter
from lfi_pipeline.targets.zero_shot import ZeroShot, class_weights, image_logits, teacher_logits

__all__ = [
    "CODECS",
    "CodecSpec",
    "DatasetSpec",
    "Fault",
    "LayerSpec",
    "PlannedSample",
    "PreprocessingSpec",
    "SampleTargets",
    "ShardPayload",
    "Summary",
    "TargetIndex",
    "TargetSpec",
    "TargetStore",
    "TargetWriter",
    "TeacherSpec",
    "TextSpec",
    "ViewArrays",
    "Vocabulary",
    "ZeroShot",
    "class_weights",
    "codec_kl",
    "decode_maps",
    "encode_maps",
    "image_logits",
    "teacher_logits",
    "verify",
]
