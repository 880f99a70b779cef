"""Writes docs/benchmarks.md from the figures under benchmarks/results/.

python benchmarks/tables.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy import stats

HERE = Path(__file__).parent
TARGETS = {
    ("overhead", "784-256-256-10, batch 128", "engine / bare loop"): "≤ 1.03",
    ("overhead", "784-256-256-10, batch 128", "with five plugins / bare loop"): "≤ 1.05",
    ("overhead", "64-100-10, batch 32", "engine / bare loop"): "≤ 1.08",
    ("overhead", "64-100-10, batch 32", "with five plugins / bare loop"): "≤ 1.14",
    **{
        ("methods", network, work, ratio): aim
        for network in ("784-256-256-10, batch 128", "784-100-10, batch 128")
        for work, aims in {
            "naive": ("≥ 2.6", "≥ 5", "≤ 1.10"),
            "ewc": ("≥ 2.4", "≥ 5", "≤ 1.10"),
            "replay": ("≥ 2.4", "≥ 5", "≤ 1.10"),
            "evaluation alone": ("≥ 4", "≥ 9", ""),
        }.items()
        for ratio, aim in zip(
            ("avalanche, tensors / streamlearn", "avalanche, classic / streamlearn", "streamlearn / by hand"), aims, strict=True
        )
    },
}


def rows(path: tuple[str, ...], found: Any) -> Iterator[str]:
    """One line for each ratio, wherever it lies."""
    if isinstance(found, dict) and "median" in found:
        what = " · ".join(path[1:-1])
        target = TARGETS.get(path, "")
        spread = f"{found['lower']:.2f} to {found['upper']:.2f}"
        yield f"| {what} | {path[-1]} | **{found['median']:.2f}** | {spread} | {found['fastest']:.2f} | {target} |"
    elif isinstance(found, dict):
        for name, part in found.items():
            yield from rows((*path, name), part)
    else:
        yield f"| {' · '.join(path[1:-1])} | {path[-1]} | {found:.1e} | | | |"


def machine(figures: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures["machine"].items())


def engine(figures: dict[str, Any]) -> Iterator[str]:
    yield from ("## What the engine costs", "")
    yield "`python benchmarks/engine.py` (CPU time, one thread, candidates interleaved; ratios within a round, never seconds)."
    yield f"Taken on a shared machine with two cores, whose noise the quartiles show: {machine(figures)}."
    yield "How far any loop leads over Avalanche depends on the share of matrix products, which cost all alike: compare the rows"
    yield "`avalanche, tensors / by hand`, which no library can surpass by much. Importance in convolutions is bounded by their own passes."
    yield from ("", "| work | ratio | median | quartiles | of the fastest rounds | aim |", "|---|---|---|---|---|---|")
    for part in ("overhead", "methods", "importance", "growth"):
        yield from rows((part,), figures[part])
    yield ""


def effect(figures: dict[str, Any]) -> Iterator[str]:
    seeds = len(next(iter(figures["runs"].values()))["seeds"])
    yield from ("## What the first plugins do", "")
    yield f"`python benchmarks/effect.py`: scikit-learn's digits, five experiences, {seeds} seeds (of class order, weights and batches)."
    yield f"Mean ± standard deviation over seeds. {machine(figures)}."
    yield from ("", "| strategy | average accuracy | forgetting | learning accuracy |", "|---|---|---|---|")
    for name, run in figures["runs"].items():
        cells = [f"{100 * s['mean']:.1f} ± {100 * s['sd']:.1f}" for s in run["summary"].values()]
        yield f"| {name} | {' | '.join(cells)} |"
    saved = figures["forgetting saved by EWC"]
    yield ""
    yield (
        f"In the task-incremental stream EWC saves {100 * saved['mean']:.1f} points of forgetting, 95 % interval of the paired difference "
        f"{100 * saved['low']:.1f} to {100 * saved['high']:.1f}. In the class-incremental one it is replay that remembers."
    )
    yield ""


def dann(figures: dict[str, Any]) -> Iterator[str]:
    yield from ("## Domain adaptation: two moons", "")
    yield "`python benchmarks/dann.py`: 150 rows a domain, turned by 35 degrees; accuracy on the target domain, whose labels training never"
    yield f"sees. Mean ± standard deviation over seeds of data and engine. {machine(figures)}."
    yield from ("", "| strategy | seeds | target accuracy |", "|---|---|---|")
    for name, run in figures["runs"].items():
        found = run["summary"]
        yield f"| {name} | {found['seeds']} | {100 * found['mean']:.1f} ± {100 * found['sd']:.1f} |"
    yield ""


def maml(figures: dict[str, Any]) -> Iterator[str]:
    yield from ("## Meta-learning: sinusoids", "")
    yield "`python benchmarks/maml.py`: 5-shot regression; mean squared error on new sinusoids after gradient steps on their five points,"
    yield f"for a network trained by second-order MAML and one pre-trained on all of them. Mean over seeds. {machine(figures)}."
    first = next(iter(figures["runs"].values()))["seeds"]
    steps = list(next(iter(first.values()))["errors"])
    yield from ("", f"| start | seeds | {' | '.join(f'after {n}' for n in steps)} |", "|---|---|" + "---|" * len(steps))
    for name, run in figures["runs"].items():
        seeds = list(run["seeds"].values())
        cells = [f"{sum(s['errors'][n] for s in seeds) / len(seeds):.2f}" for n in steps]
        yield f"| {name} | {len(seeds)} | {' | '.join(cells)} |"
    yield ""


def forwards(figures: dict[str, Any]) -> Iterator[str]:
    yield from ("## One forward per model per step", "")
    yield "`python benchmarks/forwards.py`: LwF twice, two teachers, DANN and CORAL on a small convolutional network. CPU time, one thread."
    yield from ("", "| ratio | median | quartiles |", "|---|---|---|")
    for name, found in figures.items():
        if isinstance(found, dict) and "median" in found:
            yield f"| {name} | **{found['median']:.2f}** | {found['lower']:.2f} to {found['upper']:.2f} |"
    yield ""


def streams(figures: dict[str, Any]) -> Iterator[str]:
    yield from ("## What streams cost", "")
    yield "`python benchmarks/streams.py`: one epoch of an experience with the loader that Avalanche's strategies use, and with the one"
    yield f"of the engine. CPU time, one thread, the same rows, interleaved. {machine(figures)}."
    yield from ("", "| experience | ratio | median | quartiles | aim |", "|---|---|---|---|---|")
    for what, ratios in figures["batches"].items():
        for name, found in ratios.items():
            aim = "≥ 10" if name.endswith("/ streamlearn") else ""
            yield f"| {what} | {name} | **{found['median']:.0f}** | {found['lower']:.0f} to {found['upper']:.0f} | {aim} |"
    memory = figures["memory"]
    yield from ("", "A permuted stream of 1,000 experiences over MNIST: resident memory of the process, over the bytes of MNIST's tensors.")
    yield from ("", "| | ratio | aim |", "|---|---|---|")
    aims = {"stream built / MNIST's tensors": "≤ 1.2", "walked 1000 / walked 400": "1"}
    for name, found in memory.items():
        if "/" in name:
            yield f"| {name} | **{found:.3f}** | {aims.get(name, '')} |"
    yield ""


def pretrained(figures: dict[str, Any]) -> Iterator[str]:
    runs = figures["runs"]
    settings = next(iter(runs.values()))["settings"]
    rows = settings["training_rows"]
    yield from ("## A pretrained encoder: CIFAR-100 on features of MobileNetV2", "")
    size, part = settings["size"], ""
    if rows != 50_000:
        part = f" These are {rows / 500:.0f} % of CIFAR-100's training rows: no match for figures on all of them."
    yield f"`python benchmarks/pretrained.py`: class-incremental, {settings['experiences']} experiences; images resized to {size} x {size},"
    yield f"ImageNet weights that do not move, features computed once. {rows:,} training and {settings['test_rows']:,} test rows."
    yield f"{part} Mean ± standard deviation over seeds (of class order, weights and draws). Minutes on one thread of a shared".lstrip()
    yield f"machine, features not counted. {machine(figures)}."
    yield from ("", "| strategy | seeds | average accuracy | average incremental accuracy | minutes |", "|---|---|---|---|---|")
    for name, run in runs.items():
        found, seeds = run["summary"], len(run["seeds"])
        cells = [
            f"{100 * found[m]['mean']:.1f}" + (f" ± {100 * found[m]['sd']:.1f}" if seeds > 1 else "")
            for m in ("average_accuracy", "average_incremental_accuracy")
        ]
        yield f"| {name} | {seeds} | {' | '.join(cells)} | {found['minutes']['mean']:.1f} |"
    probe = runs.get("linear head, joint")
    if probe is not None:
        joint = probe["summary"]["average_accuracy"]["mean"]
        shares = [f"{name} {r['summary']['average_accuracy']['mean'] / joint:.0%}" for name, r in runs.items() if r is not probe]
        yield from ("", f"Average accuracy as a share of the joint linear probe's ({100 * joint:.1f}): {', '.join(shares)}.")
    yield ""


def split_mnist(figures: dict[str, Any]) -> Iterator[str]:
    yield from ("## Split MNIST next to published figures", "")
    yield "`python benchmarks/split_mnist.py`: the protocol of van de Ven et al. 2022 (Nature Machine Intelligence 4:1185, table 2)."
    yield f"Final accuracy in per cent; the interval is the 95 % one of our mean (Student's t). {machine(figures)}."
    yield "*By hand* are plain loops that do what the authors' published code does (`python benchmarks/split_mnist_by_hand.py`), on the"
    yield "same orders of classes as our seeds with the same numbers: where they lie with us and not with the publication, its difference"
    yield "is one of class orders, or of something that neither paper nor code tells, and not of the library."
    columns = (
        "method",
        "scenario",
        "seeds",
        "ours ± sd",
        "95 % interval",
        "published (SEM)",
        "inside",
        "by hand ± sd (seeds)",
        "ours - by hand",
    )
    yield from ("", f"| {' | '.join(columns)} |")
    yield "|---|" + "---|" * 8
    path = HERE / "results" / "split_mnist_by_hand.json"
    by_hand = json.loads(path.read_text())["runs"] if path.exists() else {}
    for name, run in figures["runs"].items():
        found, (method, _, scenario) = run.get("summary"), name.rpartition(", ")
        if not found or "sd" not in found:
            continue
        sem = "" if found["published_sem"] is None else f" ({found['published_sem']:.2f})"
        told = "not known here" if found["published"] is None else f"{found['published']:.2f}{sem}"
        inside = "" if found["published"] is None else "yes" if found["inside"] else f"no, {found['mean'] - found['published']:+.2f}"
        ours = f"**{found['mean']:.2f}** ± {found['sd']:.2f}"
        hand = _by_hand(run["seeds"], by_hand.get(name, {}))
        interval = f"{found['low']:.2f} to {found['high']:.2f}"
        yield f"| {method} | {scenario} | {found['seeds']} | {ours} | {interval} | {told} | {inside} | {hand} |"
    yield ""


def _by_hand(ours: dict[str, Any], hand: dict[str, Any]) -> str:
    """The mean of the loops by hand, and that of the differences to ours over the seeds that both have, with its 95 % interval."""
    found = [run["accuracy"] for run in hand.values()]
    if len(found) < 2:
        return " | "
    pairs = [ours[seed]["accuracy"] - hand[seed]["accuracy"] for seed in hand if seed in ours]
    half = float(stats.t.ppf(0.975, len(pairs) - 1)) * stdev(pairs) / len(pairs) ** 0.5
    return f"{mean(found):.2f} ± {stdev(found):.2f} ({len(found)}) | {mean(pairs):+.2f} ± {half:.2f}"


AIMS = {
    "streamlearn / by hand": dict.fromkeys(("naive", "ewc", "replay", "lwf", "agem", "mas", "si", "gdumb", "der", "mir"), "≤ 1.10"),
    "avalanche, tensors / streamlearn": {
        "naive": "≥ 2.6", "ewc": "≥ 2.4", "replay": "≥ 2.4", "lwf": "≥ 2.3", "agem": "≥ 2.3",
        "mas": "≥ 2.2", "si": "≥ 2.1", "gdumb": "≥ 3.2", "der": "≥ 3.1", "mir": "≥ 1.9",
    },
    "avalanche, classic / streamlearn": {"naive": "≥ 5"},
}  # fmt: skip


def continual(figures: dict[str, Any]) -> Iterator[str]:
    yield from ("## What continual-learning methods cost", "")
    yield "`python benchmarks/continual.py`: one epoch of split MNIST in five experiences and an evaluation after each, MLP 784-256-256-10,"
    yield "batch 128. CPU time, one thread, candidates interleaved; medians of ratios within a round. The loops by hand do the same work"
    yield f"with nothing around it, so that the last column bounds what any library can win here. {machine(figures)}."
    ratios = (
        "streamlearn / by hand",
        "avalanche, tensors / streamlearn",
        "avalanche, classic / streamlearn",
        "avalanche, tensors / by hand",
    )
    yield from ("", f"| method | {' | '.join(ratios)} |", "|---|" + "---|" * len(ratios))
    for name, found in figures.get("methods", {}).items():
        cells = [
            "" if ratio not in found else f"**{found[ratio]['median']:.2f}** ({AIMS[ratio][name]})" if ratio in AIMS
            else f"{found[ratio]['median']:.2f}" for ratio in ratios
        ]  # fmt: skip
        yield f"| {name} | {' | '.join(cells)} |"
    if "steps" in figures:
        yield from ("", "A regulariser's step over the bare step, once it has something to hold:", "")
        yield from ("| regulariser | SGD | Adam |", "|---|---|---|")
        for name in figures["steps"]["SGD"]:
            aims = ("≤ 1.75", "≤ 1.55") if name.startswith("si") else ("≤ 1.45", "≤ 1.35")
            cells = [f"**{figures['steps'][by][name]['median']:.2f}** ({aim})" for by, aim in zip(("SGD", "Adam"), aims, strict=True)]
            yield f"| {name.removesuffix(' / bare step')} | {' | '.join(cells)} |"
    if "online" in figures:
        told = ", ".join(f"{name} **{found['median']:.2f}**" for name, found in figures["online"].items())
        yield from ("", f"Online replay, experiences of 10 rows, 784-100-10, capacity 1,000: {told} (aim ≥ 8.5 over Avalanche).")
    if "scale" in figures:
        told = ", ".join(f"{name} **{f['median'] if isinstance(f, dict) else f:.3f}**" for name, f in figures["scale"].items())
        yield from ("", f"1,000 experiences of 60 rows with replay and online EWC: {told} (aim within 10 % of 1).")
    yield ""


def per_cent(found: list[float]) -> str:
    return f"{100 * found[0]:.1f} ± {100 * found[1]:.1f}"


def signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # never -0.0


def interval(middle: float, half: float | None) -> str:
    return signed(middle) if half is None else f"{signed(middle)} ({signed(middle - half)} to {signed(middle + half)})"


def multitask(figures: dict[str, Any]) -> Iterator[str]:
    yield from ("## Two tasks at once: weightings and combiners", "")
    yield "`STREAMLEARN_DATA=... python benchmarks/multitask.py`: which digit is at the left and which at the right of two that are laid"
    yield "over one another; one encoder, a head for each. MultiDigits is made of scikit-learn's digits (MLP 144-64-64, Adam 0.001, batches"
    yield "of 128, 30 epochs; once more with the loss of the right digit times 0.01, which equal weights do not hear; and once more for 120"
    yield "epochs, since after 30 no network has fitted its rows and a method that is merely slower looks worse). MultiMNIST is made of"
    yield "MNIST in the construction of Sener and Koltun 2018 (their LeNet, Adam from 0.01 down to 0.001, batches of 256, 6 epochs of"
    yield "20,000 rows: far fewer than in published work, so no match for its figures; the module's docstring has all differences)."
    yield "Options are defaults but where a row says otherwise; nothing is tuned for a row."
    yield f"Accuracies in per cent, mean ± standard deviation over seeds. {machine(figures)}."
    yield ""
    yield "How to read it: Δm is the mean over tasks of the relative change against a model for each task alone, in per cent (above 0,"
    yield "together is better). *Against equal* is the difference of Δm to equal weights with the same seeds, with its 95 % interval"
    yield "(Student's t): where it holds 0, these runs cannot tell the two apart, and of twenty such intervals one misses 0 by chance."
    yield "*Rank* is the mean over tasks of the rank of the mean accuracy, 1 for the best; between rows that cannot be told apart it is"
    yield "noise. *Conflicts* is the share of updates in which the tasks' gradients had a negative cosine, at the shared parameters or at"
    yield "the features."
    yield ""
    yield "What the tables do not say by themselves. UncertaintyWeighting and IMTL-L learn the logarithm of a scale, at the"
    yield "learning rate of the model unless told otherwise: Adam at 0.001 moves it by some 0.36 in 360 updates, and a factor of 100 asks"
    yield "for 4.6. MGDA without normalised gradients follows the shortest one, which a small loss has. For two tasks Nash-MTL has the"
    yield "direction of IMTL-G and a length that never changes. Adam hides the length of a gradient, but not that it changes during a"
    yield "run: a weighting whose gradients grow trains faster, one whose gradients shrink (GradNorm, which keeps the sum of the weights"
    yield "and so comes down to the scale of the smallest loss) slower."
    for table, runs in figures["tables"].items():
        found = {name: run["summary"] for name, run in runs.items() if "summary" in run}
        if not found:
            continue
        seeds = next(iter(found.values()))["seeds"]
        yield from ("", f"{table}, {seeds} seeds:", "")
        yield "| method | left | right | worst task | Δm | against equal | rank | conflicts |"
        yield "|---|" + "---|" * 7
        for name, row in found.items():
            cells = [per_cent(row["accuracies"]["left"]), per_cent(row["accuracies"]["right"]), per_cent(row["worst"])]
            cells.append(f"{signed(row['delta_m'][0])} ± {row['delta_m'][1]:.1f}" if "delta_m" in row else "")
            cells.append(interval(*row["against_equal"]) if "against_equal" in row else "")
            cells.append(f"{row['rank']:.1f}" if "rank" in row else "")
            at = " (features)" if row.get("at") == "features" else ""
            cells.append(f"{row['conflict_rate']:.2f}{at}" if "conflict_rate" in row else "")
            yield f"| {name} | {' | '.join(cells)} |"
    yield ""


def scheduling(figures: dict[str, Any]) -> Iterator[str]:
    runs = figures["runs"]
    settings = next(iter(runs.values()))["settings"]
    yield from ("## Ten tasks of unequal sizes: which one next", "")
    smallest = round(settings["largest"] * settings["ratio"] ** (settings["tasks"] - 1))
    yield f"`python benchmarks/scheduling.py`: {settings['tasks']} tasks, each on scikit-learn's digits with the pixels in an order of"
    yield f"its own, from {settings['largest']} rows down to {smallest}, a quarter of them kept for validation. One layer of"
    yield f"{settings['hidden']} units is shared; SGD {settings['learning_rate']}, batches of {settings['batch_size']} rows of one task, as"
    yield "many updates for each strategy: those that it gives to the small tasks the large ones miss, so read the worst task and the mean"
    yield "together. Accuracy in per cent, mean ± standard deviation over seeds (of rows, orders, weights and batches)."
    yield f"{machine(figures)}."
    yield from ("", "| strategy | seeds | updates | worst task | mean of tasks |", "|---|---|---|---|---|")
    for name, run in runs.items():
        found, updates = run["summary"], sorted({seed["updates"] for seed in run["seeds"].values()})
        worst = per_cent([found["worst"], found["worst_sd"]])
        yield f"| {name} | {found['seeds']} | {', '.join(map(str, updates))} | {worst} | {100 * found['mean']:.1f} |"
    yield ""


def combiners(figures: dict[str, Any]) -> Iterator[str]:
    yield from ("## What gradients for each task cost", "")
    yield "`python benchmarks/combiners.py`: whole steps (batch, forward, gradients, combination, update) of two networks with K tasks on"
    yield "every row, batches of 128, SGD, over the step by hand with one backward pass of the summed losses. All but that one and the"
    yield "engine without a combiner combine by MGDA. CPU time, one thread, candidates interleaved, medians of ratios within a round."
    yield "The last column is MGDA over the cheapest of the four ways by hand, which is named behind the quartiles: what the engine adds."
    yield "K backward passes cost what they cost, whoever makes them; gradients at the features (MGDA-UB) need one pass through the encoder"
    yield f"however many tasks there are. {figures['rounds']} rounds. {machine(figures)}."
    by_hand = ("loop over tasks", "LibMTL's way", "torchjd, sequential", "torchjd, vmap")
    ours = ("streamlearn, no combiner", "streamlearn, MGDA", "streamlearn, MGDA-UB")
    yield from ("", f"| network | K | {' | '.join((*by_hand, *ours))} | MGDA / best by hand |", "|---|---|" + "---|" * 8)
    for step, found in figures["steps"].items():
        network, _, tasks = step.rpartition(", ")
        cells = [f"{found[f'{name} / one backward']['median']:.2f}" for name in by_hand]
        cells += [f"**{found[f'{name} / one backward']['median']:.2f}**" for name in ours]
        over = found["streamlearn, MGDA / best by hand"]
        cells.append(f"**{over['median']:.2f}** ({over['lower']:.2f} to {over['upper']:.2f}; {found['best by hand']})")
        yield f"| {network} | {tasks.removesuffix(' tasks')} | {' | '.join(cells)} |"
    yield ""


META_AIMS = {
    "clone and adapt / streamlearn": "≥ 5",
    "convolutions, auto / loop": "≤ 1.05",
}


def meta(figures: dict[str, Any]) -> Iterator[str]:
    yield from ("## Learning to learn", "")
    yield f"`python benchmarks/meta.py sinusoids` and `cost`; protocol at the head of the script. {machine(figures)}."
    runs = figures.get("sinusoids", {})
    if any(runs.values()):
        yield from (
            "",
            "Mean squared error on 600 new sinusoids after so many inner steps, with the 95 % interval of the mean over tasks:",
            "",
        )
        steps = list(next(iter(next(row for row in runs.values() if row).values()))["errors"])
        yield from (f"| method | seed | {' | '.join(f'{k} steps' for k in steps)} |", "|---|---|" + "---|" * len(steps))
        for name, row in runs.items():
            for seed, run in row.items():
                cells = [f"{run['errors'][k]['mean']:.3f} ± {run['errors'][k]['half']:.3f}" for k in steps]
                yield f"| {name} | {seed} | {' | '.join(cells)} |"
    if "cost" in figures:
        yield from ("", "Ratios of CPU time, medians of rounds:", "", "| ratio | median | aim |", "|---|---|---|")
        for name, found in figures["cost"].items():
            if isinstance(found, dict) and "median" in found:
                yield f"| {name} | **{found['median']:.2f}** | {META_AIMS.get(name, '')} |"
        kept = figures["cost"]["memory"]
        yield ""
        yield f"Memory of 20 inner steps on four convolutions: unrolled {kept['unrolled']:.0f} MiB, adjoint {kept['adjoint']:.0f} MiB,"
        yield f"**{kept['adjoint / unrolled']:.2f}** of it (aim ≤ 0.5)."
    yield ""


def omniglot(figures: dict[str, Any]) -> Iterator[str]:
    yield from ("## Omniglot in a few minutes", "")
    yield "`STREAMLEARN_DATA=... python benchmarks/omniglot.py`: new characters of new alphabets, one drawing of each to learn from. The"
    yield "figures are transductive (BatchNorm normalises by the rows at hand), like the published 98.7 (MAML) and 97.7 (Reptile), which"
    yield f"had hours, not minutes. {machine(figures)}."
    yield from ("", "| method, episodes, budget | seed | accuracy | steps of 16 episodes | CPU minutes |", "|---|---|---|---|---|")
    for name, row in figures["runs"].items():
        for seed, run in row.items():
            yield f"| {name} | {seed} | **{run['accuracy']:.1f}** | {run['iterations']:,} | {run['cpu_minutes']:.1f} |"
    yield ""


def main() -> None:
    lines = ["# Benchmarks", "", "Made by `python benchmarks/tables.py` from `benchmarks/results/*.json`; do not edit.", ""]
    for name, write in (
        ("split_mnist", split_mnist),
        ("continual", continual),
        ("meta", meta),
        ("omniglot", omniglot),
        ("multitask", multitask),
        ("scheduling", scheduling),
        ("combiners", combiners),
        ("effect", effect),
        ("dann", dann),
        ("maml", maml),
        ("pretrained", pretrained),
        ("forwards", forwards),
        ("streams", streams),
        ("engine", engine),
    ):
        path = HERE / "results" / f"{name}.json"
        if path.exists():
            lines += write(json.loads(path.read_text()))
    (HERE.parent / "docs" / "benchmarks.md").write_text("\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
