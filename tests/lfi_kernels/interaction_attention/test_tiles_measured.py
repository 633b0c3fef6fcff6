"""Measured tiles: only right and able ones compete, the fastest is kept, and a broken file costs nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lfi_kernels.interaction_attention import tiles
from lfi_kernels.interaction_attention.tiles import Problem, Tile

pytest.importorskip("triton")

PROBLEM = Problem(kernel="project", dtype="bfloat16", rows=9999, columns=256, depth=384)
GPU = torch.device("cuda:0")


class Kernel:
    """Stands for a launch: each tile takes its own time on a clock of its own, and some cannot run or are wrong."""

    def __init__(self, milliseconds: dict[Tile, float], wrong: Tile | None = None) -> None:
        self.milliseconds, self.wrong = milliseconds, wrong
        self.unable: set[Tile] = set()
        self.clock = 0.0
        self.ran: list[Tile] = []

    def run(self, tile: Tile) -> tuple[Tensor, Tensor]:
        from triton.runtime.errors import OutOfResources

        if tile in self.unable:
            raise OutOfResources(300_000, 232_448, "shared memory")
        self.ran.append(tile)
        self.clock += self.milliseconds[tile] / 1e3
        return torch.full((4,), 1.1 if tile == self.wrong else 1.0), torch.zeros(2)

    def seconds(self, run: Any) -> float:
        before = self.clock
        run()
        return self.clock - before


def chosen(kernel: Kernel, device: torch.device = GPU) -> Tile:
    """The tiles of a launch."""
    tiles.launch(PROBLEM, device, kernel.run)
    return kernel.ran[-1]


@pytest.fixture
def tiles_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = tmp_path / "deep" / "tiles.json"
    monkeypatch.setenv("LFI_KERNELS_TILES", str(path))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    new_process(monkeypatch)
    yield path
    tiles._known.cache_clear()
    tiles._key.cache_clear()


def new_process(monkeypatch: pytest.MonkeyPatch, gpu: str = "NVIDIA Test") -> None:
    """Forget what this process knows; it may have another GPU."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: gpu)
    tiles._known.cache_clear()
    tiles._key.cache_clear()


def kernel_for(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """The fourth candidate is the fastest."""
    candidates = PROBLEM.candidates()
    kernel = Kernel({tile: 1.0 if place == 3 else 2.0 for place, tile in enumerate(candidates)})
    monkeypatch.setattr(tiles, "_seconds_on_gpu", kernel.seconds)
    return kernel


def test_the_fastest_wins_among_those_that_run_and_are_right() -> None:
    usual, fast, faster, fastest = PROBLEM.candidates()[:4]
    kernel = Kernel({usual: 4.0, fast: 3.0, faster: 2.0, fastest: 1.0}, wrong=faster)
    kernel.unable = {fastest}
    with pytest.warns(UserWarning, match=r"is left out: its results differ from those of .* by 0.1"):
        found = tiles.fastest([usual, fast, faster, fastest], kernel.run, kernel.seconds, 0.02)
    assert found[0] == fast
    assert found[1] == pytest.approx(3.0)


def test_nothing_is_measured_unasked(tiles_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_for(monkeypatch)
    monkeypatch.delenv("LFI_KERNELS_TUNE", raising=False)
    assert chosen(kernel) == PROBLEM.usual()
    monkeypatch.setenv("LFI_KERNELS_TUNE", "1")
    assert chosen(kernel, torch.device("cpu")) == PROBLEM.usual()
    new_process(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert chosen(kernel) == PROBLEM.usual()
    assert set(kernel.ran) == {PROBLEM.usual()}
    assert not tiles_file.exists()


def test_tiles_that_do_not_fit_the_gpu_give_way_to_the_next(tiles_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_for(monkeypatch)
    kernel.unable = {PROBLEM.usual()}
    assert chosen(kernel) == PROBLEM.candidates()[1]
    kernel.unable = set(PROBLEM.candidates())
    new_process(monkeypatch)
    with pytest.raises(RuntimeError, match=r"too little shared memory .* Set LFI_KERNELS=reference"):
        chosen(kernel)
    assert not tiles_file.exists()


def test_what_was_measured_serves_later_processes(tiles_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_for(monkeypatch)
    monkeypatch.setenv("LFI_KERNELS_TUNE", "1")
    best = PROBLEM.candidates()[3]
    assert chosen(kernel) == best
    runs = len(kernel.ran)
    assert chosen(kernel) == best
    assert len(kernel.ran) == runs + 1  # measured once

    new_process(monkeypatch)
    monkeypatch.delenv("LFI_KERNELS_TUNE")
    assert chosen(kernel) == best
    new_process(monkeypatch, "NVIDIA Other")
    assert chosen(kernel) == PROBLEM.usual()  # another GPU's times say nothing
    new_process(monkeypatch)
    monkeypatch.setattr(tiles, "code", lambda: "other kernels")
    assert chosen(kernel) == PROBLEM.usual()


@pytest.mark.usefixtures("tiles_file")
def test_the_key_of_a_tile_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel, names = kernel_for(monkeypatch), []
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: names.append(1) or "NVIDIA Test")
    again = Problem(kernel="project", dtype="bfloat16", rows=9999, columns=256, depth=384)
    for problem in (PROBLEM, again, PROBLEM):
        tiles.launch(problem, GPU, kernel.run)
    assert (len(names), len(kernel.ran)) == (1, 4)  # the first call tries the tile, and then runs it


def test_two_processes_that_measure_keep_both(tiles_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_for(monkeypatch)
    monkeypatch.setenv("LFI_KERNELS_TUNE", "1")
    chosen(kernel)
    plain = json.loads(tiles_file.read_text())
    plain["tiles"]["of another process"] = next(iter(plain["tiles"].values()))
    tiles_file.write_text(json.dumps(plain))
    new_process(monkeypatch, "NVIDIA Other")
    chosen(kernel)
    assert len(json.loads(tiles_file.read_text())["tiles"]) == 3
    assert [path.name for path in tiles_file.parent.iterdir()] == ["tiles.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"format": 2, "tiles": {"a": {"rows": 64}}}',
        '{"format": 2, "tiles": {"a": {"rows": 64, "columns": 64, "depth": 64, "warps": 4, "stages": true}}}',
        '{"format": 2, "tiles": []}',
    ],
)
def test_a_broken_file_is_named_and_the_usual_tiles_run(
    text: str, tiles_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = kernel_for(monkeypatch)
    tiles_file.parent.mkdir()
    tiles_file.write_text(text)
    with pytest.warns(UserWarning, match=r"The measured tiles in .*tiles.json cannot be read .* Delete the file"):
        assert chosen(kernel) == PROBLEM.usual()


def test_a_file_of_kernels_that_are_gone_is_written_anew(tiles_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_for(monkeypatch)
    tiles_file.parent.mkdir()
    tiles_file.write_text('{"format": 1, "tiles": {"a": {"rows": 64}}}')
    assert chosen(kernel) == PROBLEM.usual()


def test_a_folder_that_cannot_be_written_costs_only_the_file(tiles_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = kernel_for(monkeypatch)
    monkeypatch.setenv("LFI_KERNELS_TUNE", "1")
    tiles_file.parent.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="cannot be kept in"):
        assert chosen(kernel) == PROBLEM.candidates()[3]


def test_the_file_lies_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("LFI_KERNELS_TILES", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert tiles.tiles_file() == tmp_path / "lfi_kernels" / "tiles.json"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tiles.tiles_file() == Path.home() / ".cache" / "lfi_kernels" / "tiles.json"
