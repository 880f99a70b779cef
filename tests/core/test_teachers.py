"""Averaged teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from streamlearn import Engine, models
from streamlearn.core.forward import Teacher, average
from streamlearn.models import Heads, Model
from streamlearn.plugins import MultiHead
from streamlearn.streams import Stream, Task
from tests.core.support import Stop, class_stream, final, growing_stream, net, probe, same, sgd, stop_at

DECAY = 0.75


def state_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def ema(name: str = "ema", decay: float = DECAY, **hooks: Any) -> Any:
    return probe(name, **({"collect_teachers": lambda: {"mean": Teacher("ema", decay=decay)}} | hooks))


def towards(teacher: dict[str, Tensor], model: dict[str, Tensor], decay: float) -> dict[str, Tensor]:
    """θ_teacher ← decay θ_teacher + (1 - decay) θ, what is no float is copied."""
    return {n: decay * t + (1 - decay) * model[n] if t.is_floating_point() else model[n].clone() for n, t in teacher.items()}


def close(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6, msg=name)


def history(stream: Stream, model: nn.Module, *plugins: Any, **options: Any) -> tuple[list[Any], list[Any], Any]:
    """The model and its averaged teacher at the start of the run and after each update."""
    models_, teachers = [], []

    def note(run: Any) -> None:
        models_.append(state_of(run.model))
        teachers.append(state_of(run.teachers["ema/mean"]))

    def start(experience: Any, run: Any) -> None:
        if experience.index == 0:
            note(run)

    plugin = ema(before_experience=start, after_step=lambda step: note(step.run))
    Engine(model, sgd(), [plugin, *plugins], **({"batch_size": 10} | options)).run(stream)
    return models_, teachers, plugin


def test_the_average_by_hand_with_the_buffers_of_batch_normalisation() -> None:
    models_, teachers, _ = history(class_stream(), net())
    assert len(teachers) == 7
    expected = models_[0]
    close(teachers[0], expected)
    for update in (1, 2, 3):
        expected = towards(expected, models_[update], DECAY)
        close(teachers[update], expected)
        assert int(teachers[update]["encoder.body.1.num_batches_tracked"]) == update
        assert not same(teachers[update]["encoder.body.1.running_mean"], models_[update]["encoder.body.1.running_mean"])
    # Σ written out: after three updates the first weights count decay³
    name = "encoder.out.weight"
    written = DECAY**3 * models_[0][name] + (1 - DECAY) * (DECAY**2 * models_[1][name] + DECAY * models_[2][name] + models_[3][name])
    torch.testing.assert_close(teachers[3][name], written, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_an_update_in_parts_or_several_updates_a_batch(microbatches: int) -> None:
    """One movement for each update, whatever it is made of; without a plugin that listens to steps, too."""

    def twice(phases: Any) -> Any:
        return tuple(p.replace(updates=(("*",), ("*out*",))) for p in phases)

    models_, teachers, _ = history(class_stream(), net(), probe("twice", transform_phases=twice), microbatches=microbatches)
    assert len(teachers) == 13
    expected = models_[0]
    for found, model in zip(teachers[1:], models_[1:], strict=True):
        expected = towards(expected, model, DECAY)
        close(found, expected)


def test_a_run_in_which_nobody_listens_to_steps_averages_all_the_same() -> None:
    _, teachers, _ = history(class_stream(), net())
    final_teacher: list[Any] = []
    quiet = ema(after_run=lambda run: final_teacher.append(state_of(run.teachers["ema/mean"])))
    Engine(net(), sgd(), [quiet], batch_size=10).run(class_stream())
    close(final_teacher[0], teachers[-1])


def test_the_teacher_is_frozen_in_evaluation_mode_and_the_step_reads_it_before_the_update() -> None:
    outputs: list[Tensor] = []

    def term(step: Any) -> Tensor:
        teacher = step.run.teachers["ema/mean"]
        assert not teacher.training
        assert not any(p.requires_grad for p in teacher.parameters())
        read = step.teacher("ema/mean")["blobs"]
        assert not read.requires_grad
        with torch.no_grad():
            assert torch.equal(read, teacher(step.batch.x, "blobs"))
        outputs.append(read)
        return (step.outputs["blobs"] - read).square().mean()

    Engine(net(), sgd(), [ema(collect_terms=term)], batch_size=10).run(class_stream())
    assert len(outputs) == 6


@pytest.mark.parametrize("build", [lambda s: models.mlp(s, (8,)), lambda s: net()])
def test_the_average_follows_the_growth_of_heads(build: Any) -> None:
    stream = growing_stream()
    model = build(stream)
    plugins = [] if isinstance(model, Model) else [MultiHead()]
    models_, teachers, _ = history(stream, model, *plugins)
    expected = models_[0]
    grown = 0
    for found, student in zip(teachers[1:], models_[1:], strict=True):
        bigger = {n for n, t in student.items() if n not in expected or t.shape != expected[n].shape}
        grown += bool(bigger)
        for name in bigger:  # what is new starts where the model's new entries start: it is that far from them after one update
            assert found[name].shape == student[name].shape
            if name in expected:
                old = tuple(slice(0, size) for size in expected[name].shape)
                torch.testing.assert_close(
                    found[name][old], DECAY * expected[name] + (1 - DECAY) * student[name][old], rtol=1e-5, atol=1e-6
                )
        kept = {n: t for n, t in expected.items() if n not in bigger}
        close({n: found[n] for n in kept}, towards(kept, student, DECAY))
        expected = found
    assert grown == 3
    assert models_[-1].keys() == teachers[-1].keys()


def test_what_is_new_starts_at_the_models_own_values() -> None:
    fresh: list[bool] = []

    def before(experience: Any, run: Any) -> None:
        teacher, student = run.teachers["ema/mean"], run.model
        if experience.index == 3:
            assert torch.equal(teacher.heads.by_task["other"].weight, student.heads.by_task["other"].weight)
            assert not any(p.requires_grad for p in teacher.parameters())
            assert not teacher.training
            assert teacher.heads.by_task["other"].weight is not student.heads.by_task["other"].weight
            fresh.append(True)
        elif experience.index == 1:
            assert torch.equal(teacher.heads.by_task["t"].weight[2:], student.heads.by_task["t"].weight[2:])
            assert not torch.equal(teacher.heads.by_task["t"].weight[:2], student.heads.by_task["t"].weight[:2])
            fresh.append(True)

    stream = growing_stream()
    Engine(models.mlp(stream, (8,)), sgd(), [ema(before_experience=before)], batch_size=10).run(stream)
    assert fresh == [True, True]


def test_heads_are_matched_by_name_whatever_their_order() -> None:
    a, b = Task("a", size=3), Task("b", size=3)
    student, teacher = Model(nn.Linear(4, 5), Heads(5, [a, b])), Model(nn.Linear(4, 5), Heads(5, [b, a]))
    expected = towards(state_of(teacher), state_of(student), 0.5)
    average(teacher, student, 0.5)
    close(state_of(teacher), expected)


def test_equal_teachers_are_one_and_move_once() -> None:
    seen: list[int] = []

    def look(step: Any) -> None:
        run = step.run
        one, other, third = (run.teachers[f"{name}/mean"] for name in ("ema", "second", "third"))
        assert one is other
        assert one is not third
        assert step.teacher("ema/mean") is step.teacher("second/mean")
        seen.append(step.update)

    _, alone, _ = history(class_stream(), net())
    last: list[Any] = []
    watch = probe("watch", before_step=look, after_run=lambda run: last.append(state_of(run.teachers["ema/mean"])))
    plugins = [ema(), ema("second"), ema("third", decay=0.5), watch]
    Engine(net(), sgd(), plugins, batch_size=10).run(class_stream())
    assert len(seen) == 6
    close(last[0], alone[-1])


def test_the_average_does_not_move_without_an_update_and_moves_no_weight() -> None:
    usual, _ = final(Engine(net(), sgd(), [probe("plain", before_step=lambda: None)], batch_size=10), class_stream())
    with_teacher, _ = final(Engine(net(), sgd(), [ema()], batch_size=10), class_stream())
    assert same(usual, with_teacher)
    still = net()
    for p in still.parameters():
        p.requires_grad_(False)
    _, teachers, _ = history(class_stream(), still)
    assert all(same(found, teachers[0]) for found in teachers)


def test_decay_zero_is_the_model_itself() -> None:
    def follow(step: Any) -> None:
        close(state_of(step.run.teachers["zero/mean"]), state_of(step.run.model))

    Engine(net(), sgd(), [ema("zero", decay=0.0, after_step=follow)], batch_size=10).run(class_stream())


@pytest.mark.parametrize("kind", ["class", "growing"])
def test_a_resume_brings_the_average_back(kind: str, tmp_path: Path) -> None:
    stream = class_stream() if kind == "class" else growing_stream()

    def term(step: Any) -> dict[str, Tensor]:
        found = {}
        for task in step.batch.targets:
            found[task] = (step.outputs[task] - step.teacher("ema/mean")[task]).square().mean()
        return found

    def engine(kept: list[Any], **options: Any) -> Engine:
        model = net() if kind == "class" else models.mlp(stream, (8,), dropout=0.2)

        def end(run: Any) -> None:
            kept[:] = [{n: state_of(t) for n, t in run.teachers.items()}, run.teachers["ema/mean"] is run.teachers["second/mean"]]

        plugins = [ema(collect_terms=term, after_run=end), ema("second"), ema("third", decay=0.5)]
        return Engine(model, sgd(), plugins, batch_size=8, seed=4, checkpoint_every=2, **options)

    straight: list[Any] = []
    usual, events = final(engine(straight), stream, output=tmp_path / "straight")
    assert straight[1]
    last = max(e["update"] for e in events if e["event"] == "evaluation")
    for update in range(1, last, 2):
        with pytest.raises(Stop):
            engine([], progress=stop_at(update)).run(stream, output=tmp_path / str(update))
        kept: list[Any] = []
        result = engine(kept).resume(tmp_path / str(update), stream)
        assert same(dict(result.model.state_dict()), usual), update
        assert same(kept, straight), update
        assert same(result.events, events), update
