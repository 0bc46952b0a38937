"""What a converter says to a Loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from loop import Call, StoredModel, category, mocked

from tracks.track import GARBAGE, REFUSED, Proof, Track


class Converter(Track):
    """Gives models a format that they lack."""

    role = "converter"
    calls = ("login", "projects", "models", "project", "download", "publish_model")
    by_hand: ClassVar[dict[str, frozenset[str]]] = {
        "login": REFUSED | GARBAGE,
        "project": REFUSED,
        "download": REFUSED,
        "publish_model": REFUSED,
    }
    once = frozenset({"project", "publish_model"})

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.models: list[StoredModel] = []

    def tables(self) -> dict[str, Any]:
        everywhere = {key: value for key, value in self.platform.items() if key not in ("organization", "project")}
        conversion = {"platform": "loop", "from": "format_a", "to": "format_b", "every": "1 s"}
        return {"platforms": [everywhere], "conversions": [conversion]}

    async def provoke(self, call: str) -> Proof:
        if call in ("login", "projects", "models"):
            if call == "login":
                self.loop.expire_sessions()
            seen = len(self.loop.calls)
            return lambda: self._looks(seen)
        name = f"project-{len(self.models)}"
        model = self.loop.store.add_project("zauberzeug", name, [category("fish")]).add_model("1.0", format_a=mocked())
        self.models.append(model)
        return lambda: self._converted(model)

    async def mend(self) -> None:
        await self.operate("forget_conversions")

    async def end(self) -> None:
        assert all("format_b" in model.formats for model in self.models)

    async def _looks(self, seen: int) -> None:
        """It has got the models of all projects."""
        got: set[str] = set()

        def all_got(call: Call) -> bool:
            if call.name == "projects":
                got.clear()
            if call.name == "models" and call.status == 200 and call.fault is None:
                got.add(call.path)
            return len(got) == len(self.loop.store.projects)

        await self.loop.calls.until(all_got, after=seen)

    async def _converted(self, model: StoredModel) -> None:
        upload = await self.loop.model_uploads.until(lambda upload: upload.model_id == model.id)
        organization, _, id = upload.project.partition("/")
        del self.loop.store.projects[organization, id]
