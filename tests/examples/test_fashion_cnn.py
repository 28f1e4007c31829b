"""The demo's network: what it is made of, and what its shipped checkpoint scores."""

import torch

import fashion_cnn
import fashion_mnist


def test_takes_any_batch_and_gives_ten_scores(demo_model):
    for size in (1, 3):
        assert demo_model(torch.zeros(size, 1, 28, 28)).shape == (size, 10)


def test_checkpoint_is_small_and_float32():
    assert fashion_cnn.CHECKPOINT.stat().st_size <= 1_700_000
    state = fashion_cnn.trained().state_dict()
    assert all(value.dtype == torch.float32 for value in state.values() if value.is_floating_point())
    assert all(value.isfinite().all() for value in state.values())


def test_checkpoint_scores_on_the_test_pictures(fashion_mnist_directory, demo_model):
    share = fashion_mnist.test_accuracy(demo_model)
    assert share >= 0.90
