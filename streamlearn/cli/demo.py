"""The demonstration that ``streamlearn run`` without arguments, and ``make run``, show: forgetting, and what helps against it."""

from __future__ import annotations

import contextlib
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from streamlearn.cli.execute import run_once
from streamlearn.cli.strategy import Strategy, validated
from streamlearn.cli.text import say
from streamlearn.errors import RunFolderError
from streamlearn.results import Result, compare_figure, compare_table, to_svg
from streamlearn.results.files import disk_errors, write_atomically

__all__ = ["STRATEGIES", "demo", "strategies", "verdict"]

_COMMON = """
epochs = 8
batch_size = 32

[stream]  # ten handwritten digits, two new ones in each experience
name = "class_incremental"
source = "digits"
experiences = 5

[model]
name = "mlp"
hidden = [100]

[optimizer]
name = "sgd"
lr = 0.05
momentum = 0.9
"""

STRATEGIES = {
    "no plugin": "# Plain training, one experience after another: the lower bound." + _COMMON,
    "replay + EWC": "# Two methods composed: 200 rows of the past are replayed, and weights that mattered are held."
    + _COMMON
    + """
[[plugins]]
name = "replay"
capacity = 200

[[plugins]]
name = "ewc"
strength = 10.0
""",
    "joint": "# All data seen so far, in every experience: the upper bound." + _COMMON + '\n[[plugins]]\nname = "joint"\n',
}
"""The strategies of the demonstration, as users write them."""

_MARK = ".streamlearn-demo"


def strategies(seed: int = 0) -> dict[str, Strategy]:
    """The strategies of the demonstration, by the name under which they are shown."""
    return {name: validated({**tomllib.loads(text), "seed": seed}, f"the demo {name!r}") for name, text in STRATEGIES.items()}


def demo(folder: Path, seed: int = 0, quiet: bool = False) -> dict[str, Result]:
    """Run the strategies one after another into ``folder``, and compare them."""
    _prepare(folder)
    if not quiet:
        say("The demo: a small network meets ten handwritten digits in five experiences, two new digits at a time, and is")
        say(f"tested on all ten. Three strategies, seed {seed}; everything is kept in {folder}.")
    results = {}
    with _one_thread():
        for name, strategy in strategies(seed).items():
            if not quiet:
                say(f"\n{name}")
            results[name] = run_once(strategy, folder / _file_name(name), quiet=quiet, table=False)
    figure = compare_figure(results)
    write_atomically(folder / "figure.svg", to_svg(figure))
    with disk_errors(folder):
        figure.savefig(folder / "figure.png", dpi=110)
    if not quiet:
        example = folder / f"{_file_name(list(results)[1])}.toml"
        say(f"\n{compare_table(results)}\n\n{verdict(results)}\n")
        say(f"Change {example} and run it yourself: streamlearn run {example} --output runs/mine")
    say(f"results: {folder}; picture: {folder / 'figure.png'}, or in a browser: {(folder / 'figure.svg').resolve().as_uri()}")
    return results


def verdict(results: Mapping[str, Result]) -> str:
    """In plain words, from the measured values: what each strategy had learnt, and what was left of it at the end."""
    lines = [f"- {name} {_verdict(result)}" for name, result in results.items()]
    return "\n".join([*lines, "(Forgot: less than half of what it had learnt is left.)"])


def _verdict(result: Result) -> str:
    matrix = result.accuracy_matrix
    learnt, final = np.diag(matrix[1:]), matrix[-1]
    if np.isnan([*learnt, *final]).any():
        return "was not measured everywhere, so nothing can be said."
    earlier = len(final) - 1
    lost = [j for j in range(earlier) if final[j] < learnt[j] / 2]
    names = "; ".join(result.experience_names[j] or f"experience {j + 1}" for j in lost)
    count = "none" if not lost else "all" if len(lost) == earlier else str(len(lost))
    forgot = f"forgot {count} of the {earlier} earlier experiences{f' ({names})' if lost else ''}"
    return f"{forgot}; it knew {_percent(learnt)} of each when it had just learnt it, and {_percent(final)} of all at the end."


def _percent(values: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> str:
    return f"{100 * float(values.mean()):.0f} %"


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """The network is so small that threads would mostly wait for each other: on a busy machine several times as long."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _prepare(folder: Path) -> None:
    """Make room for a new demonstration: remove what an earlier one left, and nothing else.

    Raises:
        RunFolderError: the folder holds something that no demonstration made.
    """
    mark = folder / _MARK
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not mark.is_file())):
        raise RunFolderError(f"{folder} holds something that is not the demo's: give the demo another folder with --output DIR")
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        mark.write_text("Made by 'streamlearn run' without arguments, which removes the run folders beside this file when it runs again.\n")
        for name in STRATEGIES:
            old = folder / _file_name(name)
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
    for name, text in STRATEGIES.items():
        write_atomically(folder / f"{_file_name(name)}.toml", text.encode())


def _file_name(name: str) -> str:
    """``replay + EWC`` is kept in ``replay_ewc``."""
    return "_".join(name.replace("+", " ").lower().split())
