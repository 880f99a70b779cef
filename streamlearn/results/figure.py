"""Figures of a run, or of several side by side. matplotlib is loaded when the first one is drawn, without pyplot or a screen."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from streamlearn.errors import ConfigurationError
from streamlearn.results.layout import Layout
from streamlearn.results.measure import Matrix
from streamlearn.results.panels import curves, heat_map

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

    from streamlearn.results.result import Result

__all__ = ["compare_figure", "matrix_figure", "to_svg"]


def matrix_figure(
    matrix: Matrix,
    names: Sequence[str],
    *,
    title: str,
    quantity: str = "accuracy",
    learnt: Sequence[int] | None = None,
    sets: Sequence[str] | None = None,
) -> Figure:
    """The matrix as a heat map, and beside it the curve of each evaluation set over time.

    Args:
        matrix: shape ``(T + 1, S)``, NaN where undefined.
        names: of the ``T`` experiences; may be empty.
        title: what was run.
        quantity: what the entries are; accuracies get axes from 0 to 1.
        learnt: for each of the ``S`` evaluation sets, after how many experiences it has been learnt; ``None`` for 1..T.
        sets: names of the evaluation sets; ``None`` for those of the experiences.

    Example:
        >>> figure = matrix_figure(np.array([[0.5, 0.5], [1.0, 0.5], [0.6, 0.8]]), ["a", "b"], title="demo")
        >>> [axes.get_ylabel() for axes in figure.axes[:2]]
        ['after training experience ...', 'accuracy on its test rows']
    """
    from matplotlib.figure import Figure

    limits, layout = _limits([matrix], quantity), Layout.of(matrix, names, learnt, sets)
    with _house_style():
        figure = Figure(figsize=(12.5, 5.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        image = heat_map(left, matrix, layout, quantity, limits=limits)
        left.set_title(f"outlined: {layout.marked}", fontsize=10)
        _scale(figure, image, [left], quantity)
        curves(right, matrix, layout, quantity, limits=limits)
        figure.suptitle(title)
    return figure


def compare_figure(results: Mapping[str, Result]) -> Figure:
    """Runs side by side: a column for each, its heat map above its curves, all on one scale.

    Args:
        results: runs by the name under which they are shown.

    Raises:
        ConfigurationError: ``results`` is empty, or its runs were measured by different metrics.
    """
    from matplotlib.figure import Figure

    if not results:
        raise ConfigurationError("there is no result to compare: give at least one, {'name': result}")
    quantities = sorted({result.main_metric for result in results.values()})
    if len(quantities) > 1:
        raise ConfigurationError(f"runs measured by different metrics cannot share a scale: {', '.join(quantities)}; compare them apart")
    matrices = {name: result.matrix(metric=quantities[0]) for name, result in results.items()}
    layouts = {
        name: Layout(result.learnt_after, result.experiences, result.experience_names, result.set_names) for name, result in results.items()
    }
    limits = _limits(list(matrices.values()), quantities[0])
    with _house_style():
        figure = Figure(figsize=(5.2 * len(results) + 1.0, 9.0), layout="constrained")
        grid = figure.subplots(2, len(results), squeeze=False)
        for column, (name, result) in enumerate(results.items()):
            image = heat_map(grid[0, column], matrices[name], layouts[name], quantities[0], limits=limits)
            grid[0, column].set_title(_headline(name, result))
            curves(grid[1, column], matrices[name], layouts[name], quantities[0], limits=limits)
        _scale(figure, image, list(grid[0]), quantities[0])
        streams = dict.fromkeys(result.stream_name for result in results.values())
        marked = dict.fromkeys(layout.marked for layout in layouts.values())
        figure.suptitle(f"{', '.join(streams)}: {', '.join(results)}\n(outlined: {' or '.join(marked)})")
    return figure


def to_svg(figure: Figure) -> bytes:
    """``figure`` as SVG, the same bytes each time it is drawn: no date, and identifiers that do not change."""
    import matplotlib

    out = io.BytesIO()
    with _house_style(), matplotlib.rc_context({"svg.hashsalt": "streamlearn"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": "streamlearn"})
    return out.getvalue()


def _headline(name: str, result: Result) -> str:
    parts = [
        f"{words} {100 * measure.value:.1f} %"
        for key, words in (("average_accuracy", "average accuracy"), ("forgetting", "forgetting"))
        if (measure := result.metrics[key]).value is not None
    ]
    return "\n".join([name, ", ".join(parts)]) if parts else name


def _limits(matrices: Sequence[Matrix], quantity: str) -> tuple[float, float]:
    """The scale: 0 to 1 for accuracies, otherwise from the smallest value to the largest."""
    values = np.concatenate([matrix[~np.isnan(matrix)] for matrix in matrices])
    if quantity == "accuracy" or not len(values):
        return 0.0, 1.0
    low, high = min(0.0, float(values.min())), float(values.max())
    return (low, high) if high > low else (low, low + 1.0)


def _scale(figure: Figure, image: AxesImage, beside: list[Axes], quantity: str) -> None:
    from matplotlib.ticker import PercentFormatter

    percent = quantity == "accuracy"
    words = "accuracy: test rows predicted correctly" if percent else quantity.replace("_", " ")
    figure.colorbar(image, ax=beside, label=words, format=PercentFormatter(1) if percent else None)


@contextlib.contextmanager
def _house_style() -> Iterator[None]:
    """Use the defaults of matplotlib, whatever the user's matplotlibrc says: a figure depends on the run alone."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        yield
