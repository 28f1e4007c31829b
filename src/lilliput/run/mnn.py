"""MNN: our ONNX file, converted by MNN's compiled module; weights of 8 bits, and sparse ones, stay so.

MNN's command line and its Python package for it upload a log of each conversion, with the machine's number, and install
a package for that by pip. Neither is ever imported here: the compiled module that they call converts in a process of
its own, and the compiled runtime runs the network.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from lilliput.core.errors import ModelError, NotInstalled
from lilliput.export.network import network_of
from lilliput.export.quantized import codes_of, levels_in, without_levels
from lilliput.file.artifact import Artifact
from lilliput.file.atomic import write_pieces
from lilliput.graph.ir import Graph, refs_of
from lilliput.graph.layers import layer_of
from lilliput.graph.run import bind_inputs, check_inputs
from lilliput.graph.structure import join

INSTALL = "this engine needs mnn and onnx: pip install 'lilliput[mnn]'"
SPARSE = 0.5
"""A network with a layer of at least this part of zeros is stored as a sparse one."""
CONVERT = "import sys, _tools; _tools.mnnconvert(sys.argv[1:])"


@dataclass(frozen=True)
class Mnn:
    """Alibaba's engine for phones, the only one whose convolutions use unstructured zeros. `lilliput[mnn]`.

    Activations are floats: MNN can't read levels of activations, so that 8-bit ones are left out and coarser ones are
    refused. Where all layers have weights of 8 bits (`quantize/uniform`, symmetric) the file holds 8 bits, rounded once
    more by MNN where a row's largest code isn't 127. From half zeros in a layer on the file is sparse instead.
    """

    suffix: ClassVar[str] = ".mnn"

    def load(self, artifact: Artifact) -> nn.Module:
        """Returns a module that runs the network in MNN, with as many threads as torch has.

        Args:
            artifact: one with a graph of float32 inputs.

        Raises:
            ModelError: no graph, or something that MNN can't take.
            NotInstalled: mnn or onnx is missing.
        """
        data = self._converted(artifact)
        assert artifact.graph is not None
        return MnnModule(artifact.graph, data)

    def export(self, artifact: Artifact, path: str | PathLike[str]) -> None:
        """Writes a .mnn file.

        Args:
            artifact: as for `load`.
            path: where to; appears whole or not at all.

        Raises:
            Errors: as `load`.
        """
        write_pieces(path, (self._converted(artifact),))

    def _converted(self, artifact: Artifact) -> bytes:
        graph, tensors = network_of(artifact, "MNN")
        package()
        from lilliput.export.onnx import to_onnx

        if any(one.high - one.low < 254 for one in levels_in(graph).values()):
            raise ModelError("MNN has no activations of fewer than 8 bits")
        odd = [spec.dtype for spec in graph.inputs if spec.dtype != torch.float32]
        if odd:
            raise ModelError(f"only float32 inputs are handed to MNN, not {odd[0]}")
        data = to_onnx(without_levels(graph), tensors).SerializeToString()
        return converted(data, wishes(graph, tensors, artifact.weights))


class MnnModule(nn.Module):
    """Runs a network of MNN behind the calls of the original model; it holds no parameters.

    Args:
        graph: whose calls it takes.
        data: a .mnn file.
    """

    def __init__(self, graph: Graph, data: bytes) -> None:
        super().__init__()
        runtime = package()
        with TemporaryDirectory() as folder, quiet():
            path = Path(folder) / "net.mnn"
            path.write_bytes(data)
            net = runtime.Interpreter(str(path))
            settings = {"backend": "CPU", "numThread": torch.get_num_threads(), "precision": "high"}
            self.__dict__["_session"] = net.createSession(settings)
        self.__dict__.update(_graph=graph, _net=net, _runtime=runtime, _lock=threading.Lock(), _shapes=None)
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the original model did in eval mode; see `GraphModule.forward`."""
        graph, lock = self.__dict__["_graph"], self.__dict__["_lock"]
        inputs = bind_inputs(graph, args, kwargs)
        check_inputs(graph.inputs, graph.symbols, inputs)
        with lock:
            found = self._run([tensor.detach().float().contiguous() for tensor in inputs])
        given = {id(ref): found[f"output_{place}"] for place, ref in enumerate(refs_of(graph.output))}
        return join(graph.output, lambda ref: given[id(ref)])

    def _run(self, inputs: list[Tensor]) -> dict[str, Tensor]:
        from lilliput.export.writer import input_name

        graph, net, session, runtime = (self.__dict__[name] for name in ("_graph", "_net", "_session", "_runtime"))
        given = {input_name(graph, place): tensor for place, tensor in enumerate(inputs)}
        places = {name: place for name, place in net.getSessionInputAll(session).items() if name in given}
        shapes = {name: tuple(given[name].shape) for name in places}
        if shapes != self.__dict__["_shapes"]:
            for name, place in places.items():
                net.resizeTensor(place, shapes[name])
            net.resizeSession(session)
            self.__dict__["_shapes"] = shapes
        for name, place in places.items():
            place.copyFrom(_tensor(runtime, given[name].numpy()))
        net.runSession(session)
        found = {}
        for name, place in net.getSessionOutputAll(session).items():
            held = _tensor(runtime, np.zeros(place.getShape(), np.float32))
            place.copyToHostTensor(held)
            found[name] = torch.from_numpy(np.array(held.getNumpyData(), np.float32).reshape(place.getShape()))
        return found


def _tensor(runtime: Any, array: np.ndarray[Any, Any]) -> Any:
    return runtime.Tensor(array.shape, runtime.Halide_Type_Float, array, runtime.Tensor_DimensionType_Caffe)


def wishes(graph: Graph, tensors: Any, packed: Any) -> list[str]:
    """Returns how the converter is to store the weights.

    Args:
        graph: any graph.
        tensors: what it uses, by name.
        packed: weights as an artifact holds them.
    """
    names = {layer.weight for node in graph.nodes if (layer := layer_of(node)) is not None}
    if any(float((tensors[name] == 0).float().mean()) >= SPARSE for name in names):
        return ["--detectSparseSpeedUp"]
    if names and all(codes_of(packed.get(name)) is not None for name in names):
        return ["--weightQuantBits", "8", "--weightQuantAsymmetric", "0"]
    return []


def converted(data: bytes, wishes: list[str]) -> bytes:
    """Turns ONNX into MNN's format, in a process of its own, since the converter may abort.

    Args:
        data: a serialized ONNX model.
        wishes: further arguments of the converter.

    Raises:
        ModelError: the converter can't; says what it said last.
    """
    with TemporaryDirectory() as folder:
        source, target = Path(folder) / "net.onnx", Path(folder) / "net.mnn"
        source.write_bytes(data)
        words = ["mnnconvert", "-f", "ONNX", "--modelFile", str(source), "--MNNModel", str(target)]
        command = [sys.executable, "-c", CONVERT, *words, "--bizCode", "lilliput", *wishes]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not target.is_file():
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
            raise ModelError(f"MNN can't convert the network: {' '.join(said[-2:])[:300]}")
        return target.read_bytes()


def package() -> Any:
    """Returns MNN's compiled runtime; NotInstalled without it."""
    try:
        import onnx  # noqa: F401

        with quiet():
            import _mnncengine
            import _tools  # noqa: F401
    except ImportError:
        raise NotInstalled(INSTALL) from None
    return _mnncengine


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """What compiled code prints goes nowhere."""
    sys.stdout.flush()
    held, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(held, 1)
        os.close(held)
        os.close(nowhere)
