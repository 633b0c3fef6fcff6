"""A cache is resumable, byte-identical however it was interrupted, and refuses what is not its own."""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lfi_pipeline.core.errors import ConfigError, LFIError, OutputExistsError, SpecMismatchError, TargetsError
from lfi_pipeline.targets import TargetStore, TargetWriter, Vocabulary
from lfi_pipeline.targets.verify import verify

# A process that kills itself with SIGKILL just before, or just after, the n-th rename that makes a file real,
# for each n given; then a fresh process does the same work again. Both are forked from one unused parent.
KILLED = textwrap.dedent("""
    import importlib.util, os, signal, sys
    from pathlib import Path

    specification = importlib.util.spec_from_file_location("helpers", sys.argv[1])
    helpers = importlib.util.module_from_spec(specification)
    sys.modules["helpers"] = helpers
    specification.loader.exec_module(helpers)
    import zarr, zarr.storage, tensorstore  # imported once, used only by the children

    def run(path, moment, after):
        calls = 0
        replace = Path.replace
        def dying(self, target):
            nonlocal calls
            calls += 1
            if calls == moment and not after:
                self.write_bytes(self.read_bytes()[:-3])  # half-written
                os.kill(os.getpid(), signal.SIGKILL)
            replace(self, target)
            if calls == moment:
                os.kill(os.getpid(), signal.SIGKILL)
        if moment:
            Path.replace = dying
        helpers.extract(path)

    for moment in map(int, sys.argv[3:]):
        for after in (False, True):
            path = Path(sys.argv[2]) / f"{moment}-{after}"
            for killed in (True, False):
                child = os.fork()
                if child == 0:
                    run(path, moment if killed else 0, after)
                    os._exit(0)
                status = os.waitpid(child, 0)[1]
                assert status == (signal.SIGKILL if killed else 0), status
""")


def test_killed_at_any_moment_a_rerun_gives_the_same_bytes(synthetic: Any, finished: Path, tmp_path: Path) -> None:
    files = len(synthetic.tree(finished))
    moments = [1, 2, 9, files - 36, files - 30, files - 25, files - 24, files - 1, files]
    helpers = Path(__file__).with_name("conftest.py")
    script = [sys.executable, "-c", KILLED, str(helpers), str(tmp_path), *map(str, moments)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(script, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    expected = synthetic.tree(finished)
    caches = sorted(tmp_path.iterdir())
    assert len(caches) == 2 * len(moments)
    for cache in caches:
        assert synthetic.tree(cache) == expected, cache.name


def test_shards_may_be_committed_in_any_order_by_several_writers(
    synthetic: Any, finished: Path, tmp_path: Path
) -> None:
    path = tmp_path / "targets"
    first, second = synthetic.open_writer(path), synthetic.open_writer(path)
    for writer, shard in ((first, 2), (second, 0), (first, 1)):
        writer.commit(shard, synthetic.payload(writer.spec, shard))
    assert first.pending_shards() == second.pending_shards() == []
    assert synthetic.tree(path) == synthetic.tree(finished)


def test_half_written_files_of_a_pending_shard_do_not_count_and_are_overwritten(
    synthetic: Any, finished: Path, tmp_path: Path
) -> None:
    path = tmp_path / "targets"
    writer = synthetic.extract(path, limit=1)
    (path / "views/full/maps/c.1.0.0.0.0").write_bytes(b"half")
    (path / "staging").mkdir(exist_ok=True)
    (path / "staging/000001.123-ab.c.1.0.0.0.0").write_bytes(b"half")
    (path / "staging/000001.lock").touch()
    (path / "index/000001.parquet").write_bytes(b"PAR1")
    assert writer.pending_shards() == [1, 2]
    synthetic.extract(path)
    assert synthetic.tree(path) == synthetic.tree(finished)


def test_a_shard_that_another_process_committed_first_stays_as_it_is(synthetic: Any, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    writer = synthetic.extract(path, limit=1)
    before = {file: file.stat().st_ino for file in path.rglob("*") if file.is_file()}
    writer.commit(0, synthetic.payload(writer.spec, 0))
    assert {file: file.stat().st_ino for file in path.rglob("*") if file.is_file()} == before


def test_the_manifest_never_changes_and_the_data_root_may(synthetic: Any, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    synthetic.extract(path, limit=1)
    before = (path / "manifest.json").stat()
    spec = synthetic.spec()
    TargetWriter.open(path, spec, synthetic.plan(), synthetic.vocabulary(), "/moved")
    after = (path / "manifest.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert TargetStore.open(path, require_complete=False).data_root == Path("/moved")


def test_another_spec_plan_or_vocabulary_is_refused_by_field(synthetic: Any, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    synthetic.extract(path, limit=1)
    before = synthetic.tree(path)
    spec, plan, vocabulary = synthetic.spec(), synthetic.plan(), synthetic.vocabulary()
    other_spec = dataclasses.replace(spec, kind="gradcam", teacher=dataclasses.replace(spec.teacher, tag="x"))
    other_plan = [*plan[:-1], dataclasses.replace(plan[-1], caption="a dog", labels=(1, 0))]
    other_words = dataclasses.replace(vocabulary, words=(*vocabulary.words[:-1], "zebra"))
    with pytest.raises(SpecMismatchError) as caught:
        TargetWriter.open(path, other_spec, other_plan, other_words, "/data")
    for named in ("kind: 'relevance' != 'gradcam'", "teacher.tag", "plan.captions", "plan.labels", "zebra"):
        assert named in str(caught.value)
    assert "plan.keys" not in str(caught.value)
    other_embeddings = dataclasses.replace(vocabulary, embeddings=-vocabulary.embeddings)
    with pytest.raises(SpecMismatchError, match=r"vocabulary\.embeddings: 7 of 7 words differ"):
        TargetWriter.open(path, spec, plan, other_embeddings, "/data")
    assert synthetic.tree(path) == before


def test_embeddings_that_differ_by_rounding_go_on_with_the_stored_ones(
    synthetic: Any, finished: Path, tmp_path: Path
) -> None:
    path = tmp_path / "targets"
    synthetic.extract(path, limit=1)
    vocabulary = synthetic.vocabulary()
    rounded = Vocabulary(words=vocabulary.words, embeddings=vocabulary.embeddings * np.float16(1.001))
    writer = TargetWriter.open(path, synthetic.spec(), synthetic.plan(), rounded, "/data/scenes")
    for shard in writer.pending_shards():
        writer.commit(shard, synthetic.payload(writer.spec, shard))
    assert synthetic.tree(path) == synthetic.tree(finished)


@pytest.mark.parametrize("name", ["notes.txt", "manifest.json"])
def test_a_directory_of_something_else_is_left_alone(synthetic: Any, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"format": "other"}')
    before = synthetic.tree(tmp_path)
    with pytest.raises(OutputExistsError, match="not a targets cache"):
        synthetic.open_writer(tmp_path)
    assert synthetic.tree(tmp_path) == before
    with pytest.raises(OutputExistsError, match="is a file"):
        synthetic.open_writer(tmp_path / name)


def test_unknown_version_is_refused(synthetic: Any, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    synthetic.extract(path, limit=1)
    manifest = path / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 3'))
    for opens in (synthetic.open_writer, TargetStore.open):
        with pytest.raises(TargetsError, match="version 3; this release knows versions 1 and 2"):
            opens(path)


def test_a_full_disk_is_one_clear_error_and_loses_nothing(synthetic: Any, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    writer = synthetic.extract(path, limit=1)
    before = synthetic.tree(path)
    payload = synthetic.payload(writer.spec, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the system refuses to write files larger than this
    try:
        with pytest.raises(LFIError, match=r"Cannot write targets at .* File too large.*run the same command"):
            writer.commit(1, payload)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    after = synthetic.tree(path)
    assert {name: after[name] for name in before} == before
    assert writer.pending_shards() == [1, 2]
    synthetic.extract(path)
    assert synthetic.tree(path) == synthetic.tree(finished)


def test_unwritable_output_is_one_clear_error(synthetic: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LFIError, match="Cannot write targets at"):
        synthetic.open_writer(tmp_path / "file" / "targets")


def test_a_damaged_fixed_file_is_restored_by_a_rerun(synthetic: Any, finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "targets"
    synthetic.extract(path)
    for name in ("vocabulary.npy", "classes.json", "classes.npy", "source.json", "views/full/maps/zarr.json"):
        (path / name).write_bytes(b"damaged")
    synthetic.extract(path)
    assert synthetic.tree(path) == synthetic.tree(finished)
    assert verify(path, images=False) == []


def test_payloads_that_do_not_fit_are_refused(synthetic: Any, tmp_path: Path) -> None:
    writer = synthetic.extract(tmp_path / "targets", limit=1)
    good = synthetic.payload(writer.spec, 1)
    full = good.views["full"]
    bad = [
        ("image_crc32c must be", {"image_crc32c": good.image_crc32c[:2]}),
        ("payload.views must be", {"views": {"full": full}}),
        ("quarantined positions", {"quarantined": {4: "why"}}),
    ]
    for field, value in (
        ("maps", full.maps[:, :1]),
        ("words", full.words + 7),
        ("image_embedding", full.image_embedding * np.nan),
        ("maps", 2 * full.maps),
    ):
        views = {**good.views, "full": dataclasses.replace(full, **{field: value})}
        bad.append((field, {"views": views}))
    for message, changes in bad:
        with pytest.raises(ConfigError, match=message):
            writer.commit(1, dataclasses.replace(good, **changes))
    with pytest.raises(ConfigError, match="plan must have"):
        TargetWriter.open(tmp_path / "b", writer.spec, synthetic.plan()[1:], synthetic.vocabulary(), "/data")


def test_summary_counts_real_bytes(synthetic: Any, finished: Path) -> None:
    summary = synthetic.open_writer(finished).summary()
    size = sum(
        file.stat().st_size for file in finished.rglob("*") if file.name.startswith("c.") or file.suffix == ".parquet"
    )
    assert (summary.samples, summary.quarantined) == (10, 1)
    assert summary.bytes_per_sample == pytest.approx(size / 10)
    assert summary.raw_bytes_per_sample == 2 * 2 * 2 * 3 * 30
    assert 0 < summary.codec_kl < 1e-3
    assert TargetStore.open(finished).summary() == summary
