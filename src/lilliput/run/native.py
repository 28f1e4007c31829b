"""The default engine: our kernels where a layer is packed for one, ONNX Runtime between them, whichever is faster."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lilliput.core.errors import LilliputError, LilliputWarning
from lilliput.file.artifact import Artifact
from lilliput.graph.ir import Graph, InputRef
from lilliput.graph.run import GraphModule, bind_inputs
from lilliput.run.choice import Chooser, Chosen
from lilliput.run.dense import Dense

_told: list[str] = []


@dataclass(frozen=True)
class Native:
    """Runs each layer in the way that was fastest when the network was loaded.

    A layer whose packed weight a kernel of `kernels/` serves is run by it where it is faster than floats, and a dense
    convolution by the algorithm that `convolution.choose` measured to be the fastest, likewise; what is between goes to
    ONNX Runtime, or to torch where that is faster or ONNX Runtime isn't installed. The whole is then timed beside the
    same network with floats, and the faster stays: `net.lines` says which layer runs on what, and whether there is any
    gain. As many threads as `torch.get_num_threads()` says when the network is loaded.

    Results agree with the `dense` engine's to 1e-4 of their size where nothing is put on levels while it runs, and
    layer by layer to what each kernel states.

    Attributes:
        timed: measure when loading, mostly for less than a second. Else kernels wherever they serve.
        tolerance: kernels that state a larger error of a layer's output, relative, are left out.
        workspace: bytes that the algorithm of a dense convolution may take, see `convolution.choose`; None for any.
    """

    timed: bool = True
    tolerance: float = 0.01
    workspace: int | None = None

    def load(self, artifact: Artifact) -> nn.Module:
        """Returns a module that computes what the compressed model does, in eval mode.

        Its parameters are those of the `dense` engine, without gradients. Where gradients are wanted
        (`requires_grad_()`), a weight was changed, or it was moved to another device or dtype, it runs as `dense` does.

        Args:
            artifact: one with a graph.

        Raises:
            ModelError: if the artifact has no graph.
        """
        dense = Dense().load(artifact)
        assert isinstance(dense, GraphModule)
        chooser = Chooser(artifact, self.timed, self.tolerance, self.workspace)
        try:
            with torch.no_grad():
                chosen = chooser.choose()
        except LilliputError as error:
            chosen = Chosen(None, (), {}, "dense", (f"runs as the dense engine does: {error}",))
        for note in chosen.notes:
            if note.startswith("ONNX Runtime isn't") and note not in _told:
                _told.append(note)
                warnings.warn(note, LilliputWarning, stacklevel=4)
        return NativeModule(dense.graph, dict(dense.state_dict(keep_vars=True)), chosen)


class NativeModule(GraphModule):
    """A graph that runs in the way that was chosen for it.

    Args:
        graph: what to run.
        tensors: as for `GraphModule`; parameters that come out want no gradient.
        chosen: how it runs.
    """

    def __init__(self, graph: Graph, tensors: Mapping[str, Tensor], chosen: Chosen) -> None:
        super().__init__(graph, tensors)
        self.requires_grad_(False)
        self.__dict__["_chosen"] = chosen
        self.__dict__["_loaded"] = self._versions()
        trees = [tree for _, tree in graph.call]
        self.__dict__["_plain"] = not trees or trees == [InputRef(place) for place in range(len(graph.inputs))]

    @property
    def chosen(self) -> Chosen:
        """Measurements and layers."""
        return self.__dict__["_chosen"]  # type: ignore[no-any-return]

    @property
    def lines(self) -> tuple[str, ...]:
        """What each layer runs on, then what isn't as it could be."""
        return (*map(str, self.chosen.layers), *self.chosen.notes)

    @property
    def gain(self) -> float | None:
        """How many times as fast as the uncompressed network in ONNX Runtime; None if that wasn't measured."""
        return self.chosen.gain

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the original model did in eval mode; see `GraphModule.forward`."""
        line = self.__dict__["_chosen"].line
        if line is None or not self._as_loaded():
            return super().forward(*args, **kwargs)
        graph, checked = self.__dict__["_graph"], self.__dict__["_checked"]
        plain = self.__dict__["_plain"] and not kwargs and len(args) == len(graph.inputs)
        inputs = list(args) if plain else bind_inputs(graph, args, kwargs)
        for x, spec in zip(inputs, graph.inputs):
            if type(x) is not Tensor or x.dtype is not spec.dtype or not x.is_cpu or x.requires_grad:
                return super().forward(*args, **kwargs)
        key = tuple([x.shape for x in inputs])
        if key not in checked:
            # At new sizes the dense engine goes first: it bounds the memory that a stranger's graph may take.
            with torch.no_grad():
                super().forward(*args, **kwargs)
            checked.add(key)
        try:
            if not torch.is_grad_enabled():
                return line(inputs)
            with torch.no_grad():
                return line(inputs)
        except Exception as error:
            words = f"the network runs as the dense engine does from now on: {' '.join(str(error).split())[:200]}"
            self.__dict__["_chosen"] = Chosen(None, (), {}, "dense", (words,))
            warnings.warn(words, LilliputWarning, stacklevel=2)
        return super().forward(*args, **kwargs)

    def _as_loaded(self) -> bool:
        """Whether the weights are those that were loaded, and nobody watches the operators or wants gradients."""
        # Of modes torch tells in public only their stacks, as lists, which takes longer than a small network.
        if torch._C._len_torch_function_stack() or torch._C._len_torch_dispatch_stack():
            return False
        if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
            return False
        wanted = torch.is_grad_enabled()
        for table, leaf, tensor, version in self.__dict__["_loaded"]:
            if table.get(leaf) is not tensor or tensor._version != version or (wanted and tensor.requires_grad):
                return False
        return True

    def _versions(self) -> list[tuple[dict[str, Tensor | None], str, Tensor, int]]:
        found = []
        for holder, leaf in self.__dict__["_slots"]:
            table = holder._parameters if leaf in holder._parameters else holder._buffers
            found.append((table, leaf, table[leaf], table[leaf]._version))
        return found

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_chosen"] = Chosen(None, (), {}, "dense", ("a copy runs as the dense engine does: load the file again",))
        state["_loaded"] = []
        return state
