"""`lilliput hardware`: its table and JSON, a compressed file beside the model, and what it refuses."""

import pytest

import lilliput

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
    from lilliput.hardware.device import FOLDER

    whole = (FOLDER / "eyeriss.toml").read_text("utf-8")
    for text, message in (
        ("rows = 0", "lacks the table [energy]"),
        (whole.replace("rows = 12", "rows = 0"), "device bad: rows must be at least 1, it is 0"),
        (whole.replace("clock = 200e6\n", ""), "device bad lacks clock"),
        (whole.replace("buffer_bytes = 110592", "buffer_bytes = 2"), "layer '0': a buffer of 1 words is too small"),
    ):
        (folder / "bad.toml").write_text(text)
        ran = call("hardware", net("build"), *SHAPE, "--device", "bad.toml")
        assert (ran.code, ran.error.count("\n")) == (1, 1), ran.error
        assert message in ran.error
    ran = call("hardware", net("build"), "--input", "1x1x2x8")
    assert (ran.code, ran.error.count("\n")) == (1, 1), ran.error


def test_a_picture(call, net, compressed, tmp_path):
    target = tmp_path / "energy.svg"
    ran = call("hardware", net("build"), *SHAPE, "--compressed", compressed, "--picture", target)
    assert ran.code == 0, ran.error
    assert target.read_text().startswith("<svg ")
    assert call("hardware", net("build"), *SHAPE, "--picture", tmp_path / "energy.png").code == 2


def test_energy_in_plans(call, net, monkeypatch):
    asked = []
    monkeypatch.setattr("lilliput.plan", lambda model, budget, *_, **__: asked.append(budget) or lilliput.Recipe())
    ran = call("plan", net("build"), *SHAPE, "--energy", "60%", "--device", "tpu_v1")
    assert ran.code == 0, ran.error
    assert asked == [lilliput.Budget(energy="60%", device="tpu_v1")]
    assert call("plan", net("build"), "--energy", "60%").code == 2
    assert call("plan", net("build"), *SHAPE, "--energy", "some").code == 2
    assert call("plan", net("build"), *SHAPE, "--device", "eyeriss").code == 2


def test_energy_in_reports(call, net, compressed, tmp_path):
    page = tmp_path / "report.html"
    words = ("report", compressed, "--device", "eyeriss", "-o", page)
    assert call(*words).code == 2
    ran = call(*words, "--model", net("build"))
    assert ran.code == 0, ran.error
    assert "Energy on eyeriss" in page.read_text()


def test_predicted_and_measured_times(call, net):
    words = ("hardware", net("build"), *SHAPE, "--measure")
    assert call(*words).code == 2
    told = call(*words, "--device", "this", "--json").json["measured"]
    assert [row["name"] for row in told] == ["0", "4"]
    assert all(row["measured"] > 0 and row["predicted"] > 0 for row in told)
    assert "ratio" in call(*words, "--device", "this").out
