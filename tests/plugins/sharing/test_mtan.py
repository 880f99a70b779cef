from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from streamlearn import Engine, models, streams
from streamlearn.errors import ConfigurationError
from streamlearn.models import Heads, Model
from streamlearn.plugins.sharing.mtan import MTAN, Attention
from tests.plugins.sharing.architectures import A, B, convolutional, drifted, seeded, smooth, transformed, weights

X = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_the_forward_by_hand() -> None:
    """Equations 1 and 2 with linear layers."""
    model = drifted(transformed(MTAN(), smooth()))
    w = weights(model)
    for t in ("a", "b"):
        p, seen = X, None
        for stage in range(3):
            p = torch.tanh(F.linear(p, w[f"encoder.{stage}.0.weight"], w[f"encoder.{stage}.0.bias"]))

            def layer(name: str, x: torch.Tensor, place: str = f"heads.attention.{t}.{stage}") -> torch.Tensor:
                return F.linear(x, w[f"{place}.{name}.weight"], w[f"{place}.{name}.bias"])

            joined = p if seen is None else torch.cat([p, F.relu(layer("f", seen))], 1)
            seen = p / (1 + torch.exp(-layer("h", F.relu(layer("g", joined)))))
        expected = F.linear(seen, w[f"heads.by_task.{t}.weight"], w[f"heads.by_task.{t}.bias"])  # type: ignore[arg-type]
        torch.testing.assert_close(model(X, t).detach(), expected, rtol=1e-9, atol=1e-12)


def test_the_attention_of_maps_by_hand() -> None:
    """Kernels of size 1 at every place; f looks at the neighbours, and its places are averaged where they are fewer."""
    attention = seeded(lambda: Attention((2, 2, 2), before=(3, 4, 4))).double()
    p, seen = torch.randn(2, 2, 2, 2, dtype=torch.float64), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    padded = F.pad(seen, (1, 1, 1, 1))
    f = torch.zeros(2, 2, 4, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            f[:, :, i, j] = torch.einsum("oiuv,riuv->ro", attention.f.weight, padded[:, :, i : i + 3, j : j + 3]) + attention.f.bias
    f = f.relu()
    expected = torch.zeros_like(p)
    for i in range(2):
        for j in range(2):
            here = torch.cat([p[:, :, i, j], f[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))], 1)
            inner = F.relu(here @ attention.g.weight[:, :, 0, 0].T + attention.g.bias)
            expected[:, :, i, j] = torch.sigmoid(inner @ attention.h.weight[:, :, 0, 0].T + attention.h.bias)
    torch.testing.assert_close(attention(p, seen), expected, rtol=1e-9, atol=1e-12)


def test_from_maps_to_vectors_the_means_of_channels_are_read() -> None:
    attention = seeded(lambda: Attention((4,), before=(3, 4, 4)))
    seen = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(attention(torch.ones(2, 4), seen), attention(torch.ones(2, 4), seen.mean((2, 3))))


def test_open_masks_are_hard_sharing() -> None:
    plain, model = smooth(), transformed(MTAN(), smooth())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".h." in name:
                parameter.fill_(0.0 if "weight" in name else 60.0)
    model.heads.by_task.load_state_dict(plain.heads.by_task.state_dict())
    for task in ("a", "b"):
        torch.testing.assert_close(model(X, task), plain(X, task), rtol=1e-12, atol=1e-12)


def test_the_encoder_alone_is_shared_and_features_are_all_stages() -> None:
    model = transformed(MTAN(), convolutional(), (1, 6, 6))
    assert model.shared_names() == {name for name in weights(model) if name.startswith("encoder.")}
    assert model.encode(torch.randn(3, 1, 6, 6, dtype=torch.float64)).shape == (3, 4 * 3 * 3 + 4)


def test_vectors_that_become_maps_are_refused() -> None:
    encoder = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Sequential(nn.Unflatten(1, (2, 4)), nn.Conv1d(2, 2, 3)), nn.Flatten())
    with pytest.raises(ConfigurationError, match=r"stage 2 of the encoder turns features of shape \(8,\) into \(2, 2\)"):
        transformed(MTAN(stages=("1", "2.1")), Model(encoder, Heads(4, (A, B))))


def test_masks_differ_by_task_and_both_are_learnt() -> None:
    """On overlaid digits: each task closes other features, and reads its digit no worse than with hard sharing."""
    stream = streams.multitask("digits", 2)

    def run(plugins: list[MTAN]) -> tuple[float, Model]:
        model, options = models.mlp(stream, (32, 32)), {"epochs": 8, "batch_size": 64}
        engine = Engine(model, lambda p: torch.optim.Adam(p, lr=0.005), plugins, evaluate="end", **options)  # type: ignore[arg-type]
        result = engine.run(stream)
        return float(result.accuracy_matrix[-1].mean()), result.model

    hard, _ = run([])
    attentive, model = run([MTAN()])
    assert attentive > max(0.7, hard - 0.02)
    x = stream.evaluation_set(0).data.batch(torch.arange(50)).x
    with torch.no_grad():
        first = model.encoder[0](x)  # type: ignore[index, operator]
        masks = [model.heads.attention[task][0](first) for task in ("left", "right")]  # type: ignore[union-attr, index, operator]
    assert float((masks[0] - masks[1]).abs().mean()) > 0.05
