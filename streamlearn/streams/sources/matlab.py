"""Regressions of many tasks, read from files of MATLAB that the user has below ``$STREAMLEARN_DATA``: SARCOS and School."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from streamlearn.errors import DataError, UnknownNameError
from streamlearn.streams.inputs import whole_number
from streamlearn.streams.sources.encoding import spread
from streamlearn.streams.sources.tables import find_path
from streamlearn.streams.sources.tensors import TensorSource

__all__ = ["sarcos", "school"]

Floats = NDArray[np.float64]

_INPUTS, _TORQUES, _SCHOOLS, _FEATURES = 21, 7, 139, 28
SCALES = ("deviation", "quantile", "none")


def sarcos(scale: str = "deviation", part: str = "published", root: str | None = None) -> tuple[TensorSource, TensorSource | None]:
    """``"sarcos"``: the seven torques of a robot's arm, ``torque1`` to ``torque7``, from the 21 positions, velocities and accelerations of
    its joints.

    Protocol: training rows are those of ``sarcos_inv.mat`` (44,484), test rows those of ``sarcos_inv_test.mat`` (4,449), in their order.
    Inputs are standardised with the mean and deviation of the training rows.

    Args:
        scale: of the targets: ``"deviation"`` standardises them like the inputs (always predicting the mean has an error of about 1 on
            every task), ``"quantile"`` divides each by the 0.9-quantile of its training values (Navon et al.), ``"none"`` leaves them in
            their own units, in which mean squared errors are published; the largest torques then count for most of the sum.
        part: ``"published"``; or ``"test"``: the rows of ``sarcos_inv_test.mat`` alone, all of them as training rows and without test rows
            of its own, for those who have this file only. Errors on them compare with no published number.
        root: the folder that holds ``sarcos``, with these files; by default the one that ``STREAMLEARN_DATA`` names.

    Raises:
        UnknownNameError: there is no such scale or part.
        DataError: a file is missing or damaged.

    Source: Vijayakumar and Schaal, "Locally weighted projection regression", ICML 2000; the split: Rasmussen and Williams, "Gaussian
        processes for machine learning", 2006, section 2.5; the quantile: Navon, Shamsian, Chechik and Fetaya, "Learning the Pareto front
        with hypernetworks", ICLR 2021 (who keep the first 4,448 training rows for validation).
    """
    for value, what, known in ((scale, "scale", SCALES), (part, "part", ("published", "test"))):
        if value not in known:
            raise UnknownNameError(f"{what} of source sarcos", str(value), known)
    test = _table(_file("sarcos", "sarcos_inv_test.mat", root), "sarcos_inv_test")
    if part == "test":
        return _torques(test, test, scale, "sarcos/test-part"), None
    try:
        path = _file("sarcos", "sarcos_inv.mat", root)
    except DataError as error:
        raise DataError(f"{error}, or ask for the rows of the test file alone: sarcos:part=test") from None
    train = _table(path, "sarcos_inv")
    return _torques(train, train, scale, "sarcos"), _torques(test, train, scale, "sarcos/test")


def _torques(rows: Floats, train: Floats, scale: str, name: str) -> TensorSource:
    """``rows`` in the units of ``train``."""
    values = _standardized(rows, train)
    y = values[:, _INPUTS:]
    if scale != "deviation":
        y = rows[:, _INPUTS:]
    if scale == "quantile":
        y = y / np.quantile(train[:, _INPUTS:], 0.9, axis=0)
    return _source(values[:, :_INPUTS], {f"torque{i + 1}": y[:, i] for i in range(_TORQUES)}, name)


def _table(path: Path, variable: str) -> Floats:
    table = np.asarray(_read(path, variable))
    if table.ndim != 2 or table.shape[1] != _INPUTS + _TORQUES or table.dtype.kind != "f":
        raise DataError(
            f"{variable} of {path} has shape {table.shape} and not {_INPUTS + _TORQUES} columns of numbers: fetch the file again"
        )
    return table.astype(np.float64)


class _Schools(TensorSource):
    """All rows, which are those of several sources.

    Attributes:
        parts: their names; what is asked on a task for each source takes them in place of this.
    """

    regression = True
    parts: tuple[str, ...] = ()


def school(number: int | None = None, root: str | None = None) -> tuple[TensorSource, None]:
    """``"school"``: the examination scores of 15,362 pupils of 139 London schools, of unequal sizes; no test rows of its own.

    Protocol: x ``(rows, 28)`` are the year, and properties of the school and the pupil (categories as 0 or 1, and a last input that is
    always 1); schools have 22 to 251 rows. Inputs and the score ``y`` are standardised with the mean and deviation of all pupils of all
    schools: an error of 1 is that of always predicting the mean, and 1 less the error is the explained variance of the literature. Each
    school is a task: ``multitask("school")`` asks each row on its own school's task, ``"school 1"`` to ``"school 139"``. The usual split
    is ``test_fraction=0.25``, drawn in each school, averaged over ten seeds.

    Args:
        number: 1 to 139: the rows of this school alone; ``None``: all rows, as one source.
        root: the folder that holds ``school/school.mat``; by default the one that ``STREAMLEARN_DATA`` names.

    Raises:
        DataError: there is no such school, or the file is missing or damaged.

    Source: Goldstein, "Multilevel modelling of survey data", The Statistician, 1991 (data of the Inner London Education Authority); as
        139 tasks: Bakker and Heskes, "Task clustering and gating for Bayesian multitask learning", JMLR 2003, and Argyriou, Evgeniou and
        Pontil, "Convex multi-task feature learning", Machine Learning 2008.
    """
    if number is not None and whole_number(number, "number of source 'school'", 1) > _SCHOOLS:
        raise DataError(f"there are {_SCHOOLS} schools, and none is number {number}: give 1 to {_SCHOOLS}")
    path = _file("school", "school.mat", root)
    inputs, scores = ([np.asarray(cell, dtype=np.float64) for cell in np.asarray(_read(path, key)).flat] for key in ("X", "Y"))
    fits = [x.ndim == 2 and x.shape[1] == _FEATURES and y.size == len(x) for x, y in zip(inputs, scores, strict=False)]
    if len(inputs) != _SCHOOLS or len(scores) != _SCHOOLS or not all(fits):
        raise DataError(f"{path} does not hold X and Y of {_SCHOOLS} schools, {_FEATURES} inputs and one score a row: fetch the file again")
    x, y = np.concatenate(inputs), np.concatenate([values.reshape(-1, 1) for values in scores])
    if number is None:
        whole = _Schools(*_tensors(_standardized(x, x), {"y": _standardized(y, y)[:, 0]}), "school")
        given = "" if root is None else f",root={json.dumps(root)}"
        whole.parts = tuple(f"school:number={one}{given}" for one in range(1, _SCHOOLS + 1))
        return whole, None
    own_x, own_y = inputs[number - 1], scores[number - 1].reshape(-1, 1)
    found = _Schools(*_tensors(_standardized(own_x, x), {"y": _standardized(own_y, y)[:, 0]}), f"school {number}")
    return found, None


def _file(folder: str, name: str, root: str | None) -> Path:
    within = f"{folder}/{name}"
    return find_path(within if root is None else f"{root}/{within}", folder)


def _read(path: Path, variable: str) -> Any:
    from scipy.io import loadmat

    try:
        found = loadmat(path, variable_names=[variable])
    except Exception as error:  # what reading rubbish raises is of many kinds
        raise DataError(f"{path} cannot be read as a file of MATLAB ({type(error).__name__}: {error}): fetch it again") from error
    if variable not in found:
        raise DataError(f"{path} holds no variable {variable!r}: fetch the file again")
    return found[variable]


def _standardized(rows: Floats, known: Floats) -> Floats:
    """``rows`` less the mean of ``known``, column by column, over its deviation."""
    units = [spread(column) for column in known.T]
    return (rows - [mean for mean, _ in units]) / [scale for _, scale in units]


def _source(x: Floats, targets: dict[str, Floats], name: str) -> TensorSource:
    return TensorSource(*_tensors(x, targets), name)


def _tensors(x: Floats, targets: dict[str, Floats]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    made = {key: torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32)) for key, values in targets.items()}
    return torch.from_numpy(x.astype(np.float32)), made
