"""Listing imports nothing, loading imports one module, and what is broken is named with its cause."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from loopcore.abc import KINDS, Sink
from loopcore.errors import PluginError, UnknownDriverError
from loopcore.installed import GROUPS
from loopcore.registry import Registry
from loopcore.testing import MemorySink

SINK = """
from loopcore.abc import Sink
class {name}(Sink):
    async def send(self, samples):
        return []
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path; whatever a test imports from it is forgotten again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", None)):
            del sys.modules[name]


def install(site: Path, package: str, points: str, version: str = "1.0", **modules: str) -> None:
    info = site / f"{package.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(points)
    for name, text in modules.items():
        (site / f"{name}.py").write_text(text)


def test_groups_are_those_of_all_kinds() -> None:
    assert {f"loopcore.{kind}s": kind for kind in KINDS}.items() < GROUPS.items()
    assert set(GROUPS.values()) - set(KINDS) == {"hooks", "command"}


def test_drivers_of_the_core_are_found_like_foreign_ones() -> None:
    registry = Registry()
    announced = {point.name for point in entry_points(group="loopcore.sinks")}
    assert announced <= set(registry.names("sink"))
    assert registry.package("sink", "folder") == "loopcore"
    assert issubclass(registry.driver("sink", "folder"), Sink)


def test_listing_imports_nothing(site: Path) -> None:
    install(site, "acme-sinks", "[loopcore.sinks]\nacme = acme_a:A\n", acme_a="raise SystemExit('imported')")
    registry = Registry()
    assert "acme" in registry.names("sink")
    assert registry.package("sink", "acme") == "acme-sinks"
    (entry,) = [entry for entry in registry.entries() if entry.name == "acme"]
    assert entry == ("sink", "acme", "acme-sinks", "1.0", "acme_a:A")
    assert "acme_a" not in sys.modules


def test_only_the_named_module_is_imported(site: Path) -> None:
    install(
        site,
        "acme-sinks",
        "[loopcore.sinks]\nacme-a = acme_one:A\nacme-b = acme_two:B\n",
        acme_one=SINK.format(name="A"),
        acme_two=SINK.format(name="B"),
    )
    assert Registry().driver("sink", "acme-a").__name__ == "A"
    assert "acme_one" in sys.modules
    assert "acme_two" not in sys.modules


def test_unknown_name_is_answered_with_the_nearest_and_all_installed() -> None:
    with pytest.raises(UnknownDriverError, match="did you mean 'folder'") as caught:
        Registry().driver("sink", "floder")
    assert caught.value.nearest == "folder"
    assert "http" in caught.value.installed


@pytest.mark.parametrize(
    ("module", "cause"),
    [
        ("import not_there_at_all", "ModuleNotFoundError: No module named 'not_there_at_all'"),
        ("x = (", r"SyntaxError: .*broken_mod.py, line 1"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise RuntimeError('no licence')", "RuntimeError: no licence"),
        ("pass", "AttributeError: .*'Broken'"),
        ("class Broken: pass", "expected a subclass of loopcore.abc.Sink, found class broken_mod.Broken"),
        ("Broken = 5", "expected a subclass of loopcore.abc.Sink, found 'int'"),
        ("from loopcore.abc import Sink\nclass Broken(Sink): pass", "it does not implement send"),
        ("from loopcore.drivers.uncertain import Uncertain as Broken", "expected a subclass of loopcore.abc.Sink"),
    ],
)
def test_broken_driver_is_named_with_package_version_and_cause(site: Path, module: str, cause: str) -> None:
    install(site, "acme-broken", "[loopcore.sinks]\nbroken = broken_mod:Broken\n", "0.3", broken_mod=module)
    with pytest.raises(PluginError, match=f"the sink 'broken' of acme-broken 0.3 cannot be used: {cause}") as caught:
        Registry().driver("sink", "broken")
    assert (caught.value.plugin, caught.value.package, caught.value.version) == ("broken", "acme-broken", "0.3")
    (broken,) = [one for one in Registry().check_all() if one.entry.package == "acme-broken"]
    assert broken.cause == str(caught.value)


def test_two_packages_with_one_name_fail_only_when_it_is_asked_for(site: Path) -> None:
    install(site, "acme-one", "[loopcore.sinks]\ntwice = one_mod:A\n", one_mod=SINK.format(name="A"))
    install(site, "acme-two", "[loopcore.sinks]\ntwice = two_mod:A\n", two_mod=SINK.format(name="A"))
    registry = Registry()
    assert registry.driver("sink", "folder")
    with pytest.raises(PluginError, match=r"'twice' is announced by acme-one 1\.0 and by acme-two 1\.0"):
        registry.driver("sink", "twice")
    assert not {"one_mod", "two_mod"} & set(sys.modules)


def test_of_two_installations_of_one_package_the_first_on_the_path_counts(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = site / "first"
    first.mkdir()
    install(site, "acme-sinks", "[loopcore.sinks]\nacme = acme_x:A\nacme-old = acme_x:B\n", "1.0")
    install(first, "Acme_Sinks", "[loopcore.sinks]\nacme = acme_x:A\n", "2.0", acme_x=SINK.format(name="A"))
    monkeypatch.syspath_prepend(str(first))
    registry = Registry()
    assert registry.driver("sink", "acme").__name__ == "A"
    assert "acme-old" not in registry.names("sink")
    assert registry.package("sink", "acme") == "Acme_Sinks"


def test_damaged_metadata_of_a_stranger_harms_nobody(site: Path) -> None:
    install(site, "acme-sinks", "", version="1")
    (site / "acme_sinks-1.dist-info" / "entry_points.txt").write_bytes(b"\xff[loopcore.sinks]")
    (site / "nameless-1.dist-info").mkdir()
    (site / "nameless-1.dist-info" / "entry_points.txt").write_text("[loopcore.sinks]\nx = y:z\n")
    assert "folder" in Registry().names("sink")


def test_hook_modules_come_only_from_the_packages_that_are_asked_for(site: Path) -> None:
    install(site, "acme-hooks", "[loopcore.hooks]\nacme = acme_hooks_mod\n", acme_hooks_mod="hook = 1")
    install(site, "acme-other", "[loopcore.hooks]\nother = acme_other_mod\n", acme_other_mod="raise SystemExit")
    modules = Registry().hook_modules({"Acme.Hooks"})
    assert list(modules) == ["acme"]
    assert "acme_other_mod" not in sys.modules


def test_given_drivers_are_taken_before_installed_ones() -> None:
    registry = Registry({"sink": {"folder": MemorySink}}, installed=False)
    assert registry.driver("sink", "folder") is MemorySink
    assert registry.names("sink") == ("folder",)
    assert registry.names("source") == ()
    assert registry.package("sink", "folder") is None
    assert registry.entries() == ()


def test_command_is_loaded_by_name_and_listed_without_import(site: Path) -> None:
    install(site, "acme-cmd", "[loopcore.commands]\nacme = acme_cmd:command\n", acme_cmd="def command(launcher): ...")
    registry = Registry()
    assert registry.command_names()["acme"] == "acme-cmd"
    assert "acme_cmd" not in sys.modules
    assert registry.command("acme").__name__ == "command"


FILE = SINK.format(name="A") + "    name = 'mine'\ndef loopcore_drivers():\n    return [A]\n"


def test_single_file_plugin_brings_its_drivers(tmp_path: Path) -> None:
    (tmp_path / "my-sink.py").write_text(FILE)
    registry = Registry()
    modules = registry.add_files([tmp_path / "my-sink.py"])
    assert list(modules) == ["my-sink.py"]
    assert registry.driver("sink", "mine").__name__ == "A"
    assert "mine" in {entry.name for entry in registry.entries()}


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("1 / 0", "ZeroDivisionError"),
        (FILE.replace("'mine'", "None"), "the driver A has no class attribute 'name'"),
        (FILE.replace("'mine'", "'folder'"), "the sink 'folder' exists already"),
        (FILE.replace("return [A]", "return [int]"), "expected subclasses of a class of loopcore.abc"),
        (FILE.replace("return [A]", "raise SystemExit(0)"), r"loopcore_drivers\(\) raised SystemExit: 0"),
        (FILE.replace("return [A]", "return 1 / 0"), r"loopcore_drivers\(\) raised ZeroDivisionError"),
        (FILE.replace("async def send", "async def sned"), "the driver A does not implement send"),
    ],
)
def test_broken_single_file_plugin_is_named_with_its_cause(tmp_path: Path, text: str, cause: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(PluginError, match=f"mine.py cannot be used: .*{cause}"):
        Registry().add_files([tmp_path / "mine.py"])
