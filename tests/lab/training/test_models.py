"""The network for tables takes rows of any length in batches of any size, and images too."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cyclofocal.lab.recipes.digits import digits
from cyclofocal.lab.training.models import build_model

MLP = replace(digits(), model="mlp", width=8)


@settings(max_examples=20)
@given(st.integers(1, 9), st.integers(1, 5), st.integers(2, 7))
def test_any_row_and_any_batch(inputs, rows, classes):
    network = build_model(MLP, classes, inputs).train()
    batch = torch.randn(rows, inputs)
    logits = network(batch)
    assert logits.shape == (rows, classes)
    torch.testing.assert_close(torch.cat([network(row[None]) for row in batch]), logits)


def test_width_is_the_hidden_units():
    assert [w.shape for w in build_model(MLP, 3, 5).parameters() if w.ndim == 2] == [(8, 5), (8, 8), (3, 8)]


def test_images_are_rows_of_their_pixels():
    assert build_model(MLP, 10)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("model", ["small-convnet", "resnet18"])
def test_a_model_of_images_takes_no_rows(model):
    with pytest.raises(ValueError, match=f"model is '{model}', which takes images; for rows of numbers"):
        build_model(replace(digits(), model=model, width=0), 3, inputs=5)


def test_a_linear_model_is_one_layer_of_any_row():
    recipe = replace(digits(), model="linear", width=0)
    model = build_model(recipe, 3, inputs=5)
    weight, bias = model.parameters()
    rows = torch.randn(4, 5)
    torch.testing.assert_close(model(rows), rows @ weight.T + bias)
    assert build_model(recipe, 10)(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    with pytest.raises(ValueError, match="width is 8, but a linear model has no hidden layer; it must be 0"):
        build_model(replace(recipe, width=8), 3, inputs=5)
