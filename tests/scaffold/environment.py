"""A fresh environment without a network: ours lies below it, and what a test writes is installed into it as a stranger would."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Sequence
from pathlib import Path

__all__ = ["MAIN", "Environment"]

MAIN = "import sys; from streamlearn.cli.main import main; sys.exit(main())"


class Environment:
    """A virtual environment in ``folder`` that also sees all that is installed here."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
        (own,) = {Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))}
        (own / "below.pth").write_text(f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n")

    def install(self, *folders: Path) -> None:
        """Build and install distributions; nothing is fetched."""
        command = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--offline", "--no-deps", "--no-build-isolation", "--python"]
        done = subprocess.run([*command, str(self.python), *map(str, folders)], check=False, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stderr

    def run(self, *arguments: str, cwd: Path, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        """Run its interpreter."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(
            [self.python, *arguments], cwd=cwd, env=environment, check=False, capture_output=True, text=True, timeout=timeout
        )

    def program(self, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return self.run("-c", MAIN, *words, cwd=cwd)

    def pytest(self, folders: Sequence[Path], *options: str, cwd: Path, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        """Run the tests and the doctests of distributions."""
        paths = [str(path) for folder in folders for path in (folder / "tests", folder / "src") if path.is_dir()]
        common = ["-q", "-p", "no:cacheprovider", "--doctest-modules", "--import-mode=importlib", "-W", "error", "--rootdir", str(cwd)]
        (cwd / "pytest.ini").write_text("[pytest]\n")
        return self.run("-m", "pytest", "-c", str(cwd / "pytest.ini"), *common, *options, *paths, cwd=cwd, timeout=timeout)
