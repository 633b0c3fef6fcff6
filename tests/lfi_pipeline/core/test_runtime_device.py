from __future__ import annotations

import pytest
import torch

from lfi_pipeline.core.errors import ConfigError
from lfi_pipeline.core.runtime import cpu_threads, resolve_device


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device must be auto.*got '{name}'"):
        resolve_device(name)


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        with cpu_threads(0):
            assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
