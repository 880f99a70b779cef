"""The kinds of contribution that a scaffold can be written for, each by a small published method that works."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KINDS", "Kind", "Option"]


@dataclass(frozen=True, slots=True)
class Option:
    """An option of the method that the scaffold begins with, for its card."""

    name: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True)
class Kind:
    """What a scaffold of one kind begins with.

    Args:
        what: what contributions of this kind do, as the command line tells it.
        summary: what the method of the scaffold does.
        reference: who published it.
        hooks: the hooks that it implements; none for a stream, which is a function.
        options: its options.
        memory: what its state costs.
        family: of built-in plugins, in which it would live.
        construct: the options with which its tests make it, as written in Python.
    """

    what: str
    summary: str
    reference: str
    hooks: tuple[str, ...]
    options: tuple[Option, ...]
    memory: str = "none"
    family: str = ""
    construct: str = ""


KINDS: dict[str, Kind] = {
    "loss": Kind(
        "adds a term to what is minimised: penalties, distillation, alignment",
        "Holds every parameter near the value it had when the last experience ended.",
        "Kirkpatrick et al. 2017, PNAS 114(13), the L2 baseline of figure 2",
        ("collect_terms", "after_experience"),
        (Option("strength", "0.1", "λ, at least 0; 0 switches it off"),),
        "1 x parameters",
        "regularization",
    ),
    "batch": Kind(
        "adds, mixes or changes rows of a batch: replay, augmentation",
        "Adds Gaussian noise to the inputs of every training batch.",
        "Bishop 1995, Neural Computation 7(1):108-116",
        ("transform_batch",),
        (Option("scale", "0.1", "σ, at least 0; 0 switches it off"),),
        family="regularization",
    ),
    "gradient": Kind(
        "changes gradients before the update: projection, clipping, masks",
        "Takes the mean over the inputs of each unit out of its gradient.",
        "Yong et al. 2020, ECCV, eq. 1",
        ("transform_gradients",),
        (Option("strength", "1.0", "λ, in [0, 1]: the part of the mean that is taken out; 0 switches it off"),),
        family="gradients",
    ),
    "combiner": Kind(
        "combines the gradients of several tasks: PCGrad, MGDA",
        "Gives the gradients of all tasks the same length before it adds them up.",
        "Sener & Koltun 2018, NeurIPS (normalised gradients, in the authors' code)",
        ("provide_gradient_combination",),
        (Option("floor", "1e-12", "ε, above 0: no norm is taken for smaller"),),
        family="gradients",
    ),
    "model": Kind(
        "exchanges or wraps the model: heads, gates, adapters",
        "Multiplies what the encoder gives by one learned number.",
        "Zhang, Dauphin & Ma 2019, ICLR (Fixup), section 3",
        ("transform_model",),
        (Option("initial", "1.0", "the factor at the start, above 0"),),
        "1 number",
        "sharing",
    ),
    "supervision": Kind(
        "replaces or refines targets: masks, soft targets, row weights",
        "Gives every class a small part of the probability of the true one.",
        "Szegedy et al. 2016, CVPR, section 7",
        ("transform_supervision",),
        (Option("smoothing", "0.1", "ε, in [0, 1); 0 switches it off"),),
        family="regularization",
    ),
    "weighting": Kind(
        "makes one scalar of the losses of several tasks",
        "Minimises the sum of the logarithms of the losses, whatever their scales.",
        "Lin et al. 2023, arXiv 2308.12029, section 3.1",
        ("provide_weighting",),
        (Option("floor", "1e-8", "ε, above 0: keeps the logarithm finite"),),
        family="weighting",
    ),
    "scheduler": Kind(
        "chooses from which tasks the rows of a batch are drawn",
        "Draws tasks by their size at first, and more and more equally as training goes on.",
        "Stickland & Murray 2019, ICML, section 4.2",
        ("provide_task_probabilities",),
        (Option("final", "0.2", "the exponent in the last epoch, in [0, 1]"),),
        family="scheduling",
    ),
    "metric": Kind(
        "measures something more at every evaluation",
        "Measures how often the true class is among the k that the model holds most probable.",
        "Russakovsky et al. 2015, IJCV 115, section 4.1",
        ("collect_metrics",),
        (Option("k", "2", "at least 1"),),
        family="tracking",
    ),
    "tracker": Kind(
        "writes down or sends on what is measured",
        "Writes every measured value as a line of a JSON Lines file.",
        "none; tidy data: Wickham 2014, Journal of Statistical Software 59(10)",
        ("after_evaluation",),
        (Option("path", "required", "the file"),),
        family="tracking",
        construct='path=Path(tempfile.mkdtemp()) / "measurements.jsonl"',
    ),
    "stream": Kind(
        "builds a stream, or changes one",
        "Two classes of points in the plane, which turn a little further with every experience.",
        "the rotating hyperplane of Hulten et al. 2001, KDD, as two Gaussians",
        (),
        (
            Option("experiences", "5", "at least 1"),
            Option("rows", "100", "training rows, and test rows, of an experience, at least 2"),
            Option("degrees", "30.0", "by which the points turn from one experience to the next"),
            Option("seed", "0", "of the draws"),
        ),
    ),
}
"""By the word that ``streamlearn plugins new --kind`` takes."""
