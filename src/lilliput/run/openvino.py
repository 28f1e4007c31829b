"""OpenVINO: the graph as an ONNX model, compiled for the CPU."""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from lilliput.core.errors import ModelError, NotInstalled
from lilliput.export.few_bits import INTEGERS
from lilliput.export.network import network_of
from lilliput.export.sizes import infos_of
from lilliput.export.sums import sums_of_levels
from lilliput.file.artifact import Artifact
from lilliput.file.atomic import write_pieces
from lilliput.graph.ir import refs_of
from lilliput.run.line import Call, Line, Part
from lilliput.run.pieces import Piece, pieces_of

INSTALL = "this engine needs openvino: pip install 'lilliput[openvino]'"


@dataclass(frozen=True)
class Openvino:
    """Intel's engine, the quickest of its kind for 8-bit transformers. `pip install 'lilliput[openvino]'`.

    Floats are computed in float32, unless `precision` says otherwise: by itself OpenVINO takes bfloat16 where the
    processor has it. Layers whose weights (`quantize/uniform`, symmetric) and inputs have 8 bits are computed with
    integers, also before a residual sum. Linear layers whose weights alone have 2, 4 or 8 bits keep these.

    Attributes:
        precision: `"f32"` or `"bf16"`.
        products: by what layers of few bits multiply: `"integers"`, for which their inputs are put on 8-bit levels
            while they run, with an error of some 0.5 % of the result, and residual sums take the levels of the layers
            beside them; or `"floats"`.
    """

    precision: str = "f32"
    products: Literal["integers", "floats"] = "integers"

    suffix: ClassVar[str] = ".xml"

    def load(self, artifact: Artifact) -> nn.Module:
        """Returns a module that computes what the compressed model does.

        Args:
            artifact: one with a graph.

        Raises:
            ModelError: no graph, or an operator without a counterpart.
            NotInstalled: openvino or onnx is missing.
        """
        from lilliput.run.choice import Chosen
        from lilliput.run.dense import Dense
        from lilliput.run.native import NativeModule

        dense: Any = Dense().load(artifact)
        graph, tensors = dense.graph, {name: tensor.detach() for name, tensor in dense.state_dict().items()}
        summed = sums_of_levels(graph) if self.products == "integers" else graph
        pieces = pieces_of(summed, infos_of(summed, tensors), ())
        line = Line(
            summed,
            [
                Part(p, in_openvino(p, tensors, artifact.weights, self.precision, self.products), "OpenVINO")
                for p in pieces
            ],
            tensors,
        )
        return NativeModule(graph, tensors, Chosen(line, (), {}, "openvino"))

    def export(self, artifact: Artifact, path: str | PathLike[str]) -> None:
        """Writes OpenVINO's pair of files: `path`, which must end in .xml, and the weights beside it in .bin.

        Args:
            artifact: one with a graph.
            path: where to.

        Raises:
            Errors: as `load`; ModelError where the path doesn't end in .xml.
        """
        target = Path(path)
        if target.suffix != ".xml":
            raise ModelError(f"{target}: OpenVINO's files end in .xml, with the weights in .bin beside it")
        graph, tensors = network_of(artifact, "OpenVINO")
        graph = sums_of_levels(graph) if self.products == "integers" else graph
        runtime = package()
        model = _read(runtime, graph, tensors, artifact.weights)
        with TemporaryDirectory() as folder:
            made = Path(folder) / "net.xml"
            runtime.save_model(model, str(made), compress_to_fp16=False)
            # The weights first: a reader that finds the .xml finds them too.
            write_pieces(target.with_suffix(".bin"), (made.with_suffix(".bin").read_bytes(),))
            write_pieces(target, (made.read_bytes(),))


def in_openvino(
    piece: Piece,
    tensors: Mapping[str, Tensor],
    packed: Mapping[str, Any],
    precision: str = "f32",
    products: str = "integers",
) -> Call:
    """Runs a piece in OpenVINO.

    Args:
        piece: of a graph.
        tensors: what it uses, by name.
        packed: weights as an artifact holds them.
        precision: of floats.
        products: see `Openvino`.

    Raises:
        ModelError: it has no counterpart in ONNX, or OpenVINO can't read that.
        NotInstalled: a package is missing.
    """
    runtime = package()
    model = _read(runtime, piece.graph, tensors, packed, piece.infos)
    settings = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
    }
    if products == "floats":
        settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0
    compiled = runtime.Core().compile_model(model, "CPU", settings)
    names = {spec.name: place for place, spec in enumerate(piece.graph.inputs)}
    # An input has the name of what is made of it, too, where OpenVINO found that nothing is: a cast to what it is.
    order = [next(names[name] for name in port.get_names() if name in names) for port in compiled.inputs]
    outputs = [compiled.output(f"output_{place}") for place, _ in enumerate(refs_of(piece.graph.output))]
    request, lock = compiled.create_infer_request(), threading.Lock()

    def call(given: list[Any]) -> list[Any]:
        # One request runs one input at a time.
        with lock:
            found = request.infer([given[place].contiguous().numpy() for place in order], share_inputs=True)
            return [torch.from_numpy(found[port].copy()) for port in outputs]

    return call


def _read(runtime: Any, graph: Any, tensors: Any, packed: Any, infos: Any = None) -> Any:
    from lilliput.export.onnx import to_onnx

    data = to_onnx(graph, tensors, packed, infos, sums=True, few=INTEGERS).SerializeToString()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return runtime.Core().read_model(model=data, weights=b"")
    except RuntimeError as error:
        raise ModelError(f"OpenVINO can't read the network: {' '.join(str(error).split())[:300]}") from None


def package() -> Any:
    """Returns openvino; NotInstalled without it."""
    try:
        import openvino
    except ImportError:
        raise NotInstalled(INSTALL) from None
    return openvino
