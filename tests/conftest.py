"""What all tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Everything below `server` runs on both; a module of the server and above overrides this with asyncio alone."""
    backend: str = request.param
    return backend


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real models, photos and clips; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the folder shared/data, with real models and pictures, is not beside this checkout")
    return SHARED_DATA
