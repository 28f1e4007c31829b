"""Pictures are well-formed, escape what they are given, and their areas are proportional to values."""

from xml.etree import ElementTree

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lilliput.report.charts import Box, Item, bars, fitting, spread, squarify, strip, treemap
from lilliput.report.distribution import distribution
from lilliput.report.text import printable

HOSTILE = '</title><script>alert("1")</script>&\'<svg onload=x>\x1b\0'


@given(st.lists(st.floats(1, 1e9), min_size=1, max_size=60), st.floats(10, 1000), st.floats(10, 1000))
def test_a_treemap_fills_its_room_with_areas_proportional_to_values(values, width, height):
    values.sort(reverse=True)
    boxes = squarify(values, Box(0, 0, width, height))
    assert len(boxes) == len(values)
    total = sum(values)
    for value, box in zip(values, boxes):
        assert box.width * box.height / (width * height) == pytest.approx(value / total, rel=1e-9, abs=1e-9)
        assert box.x >= -1e-6
        assert box.y >= -1e-6
        assert box.x + box.width <= width * (1 + 1e-6)
        assert box.y + box.height <= height * (1 + 1e-6)


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=12))
def test_boxes_of_a_treemap_do_not_overlap(values):
    values.sort(reverse=True)
    boxes = squarify([float(v) for v in values], Box(0, 0, 300, 200))
    for index, one in enumerate(boxes):
        for two in boxes[:index]:
            across = min(one.x + one.width, two.x + two.width) - max(one.x, two.x)
            down = min(one.y + one.height, two.y + two.height) - max(one.y, two.y)
            assert min(across, down) < 1e-6


@pytest.mark.parametrize("draw", [bars, treemap, strip])
@pytest.mark.parametrize("values", [[], [0.0], [0.0, 0.0], [3.0, 1.0, 0.0], [1e-30, 1e30]])
def test_pictures_are_well_formed_and_escape_their_labels(draw, values):
    picture = draw([Item(HOSTILE, value, HOSTILE, 0) for value in values], HOSTILE)
    root = ElementTree.fromstring(picture)
    assert root.find("title").text == printable(HOSTILE)
    assert {element.tag for element in root.iter()} <= {"svg", "title", "desc", "rect", "text"}
    assert root.get("role") == "img"


def test_the_longest_bar_belongs_to_the_largest_value():
    root = ElementTree.fromstring(bars([Item("a", 1, "1"), Item("b", 4, "4")], "sizes"))
    one, four = (float(rect.get("width")) for rect in root.iter("rect"))
    assert four == pytest.approx(4 * one, rel=0.01)


def test_a_histogram_draws_before_and_after():
    values = distribution(torch.linspace(-1, 1, 100))
    assert spread(values, values, "w").count('class="p') == 2
    assert 'class="past"' not in spread(None, values, "w")
    ElementTree.fromstring(spread(None, None, HOSTILE))


def test_labels_are_cut_to_their_room_or_left_out():
    assert fitting("conv1", 100) == "conv1"
    assert fitting("a_very_long_layer_name", 60) == "a_very_…"
    assert fitting("conv1.weight", 20) == ""
