"""Checkpoints: safetensors files that are whole or absent, for resuming (a whole state) and for keeping (weights)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save
from torch import Tensor, nn

from lfi_pipeline.core.errors import OutputWriteError, RunError
from lfi_pipeline.core.io import metadata_of, sorted_safetensors, write_atomic
from lfi_pipeline.core.parse import parse_json, require_unchanged

Tree = Mapping[str, Any]


def flatten(state: Tree) -> tuple[dict[str, Tensor], Any]:
    """Split `state` into its tensors and everything else.

    Args:
        state: nested mappings (keys: str or int), lists and tuples; leaves are tensors or JSON scalars.

    Returns:
        The tensors, on the CPU, contiguous, none sharing memory with another or with `state`; and JSON from which
        `unflatten` rebuilds the rest: a tensor is `{"tensor": name}`, a mapping `{"dict": [[key, value], ...]}`, so
        that keys keep their order and ints stay ints, a list or tuple `{"list": [...]}` or `{"tuple": [...]}`.

    Raises:
        TypeError: a key or leaf of another type; names its path.
    """
    tensors: dict[str, Tensor] = {}
    return tensors, _plain(state, "", tensors)


def _plain(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        name = f"{len(tensors):06d}{path}"  # the number keeps names apart: a key may itself hold a slash
        tensors[name] = node.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(node, Mapping):
        for key in node:
            if type(key) not in (str, int):
                raise TypeError(f"Keys of a state must be str or int, got {key!r} at {path or '/'}.")
        return {"dict": [[key, _plain(value, f"{path}/{key}", tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        kind = "tuple" if isinstance(node, tuple) else "list"
        return {kind: [_plain(value, f"{path}/{index}", tensors) for index, value in enumerate(node)]}
    if node is None or type(node) in (bool, int, float, str):
        return node
    raise TypeError(f"Leaves of a state must be tensors or JSON scalars, got a {type(node).__name__} at {path or '/'}.")


def unflatten(tensors: Mapping[str, Tensor], plain: Any) -> Any:
    """Undo `flatten`.

    Raises:
        ValueError, KeyError: `plain` is not of `flatten`, or names a tensor that is not there.
    """
    if not isinstance(plain, dict):
        return plain
    match plain:
        case {"tensor": str(name)}:
            return tensors[name]
        case {"dict": list(items)}:
            return {key: unflatten(tensors, value) for key, value in items}
        case {"list": list(values)}:
            return [unflatten(tensors, value) for value in values]
        case {"tuple": list(values)}:
            return tuple(unflatten(tensors, value) for value in values)
    raise ValueError(f"not a node of a state: {sorted(plain)}")


FORMAT, VERSION = "lfi-training-state", "1"
CHECKSUM = "crc32c"
LAST, BEST = "last.safetensors", "best.safetensors"
_KEPT = re.compile(r"epoch-(\d{4,})\.safetensors")
_CHUNK = 1 << 24  # bytes copied at a time for the checksum


def save_state(path: Path, state: Mapping[str, Any], *, fingerprint: str) -> None:
    """Replace the file of a resume, atomically and durably.

    Args:
        path: the file; its folder exists.
        state: as `flatten` takes it.
        fingerprint: of what the state belongs to (the run's settings); `load_state` can ask for it.

    Raises:
        OutputWriteError: it cannot be written; the old file stands and nothing else is left.
        TypeError: `state` holds something that is neither tensor nor JSON.
    """
    tensors, plain = flatten(state)
    tree = json.dumps(plain, separators=(",", ":"))
    header = {"format": FORMAT, "version": VERSION, "fingerprint": fingerprint, "state": tree}
    _write(path, tensors, header | {CHECKSUM: _checksum(tensors, fingerprint, tree)})


def load_state(path: Path, *, fingerprint: str | None = None) -> dict[str, Any]:
    """Read what `save_state` wrote; tensors are on the CPU and own their memory.

    Raises:
        RunError: missing, damaged, not of this project, of another version, or, where `fingerprint` is given, of
            another run.
    """
    remedy = "Delete the file to start the run again from its beginning."
    if not path.is_file():
        raise RunError(f"{path} must be the saved state of a run, found nothing there.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, it is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(f"{path} is damaged or no safetensors file ({error}). {remedy}") from error
    if metadata.get("format") != FORMAT:
        raise RunError(f"{path} must be the saved state of a run, found another kind of safetensors file. {remedy}")
    if metadata.get("version") != VERSION:
        raise RunError(
            f"{path} must be of version {VERSION}, found {metadata.get('version')!r}. Go on with the release that "
            f"wrote it. {remedy}"
        )
    tree, owner = metadata.get("state", ""), metadata.get("fingerprint", "")
    if _checksum(tensors, owner, tree) != metadata.get(CHECKSUM):
        raise RunError(f"{path} is damaged: its content does not match its crc32c. {remedy}")
    if fingerprint is not None and owner != fingerprint:
        raise RunError(f"{path} must be of the run {fingerprint}, found the state of {owner}. {remedy}")
    try:
        state = unflatten(tensors, parse_json(tree, str(path), error=RunError))
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is no state of a run: its tree cannot be read. {remedy}") from error
    if not isinstance(state, dict):
        raise RunError(f"{path} is no state of a run: its tree holds no names. {remedy}")
    return state


def save_weights(path: Path, state_dict: Mapping[str, Tensor], metadata: Mapping[str, object]) -> None:
    """Replace a file of weights, atomically and durably; values of `metadata` become text, a checksum joins them.

    Raises:
        OutputWriteError: it cannot be written; the old file stands.
    """
    tensors = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state_dict.items()
    }
    texts = {name: str(value) for name, value in metadata.items()}
    _write(path, tensors, texts | {CHECKSUM: _checksum(tensors)})


def load_weights(path: Path, module: nn.Module) -> None:
    """Load a file of weights into `module`, after checking its checksums.

    Raises:
        RunError: there is none, it cannot be read, it is damaged, or it does not fit.
    """
    if not path.is_file():
        raise RunError(f"{path} must be a checkpoint, found nothing there. Train the run first.")
    try:
        data = path.read_bytes()
        require_unchanged(path, data)
        tensors = load(data)
        recorded = metadata_of(data).get(CHECKSUM)
        if recorded is not None and recorded != _checksum(tensors):
            raise RunError(f"{path} is damaged: its content does not match its crc32c. Train the run again.")
        module.load_state_dict(tensors)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(f"{path} does not fit the {type(module).__name__} that its run describes: {error}") from error


def _checksum(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """crc32c of everything a load depends on: texts, names, dtypes, shapes and bytes."""
    crc = 0
    for text in texts:
        crc = google_crc32c.extend(crc, text.encode() + b"\0")
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = google_crc32c.extend(crc, f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        data = tensor.reshape(-1).view(torch.uint8).numpy()
        for start in range(0, len(data), _CHUNK):
            crc = google_crc32c.extend(crc, data[start : start + _CHUNK].tobytes())
    return f"{crc:08x}"


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    # not safetensors' save_file: killed, it leaves a temporary file of a random name for every time
    data = sorted_safetensors(save(tensors, metadata=metadata))
    try:
        write_atomic(path, data)
    except OSError as error:
        raise OutputWriteError(
            f"Cannot write the checkpoint {path}: {error.strerror or error}. The checkpoint before it still stands; "
            "free space or mend the permissions, then run the same command again."
        ) from error


class Retention:
    """Decides which weights of a run are kept: the last, the best, and optionally those of every n-th epoch.

    Args:
        folder: of the checkpoints; exists.
        every: keep `epoch-0010.safetensors` and so on, at multiples of it; None keeps none.
    """

    def __init__(self, folder: Path, *, every: int | None = None) -> None:
        if every is not None and every < 1:
            raise ValueError(f"every must be 1 or more, got {every}.")
        self._folder, self._every = folder, every
        self.best_score: float | None = None
        self.best_epoch: int | None = None

    def after_epoch(self, epoch: int, score: float | None, save: Callable[[Path], None]) -> None:
        """Write the weights of this epoch (from 1) with `save` where a rule keeps them, and delete what no rule keeps.

        A higher `score` is better; of equal ones the earlier stays best; None and NaN are never the best. Repeating
        an epoch after a resume writes the same files again.
        """
        save(self._folder / LAST)
        comparable = score is not None and not math.isnan(score)
        if comparable and (self.best_score is None or score > self.best_score):  # type: ignore[operator]
            save(self._folder / BEST)
            self.best_score, self.best_epoch = score, epoch
        if self._every and epoch % self._every == 0:
            save(self._folder / f"epoch-{epoch:04d}.safetensors")
        for path in sorted(self._folder.iterdir()):
            kept = _KEPT.fullmatch(path.name)
            if kept and not (self._every and int(kept[1]) <= epoch and int(kept[1]) % self._every == 0):
                path.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs."""
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.best_score, self.best_epoch = state["best_score"], state["best_epoch"]
