"""The backend `mock` keeps the promises of a backend, and finds each category in its own shape."""

from __future__ import annotations

from pathlib import Path

import pytest
from loopcore_mock_detector import MockBackend, MockOptions

from loopcore.errors import ModelError
from loopcore.package import write_package
from loopcore.testing import BackendSuite
from loopcore.testing.pictures import make_frame
from loopcore.types import Box, Classification, Model, ModelInfo, Point, Segmentation

TYPES = {"lamp": "box", "tip": "point", "leaf": "segmentation", "day": "classification"}


class TestMockBackend(BackendSuite):
    driver = MockBackend

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        folder = tmp_path / "mocked"
        folder.mkdir()
        (folder / "file_1.txt").write_text("content of file one")
        categories = [{"id": name, "name": name, "type": kind} for name, kind in TYPES.items()]
        extra = {"learningloop": {"categories": categories}}
        info = ModelInfo(name="demo", version="1.1", format="mocked", labels=tuple(TYPES), extra=extra)
        return write_package(folder, info)

    async def test_each_category_is_found_in_its_own_shape(self, model: Model) -> None:
        async with MockBackend(MockOptions(confidence=0.4), model) as backend:
            (prediction,) = backend.infer([make_frame(1, 80, 60)])
        kinds = {"lamp": Box, "tip": Point, "leaf": Segmentation, "day": Classification}
        assert {found.label: type(found) for found in prediction.detections} == kinds
        assert {found.confidence for found in prediction.detections} == {0.4}

    async def test_another_file_is_no_mocked_model(self, model: Model) -> None:
        (model.path / "file_1.txt").write_text("weights")
        with pytest.raises(ModelError, match="not a mocked model"):
            async with MockBackend(MockOptions(), model):
                pass
