"""Writes ``docs/metrics.md``: every metric with its formula and source from the code, and the peers that compute the same number.

    python docs/make_metrics.py

A test compares the page with what this makes of the code.
"""

from __future__ import annotations

from pathlib import Path

from streamlearn.results import METRICS, Measure, Record, Result
from streamlearn.results.anytime import ANYTIME
from streamlearn.results.costs import COSTS
from streamlearn.results.variants import VARIANTS

PAGE = Path(__file__).parent / "metrics.md"

PEERS = {
    "average_accuracy": "GEM, Renate, contilab, Mammoth (mean over tasks)",
    "average_incremental_accuracy": "contilab, RaptorMai; PyCIL and iCaRL from one accuracy over all rows met",
    "forgetting": "A-GEM's code, contilab, Renate",
    "backward_transfer": "Renate, Mammoth, contilab, Avalanche (BWT)",
    "forward_transfer": "Renate, Mammoth, contilab",
    "learning_accuracy": "La-MAML (diagonal accuracy)",
    "accuracy_area": "continuum (accuracy_A), clfd",
    "backward_transfer_all_rows": "CapyMOA, RaptorMai, clfd; continuum leaves out the terms with j = i-2, as LibContinual does",
    "backward_transfer_over_all_experiences": "GEM's own code",
    "positive_backward_transfer": "RaptorMai; continuum gives this number as remembering",
    "remembering": "clfd; continuum gives this number as positive_backward_transfer",
    "forward_transfer_without_baseline": "",
    "forward_transfer_upper_triangle": "CapyMOA, RaptorMai",
    "forgetting_since_learnt": "continuum, which leaves out the experience before the last and the row before the last",
    "forgetting_including_last_row": "PyCIL; Mammoth, which also looks at the row right before an experience",
    "forgetting_over_all_rows": "RaptorMai",
    "forgetting_from_first": "Avalanche (StreamForgetting), ocl_survey",
    "worst_forgetting": "A-GEM",
    "relative_forgetting": "contilab",
    "anytime_accuracy": "ocl_survey (AAA), CapyMOA",
    "minimum_accuracy": "Mattdl/ContinualEvaluation, ocl_survey",
    "worst_case_accuracy": "Mattdl/ContinualEvaluation, ocl_survey",
    "windowed_forgetting_10": "Mattdl/ContinualEvaluation",
    "windowed_plasticity_10": "Mattdl/ContinualEvaluation",
    "learning_curve_area_10": "A-GEM, Mattdl/ContinualEvaluation",
    "model_size_efficiency": "clfd; continuum counts parameters",
    "samples_storage_efficiency": "clfd",
    "time_efficiency": "clfd",
}

INTRODUCTION = """\
<!-- Made by docs/make_metrics.py; do not edit. -->

# Metrics

Several numbers circulate under each of the usual names, and a published value can only be compared with the variant by which it was
computed. Here every variant has a name of its own, and a value carries its formula and source:

```python
import torch
from streamlearn import Engine, models, streams

stream = streams.class_incremental("digits", experiences=5)
engine = Engine(models.mlp(stream), lambda p: torch.optim.SGD(p, lr=0.05), evaluate_every=5, seed=1)
result = engine.run(stream)
result.metrics  # the usual six, which tables, figures and result.json show
result.measure("stability_gap")  # one by name
result.every_metric  # all on this page, by name
joint = Engine(models.mlp(stream), lambda p: torch.optim.SGD(p, lr=0.05), seed=1).run(streams.joint(stream))
result.intransigence(joint)  # against a run that may see more
```

`R[i, j]` is the accuracy on evaluation set `j`, from 0, when `i` of `T` experiences have been trained; row 0 is before any training, and
`R[j+1, j]` was measured right after experience `j`. Where several experiences teach one evaluation set, the rows are those before training,
after each set but the last has been learnt, and at the end; `T` is then the number of sets. A metric that needs an entry that was not
measured is undefined, and says which. All are fractions unless a unit is given."""

ANY_TIME = """\
From evaluations within experiences: give the engine `evaluate_every=n`, a number of updates. `A_n` are the accuracies at evaluation `n`,
after `u_n` updates; set `k` is learnt from update `b_k` to `e_k`. Every evaluation counts alike, and one within an experience that falls on
the same update as the one after it does not count a second time. `drop_after_switch`, `stability_gap` and `recovery_updates` are our own
definitions: the paper shows the gap in curves. What falls for good is in `drop_after_switch` and not in `stability_gap`."""

COST = """\
Sizes are taken when an evaluation set has been learnt, and are in the record; a run of an earlier version has none. Passes are those that
the plugins declare, which the conformance kit holds against those that they make; passes outside of updates, as for a Fisher information,
show in the seconds only. Seconds differ between equal runs, and of an experience that was resumed only those since count. `i` is the moment
when set `i` had been learnt."""

REFERENCE = """\
Both need a run on the same evaluation sets, such as one on `streams.joint(stream)`; `l_k` is the row in which it has learnt set `k`."""

SECTIONS = (
    ("The usual six", "In `result.metrics`.", METRICS),
    ("Variants", "What goes under the same names elsewhere, from the same matrix.", VARIANTS),
    ("At any time", ANY_TIME, ANYTIME),
    ("Cost", COST, COSTS),
)


def page() -> str:
    """The page as Markdown."""
    result = Result({"format": 1, "stream": {"name": "none", "experiences": 2}}, Record())
    known, lines = result.every_metric, [INTRODUCTION]
    for title, text, functions in SECTIONS:
        lines += ["", f"## {title}", "", text, "", *_table([known[name] for name in functions])]
    lines += ["", "## Against a reference", "", REFERENCE, "", *_table([result.intransigence(result), result.accuracy_gap(result)])]
    return "\n".join(lines) + "\n"


def _table(measures: list[Measure]) -> list[str]:
    rows = ["| name | formula | source | in peers |", "|---|---|---|---|"]
    for measure in measures:
        unit = "" if measure.unit == "fraction" else f" ({measure.unit})"
        formula = measure.formula.replace("|", "\\|")
        rows.append(f"| `{measure.name}`{unit} | {formula} | {measure.source} | {PEERS.get(measure.name, '')} |")
    return rows


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
