"""Find, build and identify teachers: `NAME[:TAG]`, a local checkpoint, or a repository of the hub."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, cast

import open_clip
import torch
from huggingface_hub import file_exists, snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from open_clip.factory import HF_HUB_PREFIX, LOCAL_DIR_PREFIX
from safetensors.torch import load_file
from torch import Tensor, nn

from lfi_pipeline.core.errors import ConfigError, LFIError, TeacherError, UnknownNameError
from lfi_pipeline.core.hub import why_missing
from lfi_pipeline.core.runtime import require_compiler, resolve_precision
from lfi_pipeline.targets import TeacherSpec
from lfi_pipeline.teachers.blip import BlipTeacher, load_blip
from lfi_pipeline.teachers.catalog import (
    CONFIG,
    EMBEDDED,
    EMBEDDED_TAGS,
    RANDOM,
    SAFE_WEIGHTS,
    WEIGHTS,
    Remote,
    check_config,
    nothing_executed,
    repositories,
    require,
    teacher_names,
    untouched_network,
    weak_contrast,
    weights_of,
    why_not,
)
from lfi_pipeline.teachers.coca import CocaTeacher
from lfi_pipeline.teachers.config import ExtractConfig
from lfi_pipeline.teachers.dual import DualTeacher
from lfi_pipeline.teachers.teacher import Teacher
from lfi_pipeline.teachers.transformers_folder import BLIP, PIXELS, load_folder, model_type
from lfi_pipeline.teachers.transformers_folder import CONFIG as OF_TRANSFORMERS
from lfi_pipeline.teachers.transformers_folder import TOKENIZER as TOKENIZER_FILES
from lfi_pipeline.teachers.transformers_folder import WEIGHTS as WEIGHTS_OF_TRANSFORMERS

__all__ = ["load_coca_folder", "load_teacher", "require_able", "state_sha256", "teacher_names"]

TEXT_CONFIG = ("config.json",)  # tells transformers of the text tower that a repository of the hub holds


def load_teacher(teacher: str, *, device: str | torch.device = "cpu", precision: str = "fp32") -> Teacher:
    """Return the teacher called `NAME[:TAG]`, `hf-hub:ORG/REPO` or `local-dir:PATH`.

    Args:
        teacher: `scenes-coca`; or an open_clip config (`teacher_names` lists those that can give maps) with one of
            open_clip's tags for it, the path of a local checkpoint (safetensors, or what torch loads weights-only), or
            `random`. Without a tag, open_clip's last listed is taken that is not weak in contrast. Or a repository or
            folder as open_clip saves them, with `open_clip_config.json`, or a CLIP, SigLIP or BLIP as transformers does.
        device: where to put it.
        precision: `fp32`, `bf16`, `fp16`, or `auto`: bf16 on CUDA, fp32 elsewhere. Of the vision trunk and the text
            tower; what is differentiated and the arithmetic of maps stay fp32.

    Raises:
        UnknownNameError: unknown name, tag or precision; lists the choices.
        TeacherError: the weights can neither be found nor fetched, do not fit, or the model cannot give maps.
    """
    device = torch.device(device)
    computes = resolve_precision(precision, device)
    if teacher.startswith((HF_HUB_PREFIX, LOCAL_DIR_PREFIX)):
        name, tag, model, tokenizer = _from_repository(teacher)
    else:
        name, _, tag = teacher.partition(":")
        if name == EMBEDDED:
            model, tokenizer, tag = *_embedded(tag), EMBEDDED_TAGS[-1]
        else:
            _require_known(name)
            tag = tag or _default_tag(name)
            model, tokenizer = _from_open_clip(name, tag)
            if weak := weak_contrast(name, tag):
                warnings.warn(weak, stacklevel=2)
            tag = Path(tag).name if Path(tag).is_file() else tag
    family = "coca" if isinstance(model, open_clip.CoCa) else BLIP if hasattr(model, "vision_model") else "dual"
    digest = state_sha256(model.state_dict())
    identity = TeacherSpec(name=name, tag=tag, weights_sha256=digest, family=family, precision=computes)
    model = model.to(device)
    if family == BLIP:
        return BlipTeacher(model, tokenizer, identity)
    return CocaTeacher(model, tokenizer, identity) if family == "coca" else DualTeacher(model, tokenizer, identity)


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Return a digest of weights that does not depend on the file they came from: name, dtype, shape and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _embedded(tag: str) -> tuple[nn.Module, open_clip.SimpleTokenizer]:
    if tag not in ("", *EMBEDDED_TAGS):
        raise UnknownNameError(f"tag of {EMBEDDED}", tag, EMBEDDED_TAGS)
    folder = resources.files("lfi_pipeline.teachers.scenes_coca")
    with resources.as_file(folder) as directory:
        return load_coca_folder(directory)


def load_coca_folder(directory: Path) -> tuple[nn.Module, open_clip.SimpleTokenizer]:
    """Build a CoCa from the recipe's config.json, bpe.txt.gz and model.safetensors (stored fp16, run fp32).

    Raises:
        TeacherError: a file is not there.
    """
    for file in ("config.json", "bpe.txt.gz", "model.safetensors"):
        if not (directory / file).is_file():
            raise TeacherError(
                f"{directory} must hold config.json, bpe.txt.gz and model.safetensors, but {file} is not there. "
                "Install the package again; a teacher of your own is made by lfi_pipeline.teachers.scenes_coca.recipe."
            )
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config.pop("custom_text", None)
    model = open_clip.CoCa(**config)
    weights = {key: value.float() for key, value in load_file(directory / "model.safetensors").items()}
    model.load_state_dict(weights)
    tokenizer = open_clip.SimpleTokenizer(
        str(directory / "bpe.txt.gz"), context_length=config["text_cfg"]["context_length"]
    )
    return model, tokenizer


_CHECKPOINTS = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".npz")


def _require_known(name: str) -> None:
    path = Path(name)
    if path.suffix in _CHECKPOINTS or path.exists():
        form = f"{LOCAL_DIR_PREFIX}{name}" if path.is_dir() else f"NAME:{name}, as coca_ViT-L-14:{name}"
        raise ConfigError(
            f"teacher must name its architecture (`lfi teachers` lists them), got the path {name}. Write {form}.",
            argument="teacher",
        )
    if name not in open_clip.list_models():
        raise UnknownNameError("teacher", name, teacher_names(), argument="teacher", see="`lfi teachers` lists them")
    reason = why_not(open_clip.get_model_config(name))
    if reason:
        raise TeacherError(f"{name} cannot give maps: {reason}. `lfi teachers` lists those that can.")


def _default_tag(name: str) -> str:
    """The last tag that open_clip lists, of those that are not weak in contrast where there are such."""
    tags = open_clip.list_pretrained_tags_by_model(name)
    tags = [tag for tag in tags if not weak_contrast(name, tag)] or tags
    if not tags:
        raise TeacherError(
            f"open_clip lists no weights for {name}. Give {name}:PATH with a checkpoint, or {name}:{RANDOM} to time it."
        )
    return str(tags[-1])


def _from_open_clip(name: str, tag: str) -> tuple[nn.Module, Any]:
    tags = open_clip.list_pretrained_tags_by_model(name)
    local = Path(tag).is_file()
    if tag not in tags and tag != RANDOM and not local:
        raise UnknownNameError(f"tag of {name} (nor is it a file)", tag, (*tags, RANDOM))
    config = open_clip.get_model_config(name)
    text = _text_files(config)
    require(text, _into_cache(repositories(config)))
    if tag == RANDOM:
        with untouched_network(text):
            return _random(name), open_clip.get_tokenizer(name)
    if local:
        _refuse_torchscript(name, Path(tag))
    source = {} if local else open_clip.get_pretrained_cfg(name, tag)
    needed = [] if local else [weights_of(source)]
    quick = {"force_quick_gelu": True} if source.get("quick_gelu") else {}  # else open_clip only warns
    try:
        require(needed, "")
        with untouched_network([*text, *needed]):
            model: Any = open_clip.create_model(name, pretrained=tag, **quick)
            return cast(nn.Module, model), open_clip.get_tokenizer(name)
    except Exception as error:  # open_clip and the hub raise many kinds; all mean that the weights are not usable
        raise TeacherError(_missing_weights(name, tag, error)) from error


def _random(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = open_clip.create_model(name, pretrained_text=False)
        if isinstance(model, open_clip.CoCa):
            projection = model.text_decoder.text_projection  # open_clip leaves this one uninitialised
            nn.init.normal_(projection, std=projection.shape[0] ** -0.5)
    return cast(nn.Module, model)


def _from_repository(teacher: str) -> tuple[str, str, nn.Module, Any]:
    """Load what `hf-hub:` or `local-dir:` names; returns name, tag, model and tokenizer."""
    prefix, _, where = teacher.partition(":")
    if teacher.startswith(LOCAL_DIR_PREFIX):
        folder = Path(where)
        name, tag, needed = f"{prefix}:{folder.resolve().name}", "local", []
        if not (folder / CONFIG).is_file() and (folder / OF_TRANSFORMERS).is_file():
            return name, tag, *_from_transformers(teacher, folder)
        held = [folder / file for file in (SAFE_WEIGHTS, WEIGHTS) if (folder / file).is_file()]
        if not (folder / CONFIG).is_file() or not (held or list(folder.glob("*.safetensors"))):
            raise TeacherError(
                f"{where or '(nothing)'} must be a folder with {CONFIG} and {SAFE_WEIGHTS} (and the tokenizer's files "
                f"where its text_cfg names one), as open_clip saves them, or with {OF_TRANSFORMERS} and "
                f"{WEIGHTS_OF_TRANSFORMERS[0]}, as transformers does; not all are there."
            )
    else:
        if where.count("/") != 1:
            raise TeacherError(f"hf-hub: must be followed by ORG/REPO, got {where!r}.")
        name, tag = teacher, "hub"
        if _is_of_transformers(where):
            return name, tag, *_from_transformers(teacher, _fetched(where))
        needed = [Remote(where, (CONFIG,)), Remote(where, (SAFE_WEIGHTS, WEIGHTS))]
    files = f"with {SAFE_WEIGHTS}, copy the folder here, and give `teacher=local-dir:PATH`."
    require(needed, files)
    try:
        with untouched_network(needed):
            config = open_clip.get_model_config(teacher)
        check_config(config, teacher)
        reason = why_not(config)
        if reason:
            raise TeacherError(f"{teacher} cannot give maps: {reason}. `lfi teachers` lists those that can.")
        text = _text_files(config) if needed else []  # a local folder holds its tokenizer
        require(text, _into_cache(repositories(config)))
        with untouched_network([*needed, *text]), nothing_executed(teacher):
            model: Any = open_clip.create_model(teacher, require_pretrained=True)
            return name, tag, model, open_clip.get_tokenizer(teacher)
    except LFIError:
        raise
    except Exception as error:  # as above
        raise TeacherError(f"{teacher} cannot be loaded: {_short(error)}") from error


def _is_of_transformers(repository: str) -> bool:
    """Whether a repository of the hub has no config of open_clip's, but one of transformers; the cache is asked first."""
    if Remote(repository, (CONFIG,)).cached:
        return False
    if Remote(repository, (OF_TRANSFORMERS,)).cached:
        return True
    if why_missing(Remote(repository, (CONFIG,))):
        return False  # what is missing is told of open_clip's files
    try:
        return not file_exists(repository, CONFIG) and file_exists(repository, OF_TRANSFORMERS)
    except (OSError, HfHubHTTPError, ValueError):
        return False


def _fetched(repository: str) -> Path:
    """Return the folder in the hub's cache with all of a repository that a teacher of transformers needs."""
    needed = [Remote(repository, files) for files in ((OF_TRANSFORMERS,), WEIGHTS_OF_TRANSFORMERS, TOKENIZER_FILES)]
    require(needed, "with the weights and the tokenizer, copy the folder here, and give `teacher=local-dir:PATH`.")
    text = [OF_TRANSFORMERS, PIXELS, *TOKENIZER_FILES, "merges.txt", "special_tokens_map.json", "added_tokens.json"]
    try:
        with untouched_network(needed):
            for weights in (["*.safetensors", WEIGHTS_OF_TRANSFORMERS[1]], [WEIGHTS_OF_TRANSFORMERS[2]]):
                here = all(remote.cached for remote in needed)
                folder = Path(snapshot_download(repository, allow_patterns=text + weights, local_files_only=here))
                if any((folder / name).is_file() for name in WEIGHTS_OF_TRANSFORMERS):
                    break
    except (OSError, HfHubHTTPError, ValueError) as error:
        raise TeacherError(f"{repository} cannot be fetched: {_short(error)}") from error
    return folder


def _from_transformers(teacher: str, folder: Path) -> tuple[nn.Module, Any]:
    _require_transformers()
    try:
        with nothing_executed(teacher):
            return load_blip(folder) if model_type(folder) == BLIP else load_folder(folder)
    except LFIError:
        raise
    except Exception as error:  # a tokenizer raises many kinds
        raise TeacherError(f"{teacher} cannot be loaded: {_short(error)}") from error


def _require_transformers() -> None:
    try:
        import transformers  # noqa: F401
    except ImportError as error:
        raise TeacherError(
            "The text of this teacher is read by transformers, which is not installed. "
            'Run: pip install "lfi-pipeline[text]"'
        ) from error


def _text_files(config: dict[str, Any]) -> list[Remote]:
    """Files of the hub that a text tower or tokenizer of transformers needs.

    Raises:
        TeacherError: transformers is not installed.
    """
    text = config["text_cfg"]
    needed = []
    if text.get("hf_model_name"):
        needed.append(Remote(text["hf_model_name"], TEXT_CONFIG))
    if text.get("hf_tokenizer_name"):
        needed.append(Remote(text["hf_tokenizer_name"], TOKENIZER_FILES))
    if needed:
        _require_transformers()
    return [remote for remote in needed if not Path(remote.repo).is_dir()]  # a config may name a local folder


def _into_cache(repositories: tuple[str, ...]) -> str:
    names = " ".join(repositories)
    return f"with the command `hf download {names}`, and copy its cache folder (HF_HOME) here: the text needs it."


def _refuse_torchscript(name: str, path: Path) -> None:
    """A TorchScript archive is a program: it is not run."""
    if path.suffix != ".safetensors" and _is_torchscript(path):
        raise TeacherError(
            f"{path} must be a checkpoint of {name}, but it is a TorchScript archive, which is a program and is not "
            f"run. Take the same weights as safetensors: open_clip's tags for {name} name their repositories."
        )


def _is_torchscript(path: Path) -> bool:
    import zipfile

    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(member.endswith("/constants.pkl") for member in archive.namelist())


def _missing_weights(name: str, tag: str, error: Exception) -> str:
    if Path(tag).is_file():
        return f"{tag} must be a checkpoint of {name} (safetensors, or what torch loads weights-only): {_short(error)}"
    remote = weights_of(open_clip.get_pretrained_cfg(name, tag))
    return (
        f"The weights of {name}:{tag} are not in the local cache and could not be fetched ({type(error).__name__}). "
        f"On a machine with a network fetch {remote.files[0]} from {remote.repo or remote.url}, copy it here, and give "
        f"`teacher={name}:PATH/{remote.files[0]}`."
    )


def _short(error: Exception) -> str:
    text = str(error)
    return text if len(text) <= 500 else text[:497] + "..."


def require_able(teacher: Teacher, config: ExtractConfig) -> None:
    """Check, before anything is made, that a teacher can do what is asked of it beside its kind of map.

    Raises:
        ConfigError: it does not compare images with texts, or there is nothing of it that can be compiled.
    """
    if config.vocabulary and not teacher.compares:
        raise ConfigError(
            f"vocabulary needs a teacher that compares images with texts; {teacher.identity.name} writes only. Leave it "
            "out, and it writes captions.",
            argument="vocabulary",
        )
    if config.compile and not teacher.blocks:
        raise ConfigError(
            f"compile is for teachers whose blocks are known; {teacher.identity.name} shows none. Let torch compile "
            "them inside of your module.",
            argument="compile",
        )
    if config.compile:
        require_compiler()
