"""The preset dictionary of the manifest's compression: strings that most manifests hold, the commonest last."""

from typing import Final

DICTIONARY: Final = b"adaptive_avg_pool2d.default"
