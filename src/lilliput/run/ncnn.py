"""ncnn: the graph as .param and .bin, written by hand, with 8-bit layers as its own integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.core.errors import ModelError, NotInstalled
from lilliput.export.ncnn import Files, to_ncnn
from lilliput.export.network import network_of
from lilliput.file.artifact import Artifact
from lilliput.file.atomic import write_pieces
from lilliput.graph.ir import Graph, refs_of
from lilliput.graph.run import bind_inputs, check_inputs
from lilliput.graph.structure import join


@dataclass(frozen=True)
class Ncnn:
    """Tencent's engine for phones; its 3 x 3 convolutions of floats are the fastest. `pip install 'lilliput[ncnn]'`.

    Layers whose weights (`quantize/uniform`, symmetric) and inputs have 8 bits are computed with integers. These are
    symmetric in ncnn: activations of the form `symmetric` (perhaps with the solver `kl_ncnn`) are computed as they
    are, others on up to twice as coarse levels. One example after another; sizes are fixed.

    Attributes:
        half: float weights are stored with 16 bits; they are computed with 32.
    """

    half: bool = False

    suffix: ClassVar[str] = ".param"

    def load(self, artifact: Artifact) -> nn.Module:
        """Returns a module that computes what the compressed model does.

        Args:
            artifact: one with a graph.

        Raises:
            ModelError: no graph, or something that ncnn has no counterpart of.
            NotInstalled: ncnn is missing.
        """
        package()
        files = self._files(artifact)
        assert artifact.graph is not None
        return NcnnModule(artifact.graph, files)

    def export(self, artifact: Artifact, path: str | PathLike[str]) -> None:
        """Writes `path`, which must end in .param, the weights beside it in .bin, and scales of integers in .table.

        The table is for ncnn's own tools, and is left out where no layer has integers; the pair is complete without.
        Inputs are the tensors `in0`, `in1` ..., outputs `out0`, `out1` ....

        Args:
            artifact: one with a graph.
            path: where to.

        Raises:
            ModelError: as `load`; or the path doesn't end in .param.
        """
        target = Path(path)
        if target.suffix != ".param":
            raise ModelError(f"{target}: ncnn's files end in .param, with the weights in .bin beside it")
        files = self._files(artifact)
        # The weights first: a reader that finds the .param finds them too.
        write_pieces(target.with_suffix(".bin"), (files.weights,))
        if files.table:
            write_pieces(target.with_suffix(".table"), (files.table.encode(),))
        write_pieces(target, (files.param.encode(),))

    def _files(self, artifact: Artifact) -> Files:
        return to_ncnn(*network_of(artifact, "ncnn"), artifact.weights, self.half)


class NcnnModule(nn.Module):
    """Runs a network of ncnn behind the calls of the original model; it holds no parameters.

    Args:
        graph: whose calls it takes.
        files: of `to_ncnn`.
    """

    def __init__(self, graph: Graph, files: Files) -> None:
        super().__init__()
        self.__dict__["graph"], self.__dict__["files"] = graph, files
        self.__dict__["call"] = opened(files)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the original model did in eval mode; see `GraphModule.forward`."""
        graph, files, call = (self.__dict__[name] for name in ("graph", "files", "call"))
        inputs = bind_inputs(graph, args, kwargs)
        check_inputs(graph.inputs, graph.symbols, inputs)
        rows = [call([tensor[place : place + 1] for tensor in inputs]) for place in range(len(inputs[0]))]
        shapes = [shape for _, shape in files.outputs]
        if len(rows) > 1 and any(not shape or shape[0] != 1 for shape in shapes):
            raise ModelError("ncnn takes one example at a time, and this network's results can't be put together")
        found = [torch.cat(parts) if shape else parts[0] for shape, parts in zip(shapes, zip(*rows))]
        given = {id(ref): tensor for ref, tensor in zip(refs_of(graph.output), found)}
        return join(graph.output, lambda ref: given[id(ref)])


def opened(files: Files) -> Callable[[list[Tensor]], list[Tensor]]:
    """Opens a network in ncnn, with as many threads as torch has.

    Args:
        files: of `to_ncnn`.

    Returns:
        From inputs, a batch of one each, to outputs.

    Raises:
        NotInstalled: ncnn is missing.
        ModelError: ncnn refuses the files.
    """
    runtime = package()
    net = runtime.Net()
    net.opt.num_threads = torch.get_num_threads()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    with TemporaryDirectory() as folder:
        made = Path(folder) / "net"
        made.with_suffix(".param").write_text(files.param)
        made.with_suffix(".bin").write_bytes(files.weights)
        failed = net.load_param(str(made.with_suffix(".param"))) or net.load_model(str(made.with_suffix(".bin")))
    if failed:
        raise ModelError("ncnn can't read the network that was written for it")
    places = [int(name.removeprefix("in")) for name, _ in files.inputs]

    def call(given: list[Tensor]) -> list[Tensor]:
        extractor = net.create_extractor()
        for place, (name, shape) in zip(places, files.inputs):
            array = np.ascontiguousarray(given[place].detach().float().numpy().reshape(shape))
            extractor.input(name, runtime.Mat(array).clone())
        found = []
        for name, shape in files.outputs:
            failed, mat = extractor.extract(name)
            if failed:
                raise ModelError(f"ncnn fails at {name}")
            found.append(torch.from_numpy(np.array(mat).reshape(shape)))
        return found

    return call


def package() -> Any:
    """Returns ncnn; NotInstalled without it."""
    try:
        import ncnn
    except ImportError:
        raise NotInstalled("this engine needs ncnn: pip install 'lilliput[ncnn]'") from None
    return ncnn
