"""Random arguments of the operators in kernels/pack_maps.py."""

import torch


def sign_maps(draw, floats):
    x = floats(draw(0, 3), draw(1, 140), draw(1, 7), draw(1, 7))
    return x.contiguous(memory_format=torch.channels_last) if draw(0, 1) else x, bool(draw(0, 1))


def planes(draw, floats):
    codes = (floats(draw(0, 3), draw(1, 140), draw(1, 7), draw(1, 7)) * 100).int().byte()
    return codes, draw(1, 8)


CASES = {"pack_sign_maps": sign_maps, "pack_planes": planes}
TOLERANCES = {"pack_sign_maps": 1e-6}
