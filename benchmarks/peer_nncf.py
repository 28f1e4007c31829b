"""Quantizes an ONNX file by NNCF, in an environment of its own, which `benchmarks/ptq.py` makes and calls.

python peer_nncf.py MODEL.onnx PICTURES.npy OUTPUT.onnx fast|full
"""

import sys

import nncf
import numpy
import onnx


def main() -> None:
    """Calibrates on all pictures, one at a time; `full` corrects biases layer by layer."""
    source, pictures, target, way = sys.argv[1:]
    model = onnx.load(source)
    name = model.graph.input[0].name
    data = nncf.Dataset(list(numpy.load(pictures)), lambda picture: {name: picture[None]})
    options = {"subset_size": len(numpy.load(pictures, mmap_mode="r")), "fast_bias_correction": way == "fast"}
    onnx.save(nncf.quantize(model, data, **options), target)


if __name__ == "__main__":
    main()
