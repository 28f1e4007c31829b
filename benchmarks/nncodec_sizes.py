"""Bytes that nncodec's DeepCABAC takes for arrays of integers; `minilm.py` runs this in nncodec's own environment.

    python benchmarks/nncodec_sizes.py a.npy b.npy      # prints {"path": "a.npy", "bytes": 1234} for each

Only the payload of the coded layer is counted: no header, no shape. The settings are those of nncodec's `compress`:
unary part of 10, its search of context parameters on, row-major. Each stream is decoded again and compared.
"""

import json
import sys

import numpy as np
from nncodec.extensions import deepCABAC  # the coder alone: nncodec's other modules need torch

UNARY = 11
"""`cabac_unary_length_minus1` + 1."""
PROFILE = 1
OFF = (deepCABAC.HdspMode.AlwaysOff, np.zeros(2, np.int8), 0, 0)
"""No history of earlier updates, no codebook."""


def coded(integers: np.ndarray) -> np.ndarray:
    encoder = deepCABAC.Encoder()
    encoder.initCtxModels(UNARY, 1)
    skipped = np.zeros(len(integers), np.int32)
    encoder.encodeLayer(integers, 0, 0, PROFILE, 0, 0, skipped, *OFF)
    return encoder.finish()


def decoded(data: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    integers = np.zeros(shape, np.int32)
    decoder = deepCABAC.Decoder()
    decoder.setStream(data)
    decoder.initCtxModels(UNARY)
    decoder.decodeLayer(integers, 0, 0, PROFILE, 0, *OFF)
    decoder.finish()
    return integers


def main() -> None:
    for path in sys.argv[1:]:
        integers = np.load(path, allow_pickle=False).astype(np.int32)
        data = coded(integers)
        if not np.array_equal(decoded(data, integers.shape), integers):
            sys.exit(f"nncodec did not give {path} back")
        print(json.dumps({"path": path, "bytes": len(data)}), flush=True)


if __name__ == "__main__":
    main()
