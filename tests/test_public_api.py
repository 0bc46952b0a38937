"""What the package exports, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import loopcore
from loopcore import abc, config, errors, types

HEAVY = (
    "PIL", "aiohttp", "anyio", "cv2", "httpx", "msgspec", "numpy", "onnxruntime", "pluggy", "rich", "simplejpeg",
    "stamina", "starlette", "stevedore", "tomlkit", "typer", "uvicorn",
)  # fmt: skip


def modules_after(statement: str) -> set[str]:
    program = f"{statement}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", [loopcore, config], ids=lambda module: module.__name__)
def test_all_is_sorted_and_is_what_is_exported(module: ModuleType) -> None:
    assert module.__all__ == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


def test_public_names_are_all_and_nothing_else() -> None:
    assert set(dir(loopcore)) == {*loopcore.__all__, "__version__"}
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = loopcore.nothing  # type: ignore[attr-defined]


def test_import_loopcore_imports_nothing_heavy() -> None:
    assert not modules_after("import loopcore").intersection(HEAVY)


def test_types_and_contracts_do_not_import_numpy() -> None:
    statement = "import loopcore.types, loopcore.abc, loopcore.options, loopcore.config, loopcore.errors"
    assert not modules_after(statement).intersection({*HEAVY} - {"anyio", "msgspec"})


def test_help_imports_neither_msgspec_nor_the_plugins_nor_rich() -> None:
    statement = "from loopcore.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    loaded = modules_after(statement)
    assert not loaded.intersection({*HEAVY} - {"typer"})
    assert not [name for name in loaded if name.startswith(("loopcore_", "loopcore.drivers", "loopcore.registry"))]


def test_good_configuration_is_read_without_tomlkit() -> None:
    statement = "from loopcore.config import parse\nparse({'node': {'data_dir': 'd'}})"
    assert "tomlkit" not in modules_after(statement)


def test_every_public_error_is_of_the_tree_and_in_its_drawing() -> None:
    found = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    for error in found:
        assert issubclass(error, errors.LoopcoreError)
        assert f"{error.__name__} " in f"{errors.__doc__} ".replace("\n", " ")


def test_every_kind_has_its_base_class() -> None:
    assert list(abc.KINDS) == [
        "source", "backend", "selector", "sink", "platform", "converter", "trainer", "annotator",
    ]  # fmt: skip
    assert all(issubclass(base, abc.Driver) for base in abc.KINDS.values())
    assert types.Detection
