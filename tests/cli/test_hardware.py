"""`lilliput hardware`: its table and JSON, a compressed file beside the model, and what it refuses."""

import pytest

SHAPE = ("--input", "1x1x8x8")


def test_a_table_and_the_same_as_json(call, net):
    ran = call("hardware", net("build"), *SHAPE)
    assert ran.code == 0, ran.error
    assert "row_stationary on eyeriss" in ran.out
    told = call("hardware", net("build"), *SHAPE, "--json").json
    flow = told["flows"]["row_stationary"]
    assert [layer["name"] for layer in flow["layers"]] == ["0", "4"]
    assert [layer["macs"] for layer in flow["layers"]] == [8 * 9 * 36, 288 * 10]
    for layer in flow["layers"]:
        parts = [value for name, value in layer["energy"].items() if name != "total"]
        assert layer["energy"]["total"] == pytest.approx(sum(parts))
        assert layer["bound"] in {"compute", "memory"}
    assert flow["energy"] == pytest.approx(sum(layer["energy"]["total"] for layer in flow["layers"]))
    assert told["device"]["rows"] == 12


def test_a_compressed_file_costs_less(call, net, compressed):
    words = ("hardware", net("build"), *SHAPE, "--compressed", compressed)
    ran = call(*words)
    assert ran.code == 0, ran.error
    assert "times less" in ran.out
    told = call(*words, "--json").json
    before, after = (told[side]["row_stationary"]["energy"] for side in ("flows", "compressed"))
    assert after < before
    assert all(layer["weight_bits"] <= 8 for layer in told["compressed"]["row_stationary"]["layers"])


def test_all_dataflows_and_devices(call, net):
    told = call("hardware", net("build"), *SHAPE, "--dataflow", "all", "--json").json
    totals = {flow: side["energy"] for flow, side in told["flows"].items()}
    assert min(totals, key=totals.get) == "compulsory"
    for device in ("eyeriss_256", "tpu_v1", "phone_cpu", "this"):
        assert call("hardware", net("build"), *SHAPE, "--device", device).code == 0


def test_refusals(call, net, folder):
    assert "give --input" in call("hardware", net("build")).error
    for words, code, message in (
        (("--device", "abacus"), 1, "no device 'abacus'; there are eyeriss"),
        (("--dataflow", "sideways"), 1, "no dataflow 'sideways'"),
        (("--device", "none.toml"), 1, "no such file"),
    ):
        ran = call("hardware", net("build"), *SHAPE, *words)
        assert (ran.code, ran.error.count("\n")) == (code, 1), ran.error
        assert message in ran.error
    (folder / "bad.toml").write_text("rows = 0")
    assert "lacks the table [energy]" in call("hardware", net("build"), *SHAPE, "--device", "bad.toml").error
