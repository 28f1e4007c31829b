"""`lilliput list nets`: networks with their counts."""


def test_networks_are_listed_with_their_counts(call):
    told = {entry["path"]: entry for entry in call("list", "nets", "--json").json["methods"]}
    assert (told["nets/mobilenet"]["parameters"], told["nets/mobilenet"]["macs"]) == (4_231_976, 568_740_352)
    assert {entry["kind"] for entry in told.values()} == {"network"}
    text = call("list", "nets").out
    assert "4,231,976" in text
    assert "568,740,352" in text


def test_a_loss_is_shown_as_it_stands_in_python(call):
    assert "Relation(layers=('',), teacher_layers=(), weight=1.0" in call("list", "distill/relation").out


def test_one_network_shows_the_settings_of_its_paper(call):
    variants = call("list", "nets/squeezenet", "--json").json["variants"]
    assert {"settings": {"version": "1.1"}, "parameters": 1_235_496, "macs": 349_151_936} in variants
    text = call("list", "nets/squeezenet").out
    assert 'version = "1.1"' in text
    assert "the defaults" in text
    assert "In a recipe" not in text
