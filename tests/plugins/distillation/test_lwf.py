from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from streamlearn import Engine, models
from streamlearn.core.teaching import distillation_loss
from streamlearn.plugins import EWC, LwF, Replay
from streamlearn.streams import class_incremental, domain_incremental, task_incremental
from tests.core.support import Stop, class_stream, final, growing_stream, net, probe, same, sgd, stop_at
from tests.plugins.distillation.oracle import body, distance, library, plain_sgd, trained_by_avalanche


def test_the_formula_by_hand() -> None:
    student = torch.tensor([[1.0, 2.0], [0.0, -1.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 3.0], [2.0, 0.0]])
    p, log_q = [torch.softmax(row / 2, 0) for row in teacher], [torch.log_softmax(row / 2, 0) for row in student]
    expected = -sum(float(p[i][c] * log_q[i][c].detach()) for i in range(2) for c in range(2)) / 2
    value = distillation_loss(student, teacher, 2.0)
    assert float(value.detach()) == pytest.approx(expected)
    value.backward()
    assert float(student.grad.abs().min()) > 0
    at_teacher = teacher.clone().requires_grad_(True)
    distillation_loss(at_teacher, teacher, 2.0).backward()
    assert float(at_teacher.grad.abs().max()) < 1e-7


@pytest.mark.parametrize("square", [False, True])
def test_the_term_in_a_run(square: bool) -> None:
    """The teacher is the model as the last experience left it; only classes of finished experiences and incoming rows count."""
    ends: list[dict[str, Any]] = []
    seen: list[int] = []
    second = LwF(name="second")

    def before(step: Any) -> None:
        number = step.run.clock.experience
        teacher = step.run.teachers.get("lwf/previous")
        assert (teacher is None) == (number == 0)
        if teacher is not None:
            assert same(dict(teacher.state_dict()), ends[number - 1])
            assert step.run.teachers["second/previous"] is teacher, "equal teachers are one"
            assert not teacher.training
            assert step.teacher("lwf/previous") is step.teacher("second/previous")

    def after(step: Any) -> None:
        number = step.run.clock.experience
        terms = {name for name in step.terms if name.startswith("lwf/")}
        assert terms == ({"lwf/blobs"} if number else set())
        if number:
            rows, classes = step.batch.rows("train"), list(range(2 * number))
            old = step.run.teachers["lwf/previous"](step.batch.x[rows], "blobs")[:, classes].detach()
            new = step.outputs["blobs"][rows][:, classes].detach()
            expected = 1.5 * (9.0 if square else 1.0) * distillation_loss(new, old, 3.0)
            torch.testing.assert_close(step.terms["lwf/blobs"].detach(), expected)
            seen.append(number)

    watch = probe(
        "watch", before_step=before, after_step=after,
        after_experience=lambda run: ends.append({n: v.clone() for n, v in run.model.state_dict().items()}),
    )  # fmt: skip
    plugins = [Replay(capacity=9), LwF(strength=1.5, temperature=3.0, square_temperature=square), second, watch]
    Engine(net(), sgd(), plugins, batch_size=10).run(class_stream())
    assert seen == [1, 1, 2, 2]


def test_growth_and_heads_of_tasks_that_are_absent() -> None:
    terms: list[set[str]] = []
    stream = growing_stream()
    watch = probe("watch", after_step=lambda step: terms.append(set(step.terms)))
    Engine(models.mlp(stream, (8,)), sgd(), [LwF(), watch], batch_size=60).run(stream)
    assert terms == [set(), {"lwf/t"}, {"lwf/t"}, {"lwf/t"}]


def test_it_keeps_old_outputs() -> None:
    """On the second task's rows the outputs of the first head stay nearer to what they were."""
    stream = growing_stream((6,))

    def drift(strength: float) -> float:
        ends: list[Any] = []
        x = stream[1].data["train"].batch(torch.arange(20)).x
        keep = probe("keep", after_experience=lambda run: ends.append(run.model.eval()(x, "t").softmax(1).detach()))
        Engine(models.mlp(stream, (8,)), sgd(), [LwF(strength=strength), keep], batch_size=10, epochs=5).run(stream)
        return float((ends[1] - ends[0]).abs().mean())

    assert drift(5.0) < 0.5 * drift(0.0)


def by_hand(student: torch.Tensor, teacher: torch.Tensor, compared: list[int], old: list[int], temperature: float) -> float:
    """-mean_i Σ_{c old} p log q, q normalised over ``compared`` and p over ``old``: row by row, in double precision."""
    total = 0.0
    for s, t in zip(student.detach().double(), teacher.detach().double(), strict=True):
        up = sum(float((t[c] / temperature).exp()) for c in old)
        down = float(torch.logsumexp(s[compared] / temperature, 0))
        total -= sum(float((t[c] / temperature).exp()) / up * (float(s[c]) / temperature - down) for c in old)
    return total / len(student)


def terms_of(stream: Any, model: Any, plugin: LwF, beside: tuple[Any, ...] = (), **options: Any) -> list[tuple[Any, dict[str, float]]]:
    """Every step of a run, and the terms that ``plugin`` gave."""
    found: list[tuple[Any, dict[str, float]]] = []

    def keep(step: Any) -> None:
        mine = {name.removeprefix("lwf/"): float(value.detach()) for name, value in step.terms.items() if name.startswith("lwf/")}
        heads = {task: (step.outputs[task].detach(), step.teacher("lwf/previous")[task].clone()) for task in mine}
        found.append(((step.run.clock.experience, heads), mine))

    Engine(model, sgd(), [*beside, plugin, probe("watch", after_step=keep)], **options).run(stream)
    return found


@pytest.mark.parametrize("kind", ["fixed", "growing"])
def test_all_classes_take_part_in_the_new_distribution(kind: str) -> None:
    """``classes="all"``: the classes seen and those of the present experience, no more, in a head of either kind."""
    stream = class_incremental("digits", 5, grow=kind == "growing")
    model = models.mlp(stream, (8,))
    found = terms_of(stream[:3], model, LwF(strength=0.7, temperature=3.0, classes="all"), batch_size=200)
    checked = set()
    for (number, heads), terms in found:
        assert set(terms) == ({"digits"} if number else set())
        for task, value in terms.items():
            new, old = heads[task]
            assert new.shape[1] == (2 * number + 2 if kind == "growing" else 10)
            known = sorted(c for experience in stream[:number] for c in experience.classes[task])
            compared = sorted({*known, *stream[number].classes[task]})
            assert len(compared) == len(known) + 2
            assert value == pytest.approx(0.7 * by_hand(new, old, compared, known, 3.0), rel=1e-5)
            assert value > 0.7 * by_hand(new, old, known, known, 3.0) + 1e-3, "it is not the other setting"
            checked.add(number)
    assert checked == {1, 2}


@pytest.mark.parametrize("classes", ["old", "all"])
def test_one_head_a_task_is_the_sum_over_the_old_heads(classes: str) -> None:
    """Which is the mean over the k - 1 old heads times k - 1; neither option changes anything there."""
    stream = task_incremental("digits", 5)[:3]
    found = terms_of(stream, models.mlp(stream, (8,)), LwF(classes=classes, by_experience=True), batch_size=400)
    sizes = []
    for (number, heads), terms in found:
        assert len(terms) == number
        each = [by_hand(*heads[task], [0, 1], [0, 1], 2.0) for task in terms]
        if each:
            assert sum(terms.values()) == pytest.approx(number * (sum(each) / len(each)), rel=1e-5)
            sizes.append(number)
    assert set(sizes) == {1, 2}


@pytest.mark.parametrize("by_experience", [False, True])
def test_domains_count_once_or_as_often_as_there_were(by_experience: bool) -> None:
    stream = domain_incremental("digits", 4)
    found = terms_of(stream, models.mlp(stream, (8,)), LwF(strength=0.5, by_experience=by_experience), batch_size=700)
    checked = set()
    for (number, heads), terms in found:
        for task, value in terms.items():
            often = number if by_experience else 1
            assert value == pytest.approx(0.5 * often * by_hand(*heads[task], list(range(10)), list(range(10)), 2.0), rel=1e-5)
            checked.add(number)
    assert checked == {1, 2, 3}


def test_a_resume_in_mid_experience_knows_how_many_there_were(tmp_path: Path) -> None:
    stream = class_stream()

    def engine(**options: Any) -> Engine:
        plugins = [LwF(classes="all", by_experience=True, strength=3.0), Replay(capacity=6), EWC(strength=1.0)]
        return Engine(net(), sgd(), plugins, batch_size=10, epochs=2, seed=5, checkpoint_every=1, **options)

    whole = final(engine(), stream)
    with pytest.raises(Stop):
        engine(progress=stop_at(10)).run(stream, output=tmp_path)
    result = engine().resume(tmp_path, stream)
    assert same(dict(result.model.state_dict()), whole[0])
    assert same(result.events, whole[1])
    once = Engine(net(), sgd(), [LwF(classes="all", strength=3.0), Replay(capacity=6), EWC(strength=1.0)], batch_size=10, epochs=2, seed=5)
    assert not same(final(once, stream)[0], whole[0]), "the factor is felt in the third experience"
    plugin = LwF()
    plugin.load_state_dict({"finished": {"t": 2}})
    assert plugin.state_dict() == {"finished": {"t": 2}}


def test_a_single_old_class_is_kept_by_all_classes_alone() -> None:
    """Its probability over itself is 1 whatever the logits, but beside a new class it is not."""
    stream = class_incremental("digits", 10)[:2]
    for classes, count in (("old", 0), ("all", 1)):
        found = terms_of(stream, models.mlp(stream, (8,)), LwF(classes=classes), batch_size=400)
        assert [len(terms) for (number, _), terms in found if number] == [count]


@pytest.mark.parametrize(("strength", "temperature"), [(1.0, 2.0), (3.0, 1.0)])
def test_avalanche_trains_the_same_weights(strength: float, temperature: float) -> None:
    """Its term is the divergence, which differs by the teacher's entropy: by no gradient."""
    stream = class_stream()
    lwf = LwF(strength=strength, temperature=temperature)
    mine = Engine(body(), plain_sgd, [lwf], batch_size=1000, epochs=4).run(stream).model
    plugin = library("training.plugins").LwFPlugin
    theirs = trained_by_avalanche(stream, body(), lambda: [plugin(alpha=strength, temperature=temperature)], 4)
    without = trained_by_avalanche(stream, body(), list, 4)
    assert distance(mine, theirs) < 1e-5
    assert distance(mine, without) > 1e-3
