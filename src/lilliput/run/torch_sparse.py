"""torch's own sparse matrices, the baseline of sparse kernels: layers with many zeros as CSR, MKL on the CPU."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lilliput.core.errors import ModelError
from lilliput.export.sizes import infos_of
from lilliput.file.artifact import Artifact
from lilliput.graph.ir import Graph, Node
from lilliput.graph.layers import CONVOLUTIONS, LINEAR, arguments_of, layer_of
from lilliput.run.choice import Chosen, Layer
from lilliput.run.dense import Dense
from lilliput.run.line import Line, Part, in_kernel, in_torch
from lilliput.run.native import NativeModule
from lilliput.run.pieces import pieces_of


@dataclass(frozen=True)
class TorchSparse:
    """Linear layers and convolutions become products with a sparse matrix; everything else is plain PyTorch.

    A convolution of more than one place gathers its windows first (im2col).

    Attributes:
        least: part of a layer's weights that must be zero.
    """

    least: float = 0.5

    def load(self, artifact: Artifact) -> nn.Module:
        """Returns a module that computes what the compressed model does.

        Args:
            artifact: one with a graph.

        Raises:
            ModelError: no graph.
        """
        dense: Any = Dense().load(artifact)
        graph: Graph = dense.graph
        tensors = {name: tensor.detach() for name, tensor in dense.state_dict().items()}
        try:
            infos = infos_of(graph, tensors)
        except ModelError as error:
            return NativeModule(graph, tensors, Chosen(None, (), {}, "dense", (str(error),)))
        modules = {}
        for index, node in enumerate(graph.nodes):
            layer = layer_of(node)
            if layer is not None and _suits(node, tensors[layer.weight], self.least):
                modules[index] = Csr(tensors[layer.weight], node)
        pieces = pieces_of(graph, infos, modules)
        parts = [
            Part(p, in_kernel(p, modules[p.nodes[0]], graph, tensors), "torch, CSR")
            if p.alone
            else Part(p, in_torch(p, tensors), "torch")
            for p in pieces
        ]
        layers = [
            Layer(layer.weight, "torch, CSR" if index in modules else "torch, floats")
            for index, node in enumerate(graph.nodes)
            if (layer := layer_of(node)) is not None
        ]
        return NativeModule(graph, tensors, Chosen(Line(graph, parts, tensors), tuple(layers), {}, "torch_sparse"))


class Csr(nn.Module):
    """A layer as a product with a sparse matrix.

    Args:
        weight: (out, in) or (out, in, height, width).
        node: the layer in the graph, a linear layer or an ungrouped two-dimensional convolution.
    """

    def __init__(self, weight: Tensor, node: Node) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls its CSR tensors a beta
            self.matrix = weight.flatten(1).to_sparse_csr()
        self.kernel = tuple(weight.shape[2:])
        self.bound = arguments_of(node)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """Returns what the layer gives.

        Args:
            x: (..., in) or (batch, in, height, width).
            bias: (out,), or None.
        """
        if not self.kernel:
            flat = torch.mm(self.matrix, x.reshape(-1, x.shape[-1]).t().contiguous())
            y = flat.t().reshape(*x.shape[:-1], -1)
            return y if bias is None else y + bias
        stride, padding, dilation = (_pair(self.bound[name]) for name in ("stride", "padding", "dilation"))
        sizes = [
            (x.shape[2 + a] + 2 * padding[a] - dilation[a] * (self.kernel[a] - 1) - 1) // stride[a] + 1 for a in (0, 1)
        ]
        if self.kernel == (1, 1) and stride == (1, 1) and padding == (0, 0):
            columns = x.flatten(2)
        else:
            columns = functional.unfold(x, self.kernel, dilation, padding, stride)
        flat = torch.mm(self.matrix, columns.transpose(0, 1).reshape(columns.shape[1], -1))
        y = flat.reshape(-1, len(x), *sizes).transpose(0, 1)
        return y if bias is None else y + bias[:, None, None]


def _suits(node: Node, weight: Tensor, least: float) -> bool:
    if weight.dtype != torch.float32 or not weight.numel():
        return False
    if int(torch.count_nonzero(weight)) > (1 - least) * weight.numel():
        return False
    if node.operator == LINEAR:
        return weight.ndim == 2
    bound = arguments_of(node)
    plain = node.operator in CONVOLUTIONS and weight.ndim == 4 and not isinstance(bound["padding"], str)
    return plain and bound["groups"] == 1


def _pair(value: Any) -> tuple[int, int]:
    items = tuple(value) if isinstance(value, tuple | list) else (value,)
    return (int(items[0]), int(items[-1]))
