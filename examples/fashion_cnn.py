"""The network of the demo: a BatchNorm CNN for Fashion-MNIST in plain torch, and its trained weights.

Three convolutions and two fully connected layers, 323,962 parameters, 91 % of them in the first fully
connected layer: the shape of network that Deep Compression (Han et al. 2015, arXiv 1510.00149) is at its best
on. The checkpoint beside this file, by `train_fashion_cnn.py`, scores 0.929 on validation and 0.926 on test.
"""

from collections import OrderedDict
from pathlib import Path

from safetensors.torch import load_file
from torch import nn

CHECKPOINT = Path(__file__).with_suffix(".safetensors")


def fashion_cnn() -> nn.Module:
    """Builds the network, not trained.

    Returns:
        A module that takes float32 pictures, N x 1 x 28 x 28, normalised as `fashion_mnist.load` does, and
        gives the scores of the 10 classes, N x 10. Its layers are conv1..3 with norm1..3, and fc1, fc2.

    Example:
        >>> sum(parameter.numel() for parameter in fashion_cnn().parameters())
        323962
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 1
    for number, outputs in enumerate((16, 32, 64), start=1):
        # No bias: BatchNorm takes the mean away again.
        layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=False)
        layers[f"norm{number}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{number}"] = nn.ReLU()
        layers[f"pool{number}"] = nn.MaxPool2d(2)
        inputs = outputs
    layers["flatten"] = nn.Flatten()
    layers["drop1"] = nn.Dropout(0.3)
    layers["fc1"] = nn.Linear(64 * 3 * 3, 512)
    layers["relu4"] = nn.ReLU()
    layers["drop2"] = nn.Dropout(0.3)
    layers["fc2"] = nn.Linear(512, 10)
    return nn.Sequential(layers)


def trained() -> nn.Module:
    """Builds the network with the weights of the checkpoint, in eval mode.

    Returns:
        The module of `fashion_cnn`.
    """
    model = fashion_cnn()
    model.load_state_dict(load_file(CHECKPOINT))
    return model.eval()
