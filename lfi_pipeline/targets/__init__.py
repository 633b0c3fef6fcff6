"""The cache of interaction maps: its spec, codec, writer, reader and verification."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lfi_pipeline.core import lazy_exports

if TYPE_CHECKING:
    from lfi_pipeline.core.parse import Fault
    from lfi_pipeline.targets.codec import CODECS, codec_kl, decode_maps, encode_maps
    from lfi_pipeline.targets.commits import Summary
    from lfi_pipeline.targets.encode import ShardPayload, ViewArrays
    from lfi_pipeline.targets.index import TargetIndex
    from lfi_pipeline.targets.spec import (
        CodecSpec,
        DatasetSpec,
        LayerSpec,
        MapSpec,
        PreprocessingSpec,
        TargetSpec,
        TeacherSpec,
        TextSpec,
    )
    from lfi_pipeline.targets.store import SampleTargets, TargetStore
    from lfi_pipeline.targets.vocabulary import (
        PlannedSample,
        Vocabulary,
        ZeroShot,
        class_weights,
        image_logits,
        teacher_logits,
    )
    from lfi_pipeline.targets.writer import TargetWriter

__all__ = [
    "CODECS",
    "CodecSpec",
    "DatasetSpec",
    "Fault",
    "LayerSpec",
    "MapSpec",
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
]

if not TYPE_CHECKING:  # type checkers would take any name for granted
    __getattr__ = lazy_exports(
        __name__,
        {
            "codec": ["CODECS", "codec_kl", "decode_maps", "encode_maps"],
            "commits": ["Summary"],
            "encode": ["ShardPayload", "ViewArrays"],
            "index": ["TargetIndex"],
            "spec": [
                "CodecSpec",
                "DatasetSpec",
                "LayerSpec",
                "MapSpec",
                "PreprocessingSpec",
                "TargetSpec",
                "TeacherSpec",
                "TextSpec",
            ],
            "store": ["SampleTargets", "TargetStore"],
            "verify": ["Fault"],
            "vocabulary": [
                "PlannedSample",
                "Vocabulary",
                "ZeroShot",
                "class_weights",
                "image_logits",
                "teacher_logits",
            ],
            "writer": ["TargetWriter"],
        },
    )
