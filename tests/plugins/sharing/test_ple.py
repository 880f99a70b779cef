from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from streamlearn import Engine, models
from streamlearn.errors import ConfigurationError
from streamlearn.plugins import MMoE
from streamlearn.plugins.sharing.ple import PLE, select
from tests.core.support import final, sgd, two_task_stream
from tests.plugins.sharing.architectures import A, B, C, convolutional, drifted, smooth, transformed, weights
from tests.plugins.sharing.conflict import errors

X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def gate(outputs: list[torch.Tensor], read: torch.Tensor, matrices: list[torch.Tensor]) -> torch.Tensor:
    """One row after another, one expert after another."""
    rows = []
    for row in range(len(read)):
        scores = torch.cat([matrix @ read[row] for matrix in matrices])
        shares = torch.exp(scores) / torch.exp(scores).sum()
        rows.append(sum(share * output[row] for share, output in zip(shares, outputs, strict=True)))
    return torch.stack(rows)  # type: ignore[arg-type]


@pytest.mark.parametrize(("shared", "own", "levels"), [(1, 1, 1), (2, 3, 2), (2, 1, 3)])
def test_the_forward_by_hand(shared: int, own: int, levels: int) -> None:
    """Level by level from the weights by name, in equations 1 to 7."""
    model = drifted(transformed(PLE(shared=shared, own=own), smooth((A, B, C), stages=levels)))
    w, tasks = weights(model), ("a", "b", "c")

    def expert(path: str, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(F.linear(x, w[f"{path}.0.weight"], w[f"{path}.0.bias"]))

    common, mine = X, dict.fromkeys(tasks, X)
    for level in range(levels):
        of_all = [expert(f"encoder.{level}.{e}", common) for e in range(shared)]
        of_task = {t: [expert(f"heads.experts.{t}.{level}.{e}", mine[t]) for e in range(own)] for t in tasks}
        if level < levels - 1:
            matrices = [w[f"heads.shared_gates.{who}.{level}.weight"] for who in ("shared", *[f"task {t}" for t in tasks])]
            following = gate([*of_all, *[output for t in tasks for output in of_task[t]]], common, matrices)
        mine = {t: gate([*of_all, *of_task[t]], mine[t], [w[f"heads.gates.{t}.{level}.weight"]]) for t in tasks}
        if level < levels - 1:
            common = following
    for t in tasks:
        expected = F.linear(mine[t], w[f"heads.by_task.{t}.weight"], w[f"heads.by_task.{t}.bias"])
        torch.testing.assert_close(model(X, t).detach(), expected, rtol=1e-9, atol=1e-12)


def test_selection_over_maps() -> None:
    outputs = [torch.randn(2, 3, 4, 4, dtype=torch.float64) for _ in range(3)]
    scores = torch.randn(2, 3, dtype=torch.float64)
    shares = torch.exp(scores) / torch.exp(scores).sum(1, keepdim=True)
    expected = torch.stack([sum(shares[r, e] * outputs[e][r] for e in range(3)) for r in range(2)])  # type: ignore[misc]
    torch.testing.assert_close(select(outputs, scores), expected, rtol=1e-12, atol=1e-12)


def test_gates_of_a_convolutional_level_read_what_its_experts_read() -> None:
    model = transformed(PLE(shared=2), convolutional(), (1, 6, 6))
    w = weights(model)
    assert w["heads.gates.a.0.weight"].shape == (3, 36)
    assert w["heads.gates.a.1.weight"].shape == (3, 4 * 3 * 3)
    assert w["heads.shared_gates.shared.0.weight"].shape == (2, 36)
    assert w["heads.shared_gates.task b.0.weight"].shape == (1, 36)
    assert model(torch.randn(3, 1, 6, 6, dtype=torch.float64), "b").shape == (3, 3)


def test_one_shared_expert_alone_is_the_plain_model() -> None:
    stream = two_task_stream()
    plain, _ = final(Engine(models.mlp(stream, (7, 5)), sgd(), batch_size=6, epochs=2), stream)
    one, _ = final(Engine(models.mlp(stream, (7, 5)), sgd(), [PLE(variant="cgc", own=0)], batch_size=6, epochs=2), stream)
    for name, value in plain.items():
        torch.testing.assert_close(one[name.replace("encoder.", "encoder.0.0.")], value, rtol=1e-5, atol=1e-7)


def test_without_experts_of_their_own_it_is_a_mixture_of_experts() -> None:
    mixed, ple = transformed(MMoE(experts=3), smooth()), transformed(PLE(variant="cgc", shared=3, own=0), smooth())
    to = {name: name.replace("encoder.", "encoder.0.") if name.startswith("encoder.") else name for name in mixed.state_dict()}
    state = {to[name].replace("gates.a.weight", "gates.a.0.weight").replace("gates.b.weight", "gates.b.0.weight"): value
             for name, value in drifted(mixed).state_dict().items()}  # fmt: skip
    ple.load_state_dict(state)
    for task in ("a", "b"):
        torch.testing.assert_close(ple(X, task), mixed(X, task), rtol=1e-12, atol=1e-12)


def test_an_encoder_of_one_stage_makes_both_settings_equal() -> None:
    one, other = transformed(PLE(), smooth(stages=1)), transformed(PLE(variant="cgc"), smooth(stages=1))
    for task in ("a", "b"):
        assert torch.equal(one(X, task), other(X, task))


def test_with_one_level_combiners_meet_shared_experts_alone() -> None:
    model = transformed(PLE(variant="cgc"), smooth())
    assert model.shared_names() == {name for name in weights(model) if name.startswith("encoder.")}
    features = model.encode(X).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model.decode(features, "a").square().sum(), features)
    assert bool(gradient[:, :4].any())
    assert not bool(gradient[:, 4:].any())  # the input


def test_experts_are_drawn_from_seed_and_name() -> None:
    def drawn(seed: int, **options: Any) -> dict[str, torch.Tensor]:
        return weights(transformed(PLE(shared=2, own=2, **options), smooth(), seed=seed))

    one, again, other, given = drawn(1), drawn(1), drawn(2), drawn(1, redraw=False)
    names = [f"encoder.0.{e}.0.weight" for e in range(2)] + [f"heads.experts.{t}.0.{e}.0.weight" for t in "ab" for e in range(2)]
    assert all(torch.equal(one[name], again[name]) for name in names)
    assert len({float(one[name].sum()) for name in names}) == 6
    assert [torch.equal(one[name], other[name]) for name in names] == [True, *[False] * 5]
    assert all(torch.equal(given[name], given[names[0]]) for name in names)


@pytest.mark.parametrize("variant", ["ple", "cgc"])
def test_tasks_that_need_different_things_get_them(variant: str) -> None:
    """Two tasks that a narrow encoder cannot serve at once: the error of hard sharing is several times as large."""
    hard, extracted = errors([]), errors([PLE(variant=variant)])
    assert sum(extracted.values()) < 0.5 * sum(hard.values())


def test_settings_that_say_nothing_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="variant='cgc' has one level, but stages is"):
        transformed(PLE(variant="cgc", stages=("1",)), smooth())
    with pytest.raises(ConfigurationError, match="own is 0, which variant='cgc' alone can do"):
        transformed(PLE(own=0), smooth())
    with pytest.raises(ConfigurationError, match="option 'shared' is 0"):
        PLE(shared=0)
