from __future__ import annotations

import warnings

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from streamlearn.errors import ConfigurationError, UnknownNameError
from streamlearn.models import VAE
from streamlearn.models.vae import divergence


def vae(likelihood: str = "bernoulli", shape: tuple[int, ...] = (2, 3), **options: object) -> VAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return VAE(shape, **({"hidden": (7, 5), "latent": 4} | options), likelihood=likelihood).double()  # type: ignore[arg-type]


def rows(count: int = 9) -> torch.Tensor:
    return torch.rand(count, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_loss_is_the_negative_evidence_lower_bound_for_each_value(likelihood: str) -> None:
    model, x = vae(likelihood), rows()
    found = model(x, torch.Generator().manual_seed(5))
    mean, log_variance = model.encode(x)
    noise = torch.randn(9, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    posterior = Normal(mean, (log_variance / 2).exp())
    output = model.decode(mean + posterior.stddev * noise).flatten(1)
    if likelihood == "bernoulli":
        evidence = Bernoulli(output, validate_args=False).log_prob(x.flatten(1))
    else:
        evidence = Normal(output, 1.0).log_prob(x.flatten(1)) + 0.5 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
    wanted = (kl_divergence(posterior, Normal(0.0, 1.0)).sum(1) - evidence.sum(1)) / 6
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    assert found.shape == (9,)


def test_every_parameter_learns_and_the_loss_falls() -> None:
    model, x = vae(), rows(2).round()[torch.arange(40) % 2]
    optimizer, random = torch.optim.Adam(model.parameters(), lr=0.01), torch.Generator().manual_seed(0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(200):
        optimizer.zero_grad()
        loss = model(x, random).mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < sum(losses[:5]) - 0.3
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())


def test_samples_are_means_of_the_decoder_and_follow_their_generator() -> None:
    for likelihood in ("bernoulli", "gaussian"):
        model = vae(likelihood)
        found = model.sample(5, torch.Generator().manual_seed(3))
        z = torch.randn(5, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        assert torch.equal(found, model.decode(z))
        assert (found.shape, found.requires_grad) == ((5, 2, 3), False)
        assert likelihood == "gaussian" or bool(((found > 0) & (found < 1)).all())
        assert torch.equal(found, model.sample(5, torch.Generator().manual_seed(3)))


def test_it_learns_where_the_rows_are() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = torch.tensor([[-2.0, 2.0], [2.0, 2.0]], dtype=torch.float64)
    x = centres[torch.arange(400) % 2] + 0.1 * torch.randn(400, 2, generator=draw, dtype=torch.float64)
    model = vae("gaussian", (2,), hidden=(16,), latent=2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        model(x, draw).mean().backward()
        optimizer.step()
    made = model.sample(500, draw)
    near = torch.cdist(made, centres).argmin(1)
    assert 0.3 < float(near.double().mean()) < 0.7
    assert float((made[:, 1] - 2.0).abs().mean()) < 0.5


def test_without_a_generator_torchs_own_is_drawn_from() -> None:
    model, x = vae(), rows()
    torch.manual_seed(4)
    one, other = model(x), model(x)
    torch.manual_seed(4)
    assert torch.equal(one, model(x))
    assert not torch.equal(one, other)
    assert not torch.equal(model.sample(3), model.sample(3))


def test_the_defaults_are_those_of_the_published_generator() -> None:
    sizes = {name: tuple(p.shape) for name, p in VAE((1, 28, 28)).named_parameters() if name.endswith("weight")}
    assert list(sizes.values()) == [(400, 784), (400, 400), (100, 400), (100, 400), (400, 100), (400, 400), (784, 400)]


def test_no_hidden_layer_is_a_linear_one() -> None:
    model = vae(hidden=())
    assert sum(p.numel() for p in model.parameters()) == 2 * (6 * 4 + 4) + 4 * 6 + 6
    assert model(rows()).shape == (9,)


def test_avalanche_measures_the_same_divergence_and_draws_with_another_deviation() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generator = pytest.importorskip("avalanche.models.generator")
    model, x = vae(), rows()
    mean, log_variance = model.encode(x)
    torch.testing.assert_close(generator.VAE_loss(x, (x, mean, log_variance)), divergence(mean, log_variance).sum())
    theirs = generator.MlpVAE((2, 3), nhid=1)
    torch.manual_seed(0)
    log_variance = torch.full((20_000, 1), 2.0)
    drawn = theirs.sampling(torch.zeros(20_000, 1), log_variance)
    assert float(drawn.std()) == pytest.approx(torch.e**2 / 2, rel=0.02), "the half of the variance"
    assert float(drawn.std()) > 1.3 * torch.e, "the deviation, with which q(z|x) is meant to be drawn from"


@pytest.mark.parametrize("options", [{"hidden": (3, 0)}, {"latent": 0}])
def test_widths_below_one_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="give widths of at least 1"):
        VAE((3,), **options)  # type: ignore[arg-type]


def test_an_unknown_likelihood_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'gaussian'"):
        VAE((3,), likelihood="gausian")  # type: ignore[arg-type]
