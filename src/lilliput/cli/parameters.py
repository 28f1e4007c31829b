"""The arguments that several verbs share, each with its line of help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

Json = Annotated[bool, Parameter(help="Write JSON to stdout, and nothing else.")]
Model = Annotated[
    str, Parameter(help="The model: file.py:function or package.module:function, called without arguments.")
]
Weights = Annotated[
    Path | None, Parameter(help="Its weights: .safetensors, or a state dict in .pt or .pth (read without pickle).")
]
File = Annotated[Path, Parameter(help="A file written by Lilliput.")]
Data = Annotated[
    str | None,
    Parameter(help="Data: file.py:function that returns an iterable of batches (inputs, or inputs and targets)."),
]
Evaluate = Annotated[
    str | None,
    Parameter(help="Your metric: file.py:function that takes the model and returns a number, higher is better."),
]
Inputs = Annotated[
    list[str] | None,
    Parameter(
        name=["--input", "-i"],
        help="Shape of an input, such as 1x3x224x224 or 1x3x224x224:float32; several with names: "
        "'ids=2x16:int64 mask=2x16:int64'. Or a .npy, .npz or .safetensors file.",
    ),
]
Output = Annotated[Path, Parameter(name=["--output", "-o"], help="The file to write; one that is there is replaced.")]


@dataclass(frozen=True)
class Around:
    """What is given along with a model: its weights, an example of its inputs, data, and the user's metric."""

    weights: Weights = None
    data: Data = None
    input: Inputs = None
    evaluate: Evaluate = None


Along = Annotated[Around, Parameter(name="*")]
NOTHING = Around()
