from __future__ import annotations

import re
from pathlib import Path

import open_clip
import pytest
from huggingface_hub import constants

from lfi_pipeline.core import hub
from lfi_pipeline.core.errors import TeacherError
from lfi_pipeline.teachers.catalog import Remote, require, teacher_names, untouched_network, weights_of


@pytest.fixture(autouse=True)
def unanswered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No server answers; the list fills with those that were asked."""
    asked: list[str] = []
    monkeypatch.setattr(hub, "answers", lambda url: bool(asked.append(url)))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return asked


def _cache(root: Path, repo: str, file: str) -> None:
    folder = root / f"models--{repo.replace('/', '--')}"
    (folder / "snapshots/0123").mkdir(parents=True)
    (folder / "snapshots/0123" / file).write_bytes(b"x")
    (folder / "refs").mkdir()
    (folder / "refs/main").write_text("0123", encoding="utf-8")


def test_every_tag_of_every_teacher_names_a_file() -> None:
    for name in teacher_names():
        for tag in open_clip.list_pretrained_tags_by_model(name):
            found = weights_of(open_clip.get_pretrained_cfg(name, tag))
            assert found.files[0], (name, tag)
            assert re.fullmatch(r"[\w.-]+/[\w.-]+", found.repo) or found.url.startswith("https://"), (name, tag)


def test_what_is_cached_is_not_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unanswered: list[str]
) -> None:
    monkeypatch.setattr(hub, "try_to_load_from_cache", _with_cache(tmp_path))
    _cache(tmp_path, "org/repo", "open_clip_pytorch_model.bin")
    remote = Remote("org/repo", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"))
    require([remote], "")
    with untouched_network([remote]):
        assert constants.HF_HUB_OFFLINE is True
    assert constants.HF_HUB_OFFLINE is False
    assert not unanswered


def _with_cache(root: Path) -> object:
    from huggingface_hub import try_to_load_from_cache

    return lambda repo, file: try_to_load_from_cache(repo, file, cache_dir=root)


def test_what_must_be_fetched_leaves_the_network_open() -> None:
    """Else weights could never be fetched where, say, a tokenizer is in the cache already."""
    with untouched_network([Remote("org/none-such", ("x",))]):
        assert constants.HF_HUB_OFFLINE is False


def test_a_server_that_is_silent_is_named(unanswered: list[str]) -> None:
    with pytest.raises(TeacherError, match=r"a\.pt of https://host\.example/a\.pt .*does not answer.*give PATH"):
        require([Remote("", ("a.pt",), "https://host.example/a.pt")], "and give PATH")
    assert unanswered == ["https://host.example/a.pt"]
