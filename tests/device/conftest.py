"""Fixtures of the device tests; all of them skip where there is no device."""

from pathlib import Path

import pytest

from tests.device.making import Studio
from tests.device.where import DEVICE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if DEVICE is not None:
        return
    reason = "torch sees neither CUDA nor MPS here (SDCLI_TEST_DEVICE=cpu rehearses)"
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Studio:
    return Studio(tmp_path_factory.mktemp("studio"))


@pytest.fixture
def device() -> str:
    assert DEVICE is not None
    return DEVICE
