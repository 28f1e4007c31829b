"""Both roofs and where they meet; what bits and zeros change."""

from dataclasses import replace

import pytest

from lilliput.core.errors import DeviceError
from lilliput.hardware.device import Device, devices
from lilliput.hardware.layer import Layer
from lilliput.hardware.roofline import attainable, bound, measured, moved, ridge, this_machine


def test_asymptotes_meet_at_the_ridge():
    peak, bandwidth = 7e9, 3e9
    at = peak / bandwidth
    assert attainable(at, peak, bandwidth) == pytest.approx(peak)
    assert attainable(at * (1 - 1e-9), peak, bandwidth) == pytest.approx(peak)
    assert attainable(1e-6, peak, bandwidth) == pytest.approx(bandwidth * 1e-6)
    assert attainable(1e9, peak, bandwidth) == peak
    assert ridge(Device.load("tpu_v1")) == pytest.approx(1349, abs=1)


def test_bits_scale_the_intensity_and_zeros_lower_both():
    layer = Layer(64, 64, (14, 14), (3, 3), weight_bits=32, input_bits=32, output_bits=32)
    narrow = replace(layer, weight_bits=8, input_bits=8, output_bits=8)
    device = Device.load("phone_cpu")
    wide, slim = bound(layer, device), bound(narrow, device)
    assert slim.intensity == pytest.approx(4 * wide.intensity)
    pruned = replace(layer, weight_density=0.25)
    assert moved(pruned) < moved(layer)
    assert bound(pruned, device, skips=True).macs == wide.macs / 4
    assert bound(pruned, device).macs == wide.macs
    assert moved(layer, activations=False) == layer.weights * 4


def test_by_hand():
    device = replace(Device.load("eyeriss"), clock=1.0, bandwidth=1.0)
    heavy, light = Layer(1000, 1000, batch=10_000), Layer(100, 100)
    assert bound(heavy, device).by == "compute"
    assert bound(heavy, device).seconds == pytest.approx(1000 * 1000 * 10_000 / 168)
    assert bound(light, device).by == "memory"
    assert bound(light, device).seconds == 2 * (100 * 100 + 100 + 100)


def test_this_machine_is_measured():
    device = this_machine()
    assert 1e8 < device.peak < 1e14
    assert 1e8 < device.bandwidth < 1e13
    assert Device.loads(device.dumps(), "this") == device, "it can be kept as a file"


def test_every_device_that_comes_along_is_whole():
    for name in devices():
        device = Device.load(name)
        assert device.about
        assert device.costs.dram > device.costs.buffer >= device.costs.array >= device.costs.register


def test_bad_input():
    with pytest.raises(DeviceError, match="bandwidth must be positive, it is 0"):
        attainable(1.0, 1.0, 0.0)


def test_predictions_are_lower_bounds_of_what_is_measured():
    """A product large enough to be fast comes near; nothing is faster than its roofline by more than the noise."""
    device = this_machine()
    for layer in (
        Layer(256, 256, batch=256),
        Layer(64, 64, size=(28, 28), kernel=(3, 3), padding=(1, 1)),
        Layer(512, 512),
    ):
        wide = replace(layer, weight_bits=32, input_bits=32, output_bits=32)
        assert measured(layer, 0.02) > 0.1 * bound(wide, device).seconds
