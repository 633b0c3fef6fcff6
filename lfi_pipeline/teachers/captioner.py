"""A CoCa writing captions: beam search over its decoder, without sampling.

open_clip's own `CoCa.generate` leans on classes that transformers 5 no longer has; this needs no further package.
"""

from __future__ import annotations

from typing import Any

import open_clip
import torch
from torch import Tensor

from lfi_pipeline.teachers.caption_reader import CaptionReader, Request

BEAMS, SHORTEST, LONGEST = 4, 5, 30  # tokens, start and end included; this project's choice


@torch.no_grad()
def write_captions(model: Any, tokenizer: Any, tokens: Tensor) -> list[str]:
    """Caption images from the trunk's tokens [B, 1+N, D]: the sentence of greatest mean log-probability a token."""
    seen = model.visual._pool(tokens)[1]
    return [_decode(tokenizer, _search(model, *_ends(tokenizer), each[None])) for each in seen]


def _search(model: Any, start: int, end: int, seen: Tensor) -> list[int]:
    decoder, device = model.text_decoder, seen.device
    ids = torch.tensor([[start]], device=device)
    reader = CaptionReader(decoder, Request(ids=ids, words=[()], row="emitting", layers=()), torch.empty(0))
    looked = reader.see(seen)
    scores = torch.zeros(1, device=device)
    done: list[tuple[float, list[int]]] = []
    while len(done) < BEAMS and ids.shape[1] < min(LONGEST, decoder.context_length):
        reader.text = model.text(ids)[1][:, : ids.shape[1]].float()
        hidden = reader.read(looked, ids.shape[1]).hidden[:, -1]
        following = (hidden @ decoder.text_projection).log_softmax(-1)
        if ids.shape[1] + 1 < SHORTEST:
            following[:, end] = -torch.inf
        following[:, start] = -torch.inf
        total = (scores[:, None] + following).flatten()
        best = total.topk(min(2 * BEAMS, int(total.isfinite().sum())))  # half of them may end
        beams, chosen = best.indices // following.shape[1], best.indices % following.shape[1]
        ended = chosen == end
        length = ids.shape[1] + 1
        done += [
            (float(score) / length, ids[beam].tolist())
            for score, beam in zip(best.values[:BEAMS][ended[:BEAMS]], beams[:BEAMS][ended[:BEAMS]], strict=True)
        ]
        beams, chosen, scores = (each[~ended][:BEAMS] for each in (beams, chosen, best.values))
        ids = torch.cat([ids[beams], chosen[:, None]], dim=1)
    if not done:
        done = [(float(score) / ids.shape[1], row.tolist()) for score, row in zip(scores, ids, strict=True)]
    return max(done)[1]


def _ends(tokenizer: Any) -> tuple[int, int]:
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return tokenizer.sot_token_id, tokenizer.eot_token_id
    return tokenizer.tokenizer.bos_token_id, tokenizer.tokenizer.eos_token_id


def _decode(tokenizer: Any, ids: list[int]) -> str:
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        return str(tokenizer.decode(ids[1:])).strip()
    return str(tokenizer.tokenizer.decode(ids, skip_special_tokens=True)).strip()
