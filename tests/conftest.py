"""What several tests share: the paths of examples and benchmarks, and fixtures that give real data and networks."""

import sys
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "examples"), str(ROOT / "benchmarks")]


@pytest.fixture(scope="session")
def fashion_mnist_directory() -> Path:
    """The directory of the four files; the test is skipped where they can be had from nowhere."""
    import fashion_mnist

    try:
        return fashion_mnist.find()
    except fashion_mnist.DataMissingError as error:
        pytest.skip(f"needs Fashion-MNIST: {error}")


@pytest.fixture(scope="session")
def validation_pictures(fashion_mnist_directory: Path) -> tuple[Tensor, Tensor]:
    """The first 1,000 validation pictures, 1000 x 1 x 28 x 28, and their labels."""
    import fashion_mnist

    images, labels = fashion_mnist.load("validation")
    return images[:1000].clone(), labels[:1000].clone()


@pytest.fixture
def demo_model() -> nn.Module:
    """The demo's network with its shipped weights, in eval mode; each test gets its own."""
    import fashion_cnn

    return fashion_cnn.trained()


@pytest.fixture(scope="session")
def efficientnet_lite0() -> nn.Module:
    """EfficientNet-Lite0 with its ImageNet weights, in eval mode; shared, so not to be changed."""
    import real_data
    import real_models

    try:
        return real_models.efficientnet_lite0()
    except (real_data.MissingError, ModuleNotFoundError) as error:
        pytest.skip(f"needs EfficientNet-Lite0: {error}")


@pytest.fixture(scope="session")
def imagenet_pictures() -> tuple[Tensor, Tensor]:
    """The 20 labelled ImageNet pictures, 20 x 3 x 224 x 224, and their labels."""
    import real_data

    try:
        return real_data.imagenet_pictures()
    except (real_data.MissingError, ModuleNotFoundError) as error:
        pytest.skip(f"needs 20 ImageNet pictures: {error}")


@pytest.fixture(scope="session")
def minilm() -> tuple[nn.Module, Any]:
    """MiniLM, in eval mode, and its tokenizer; shared, so not to be changed."""
    import real_data
    import real_models

    try:
        return real_models.minilm()
    except (real_data.MissingError, ModuleNotFoundError) as error:
        pytest.skip(f"needs MiniLM: {error}")
