"""Algorithms of convolution, one a file behind the contract of `contract.py`; `choose.py` finds a layer's best."""
