"""OGD: the gradient is projected so that, to first order, the outputs for rows of the past do not change."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from streamlearn.core.importance import evaluating
from streamlearn.core.penalties import embedded, leading
from streamlearn.core.plugin import Plugin, PluginConfig, PluginInfo, hookimpl
from streamlearn.core.randomness import forked, subseed
from streamlearn.errors import ConfigurationError

if TYPE_CHECKING:
    from streamlearn.core.run import Run
    from streamlearn.core.step import Step
    from streamlearn.streams import Experience

__all__ = ["OGD", "complement", "orthonormal", "watched_outputs"]

Variant = Literal["gtl", "ave", "all"]


def orthonormal(rows: Tensor, basis: Tensor | None = None, tolerance: float = 1e-5) -> Tensor:
    """An orthonormal basis of what ``rows`` span outside of the span of ``basis``, ``(r, n)``.

    What Gram and Schmidt would give, up to a rotation, and to rounding whatever the rows are: a QR decomposition, whose R tells the
    rank by its singular values. It is done twice, because rounding leaves a little of ``basis`` in rows that lie nearly within it.

    Args:
        rows: ``(m, n)``, of any lengths.
        basis: orthonormal, ``(d, n)``.
        tolerance: singular values of rows of length 1 count as 0 up to this, times √m.

    Example:
        >>> orthonormal(torch.tensor([[3.0, 4.0, 0.0], [6.0, 8.0, 0.0]]), torch.tensor([[0.0, 1.0, 0.0]])).abs().tolist()
        [[1.0, 0.0, 0.0]]
    """
    lengths = rows.norm(dim=1, keepdim=True)
    found: Tensor = rows[lengths.squeeze(1) > 0] / lengths[lengths.squeeze(1) > 0]
    for limit in (tolerance * len(found) ** 0.5, 0.5):
        if basis is not None and len(basis):
            found = found - (found @ basis.T) @ basis
        if not len(found):
            break
        q, r = torch.linalg.qr(found.T)
        left, sizes, _ = torch.linalg.svd(r)
        found = (q @ left[:, : len(sizes)][:, sizes > limit]).T
    return found


def complement(gradients: Mapping[str, Tensor], basis: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """g - Σ_b (b · g) b, with products over the names that ``basis`` has; the gradients of other names are handed on.

    Args:
        gradients: g by name; a parameter that has grown since counts with its leading slice.
        basis: the parts of the b of each name, ``(d, ...)``; together orthonormal over all names.

    Example:
        >>> complement({"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([[0.0, 1.0]])})["w"].tolist()
        [1.0, 0.0]
    """
    parts = {name: leading(gradients[name], b.shape[1:]) for name, b in basis.items()}
    if not parts:
        return dict(gradients)
    products = torch.stack([b.flatten(1) @ parts[name].flatten() for name, b in basis.items()]).sum(0)
    found = dict(gradients)
    for name, b in basis.items():
        found[name] = gradients[name].clone()
        leading(found[name], b.shape[1:]).sub_((products @ b.flatten(1)).view_as(parts[name]))
    return found


def watched_outputs(outputs: Tensor, target: Tensor | None, variant: Variant) -> list[Tensor]:
    """The scalars of one row that are to stay as they are.

    Args:
        outputs: of the row, ``(size,)``; with further dimensions their mean over those is meant, but for ``"all"``.
        target: the class; ``None`` where there is none, as in a regression: then ``"gtl"`` takes every output.
        variant: as in `OGD`.

    Example:
        >>> [float(value) for value in watched_outputs(torch.tensor([1.0, 5.0]), torch.tensor(1), "gtl")]
        [5.0]
    """
    if variant == "ave":
        return [outputs.mean()]
    if variant == "gtl" and target is not None:
        return [outputs.gather(0, target.unsqueeze(0)).mean()]
    return list(outputs.flatten())


class OGD(Plugin):
    r"""Orthogonal gradient descent.

    .. math:: \tilde g = g - \sum_{b \in S} (b^\top g)\, b, \qquad S \text{ an orthonormal basis of the } \nabla_θ f_k(x; θ)

    with one gradient of an output f_k for each of some rows x of every experience, taken when it ends (Farajtabar et al. 2020,
    algorithm 1). A small step along -g̃ leaves those outputs as they are. No rows are kept, and the loss on them is not asked.

    - ``variant="gtl"`` takes the logit of the row's class, which the paper finds to do best; ``"ave"`` the mean of the logits; ``"all"``
      every one, so that ``directions`` are used up by fewer rows. ``"gtl"`` needs labels, and takes every output of a regression.
    - g is everything that would move the model: the gradient of the rows and of every term. Plugins' modules keep theirs.
    - The projection is onto the complement of what S spans over the parameters that have a gradient *in this step*: a head of a past
      task stands still, so that directions that lie partly in it still bind the rest.
    - A parameter that grows keeps its directions, with zeros for what is new. Outputs are those of evaluation mode; nothing holds
      the statistics of a normalisation layer.

    Only plain steps keep the promise: weight decay and the momentum of an earlier experience move along S, and Adam bends g̃. Second
    order stays: the rate must be small (the paper takes 0.001). Directions are never dropped. A model with fewer parameters than
    directions stops learning.

    Args:
        variant: ``"gtl"``, ``"ave"`` or ``"all"``, the paper's names.
        directions: gradients taken of each experience, at least 1; of random rows. The paper takes 200.

    Raises:
        ConfigurationError: an experience consists of episodes.

    Cost: two products of S with a vector in each step; after each experience ``directions`` forward and backward passes of one row, and a
    QR decomposition. Memory: directions x parameters for each experience, which is what limits the method.

    Reference: Farajtabar, Azizan, Mott & Li, Orthogonal gradient descent for continual learning, AISTATS 2020. Deviation: a direction
    that is linearly dependent on the others up to rounding is left out, and the basis is another one of the same span.

    Example:
        >>> from streamlearn.plugins import OGD
        >>> OGD(variant="all", directions=100)
        OGD(directions=100, variant='all')
    """

    info = PluginInfo(
        name="ogd",
        family="gradients",
        summary="Takes out of the gradient what would change the outputs for rows of the past, to first order.",
        reference="Farajtabar, Azizan, Mott & Li 2020, AISTATS, algorithm 1",
        provides=frozenset({"projection"}),
        memory="directions x parameters for each experience",
    )

    class Config(PluginConfig):
        """Options of `OGD`."""

        variant: Variant = "gtl"
        directions: int = Field(200, ge=1)

    def __init__(self, *, name: str | None = None, **options: Any) -> None:
        super().__init__(name=name, **options)
        self._basis: dict[str, Tensor] = {}
        self._moving: tuple[frozenset[str], dict[str, Tensor]] | None = None  # what S comes to on the parameters that move

    @hookimpl
    def transform_gradients(self, gradients: Mapping[str, Tensor], step: Step) -> Mapping[str, Tensor]:
        """Project, once there is something to keep."""
        names = frozenset(self._basis) & gradients.keys()
        return complement(gradients, self._basis_on(names)) if names else gradients

    def _basis_on(self, names: frozenset[str]) -> dict[str, Tensor]:
        """An orthonormal basis of what S spans over some of the parameters; S itself over all."""
        if len(names) == len(self._basis):
            return self._basis
        if self._moving is None or self._moving[0] != names:
            parts = {name: b for name, b in self._basis.items() if name in names}
            self._moving = names, _by_name(orthonormal(_flat(parts)), parts)
        return self._moving[1]

    @hookimpl
    def after_experience(self, experience: Experience, run: Run) -> None:
        """Add the directions of this experience to S."""
        self._moving = None
        fresh = self._gradients(experience, run)
        if not fresh:
            return
        shapes = {name: p for name, p in run.parameters().items() if name in fresh or name in self._basis}
        known = len(next(iter(self._basis.values()))) if self._basis else 0
        old, new = {}, {}
        for name, p in shapes.items():
            old[name] = p.new_zeros(known, *p.shape)
            if name in self._basis:
                old[name] = embedded(self._basis[name], old[name])
            new[name] = fresh[name] if name in fresh else p.new_zeros(len(next(iter(fresh.values()))), *p.shape)
        basis = _flat(old)
        self._basis = _by_name(torch.cat([basis, orthonormal(_flat(new), basis)]), old)

    def _gradients(self, experience: Experience, run: Run) -> dict[str, Tensor]:
        """∇f of ``directions`` outputs by parameter name, ``(directions, ...)``; a parameter that none depends on is left out."""
        wanted = {name: p for name, p in run.optimization.trainable().items() if name in run.model_parameter_names}
        found: list[Sequence[Tensor | None]] = []
        with evaluating(run.model), forked(run.device), torch.enable_grad():
            torch.default_generator.manual_seed(
                subseed(run.seed, "plugin", self.name, "rows", run.clock.experience)
            )  # of data that augment
            for value in self._watched(experience, run):
                if value.requires_grad and wanted:
                    found.append(torch.autograd.grad(value, list(wanted.values()), allow_unused=True, retain_graph=True))
                if len(found) == self.config.directions:
                    break
        reached = [name for name, column in zip(wanted, zip(*found, strict=True), strict=False) if any(g is not None for g in column)]
        places = {name: number for number, name in enumerate(wanted)}
        return {name: torch.stack([_or_zeros(row[places[name]], wanted[name]) for row in found]) for name in reached}

    def _watched(self, experience: Experience, run: Run) -> Iterator[Tensor]:
        """The outputs to keep, of one random row after another."""
        data = run.data(experience.main_role)
        if any(len(piece) != len(piece.indices) for piece in data.parts()):
            raise ConfigurationError(
                f"plugin {self.name} takes directions of single rows, but experience {experience.index} has episodes: leave it out"
            )
        for position in torch.randperm(len(data), generator=run.generator(self, "rows")).split(1):  # type: ignore[no-untyped-call]
            row = data.batch(position, experience.main_role).to(run.device)
            for task in row.tasks:
                classes = run.tasks[task].kind == "classification"
                labelled = task in row.targets and bool(row.labelled_rows(task)[0])
                if classes and self.config.variant == "gtl" and not labelled:
                    continue
                outputs = run.model.decode(run.model.encode(row.x), task)[0]
                yield from watched_outputs(outputs, row.targets[task][0] if classes and labelled else None, self.config.variant)

    def state_dict(self) -> dict[str, Any]:
        """The basis."""
        return {"basis": dict(self._basis)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._basis, self._moving = dict(state["basis"]), None


def _or_zeros(gradient: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if gradient is None else gradient


def _flat(parts: Mapping[str, Tensor]) -> Tensor:
    """``(d, entries of all names)``."""
    return torch.cat([(part.flatten(1) if part.ndim > 1 else part.unsqueeze(1)) for part in parts.values()], 1)


def _by_name(flat: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `_flat`, for names and shapes as in ``like``; copies, so that no part holds the whole."""
    pieces = flat.split([part.shape[1:].numel() for part in like.values()], 1)  # type: ignore[no-untyped-call]
    return {name: piece.reshape(-1, *part.shape[1:]).clone() for (name, part), piece in zip(like.items(), pieces, strict=True)}
