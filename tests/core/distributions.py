"""Distributions that a test installs for itself: what pip would leave behind, in a folder of the test's own."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from streamlearn.core import registry

WORKING = '''
from streamlearn import Plugin, PluginInfo, hookimpl

class {cls}(Plugin):
    """Counts steps."""

    info = PluginInfo("{name}", "tracking", "Counts steps.", "nobody"{more})

    @hookimpl
    def after_step(self, step):
        pass
'''


def working(name: str, cls: str = "Made", more: str = "") -> str:
    """The source of a module with a plugin that works; ``more`` goes into its info."""
    return WORKING.format(name=name, cls=cls, more=f", {more}" if more else "")


class Installer:
    """Puts distributions on the path, and forgets what was imported of them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.modules, self._patch = folder, set[str](), monkeypatch

    def __call__(
        self,
        distribution: str,
        entries: Mapping[str, str],
        modules: Mapping[str, str] | None = None,
        version: str = "1.0",
        requires: str = "",
    ) -> Path:
        """Install ``distribution`` with the plugins ``entries`` (name: reference); returns its dist-info folder."""
        site = self.folder / f"site-{distribution}"
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{requires}")
        lines = "".join(f"{name} = {reference}\n" for name, reference in entries.items())
        (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{lines}")
        for name, source in (modules or {}).items():
            (site / f"{name}.py").write_text(source)
            self.modules.add(name)
        self._patch.syspath_prepend(str(site))
        registry._owner.cache_clear()
        return info


def installer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installer]:
    """The body of the fixture ``install``."""
    made = Installer(folder, monkeypatch)
    monkeypatch.delenv(registry.ALLOWED, raising=False)
    yield made
    for name in made.modules:
        sys.modules.pop(name, None)
    registry._owner.cache_clear()
