"""What the distribution promises: one version, types, the command, and data files that can be read."""

from __future__ import annotations

import tomllib
from importlib import import_module, resources
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path

import pytest

import lfi_pipeline
from lfi_pipeline.data import load_manifest, manifest_names

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PACKAGES = ("lfi_pipeline", "lfi_cli", "lfi_kernels")


def test_one_version() -> None:
    assert PROJECT["project"]["version"] == lfi_pipeline.__version__
    try:
        installed = version("lfi-pipeline")
    except PackageNotFoundError:
        pytest.skip("lfi-pipeline is not installed here")
    assert installed == lfi_pipeline.__version__


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_typed(package: str) -> None:
    assert resources.files(package).joinpath("py.typed").is_file()


def test_the_wheel_holds_the_three_packages() -> None:
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert sorted(Path(package).name for package in packages) == sorted(PACKAGES)
    assert all((ROOT / package / "__init__.py").is_file() for package in packages)


def test_the_command_resolves() -> None:
    module, _, name = PROJECT["project"]["scripts"]["lfi"].partition(":")
    assert callable(getattr(import_module(module), name))
    for installed in entry_points(group="console_scripts", name="lfi"):
        assert installed.value == PROJECT["project"]["scripts"]["lfi"]


def test_every_manifest_is_found_and_can_be_read() -> None:
    files = sorted(path.stem for path in (ROOT / "data_manifests").glob("*.toml"))
    assert list(manifest_names()) == files
    assert {"coco", "scenes"} <= set(files)
    for name in files:
        manifest = load_manifest(name)
        assert manifest.name == name
        assert {"train", "val"} <= set(manifest.splits)
        assert manifest.license
        assert manifest.obtain


def test_the_wheel_takes_the_manifests_where_the_library_looks_for_them() -> None:
    included = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert included["data_manifests"] == "lfi_pipeline/data_manifests"
