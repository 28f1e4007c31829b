"""Parameters and multiplications of every network are the integers of the papers."""

import pytest
import torch

from lilliput.core.method import find, methods
from lilliput.graph.count import counts, counts_of

# Family's name, settings, parameters, multiply-accumulates for one picture.
GOLDEN = [
    ("lenet", {"form": "300-100"}, 266_610, 266_200),
    ("lenet", {"form": "5"}, 431_080, 2_293_000),
    ("alexnet", {}, 60_965_224, 724_406_816),
    ("vgg", {}, 138_357_544, 15_470_264_320),
    ("vgg", {"form": "cifar", "num_classes": 10, "size": 32}, 14_986_698, 313_463_808),
    ("resnet", {}, 11_689_512, 1_814_073_344),
    ("resnet", {"depth": 56, "form": "cifar", "num_classes": 10, "size": 32}, 853_018, 125_485_696),
    ("mobilenet", {}, 4_231_976, 568_740_352),
    ("mobilenet", {"width": 0.75}, 2_585_560, 325_400_448),
    ("mobilenet", {"width": 0.5}, 1_331_592, 149_497_088),
    ("mobilenet", {"width": 0.25}, 470_072, 41_030_272),
    ("mobilenet", {"size": 192}, 4_231_976, 418_121_728),
    ("mobilenet", {"size": 160}, 4_231_976, 290_675_200),
    ("mobilenet", {"size": 128}, 4_231_976, 186_400_768),
    ("squeezenet", {}, 1_248_424, 818_924_576),
    ("squeezenet", {"size": 227}, 1_248_424, 832_667_936),
    ("squeezenet", {"caffe": True}, 1_248_424, 847_596_576),
    ("squeezenet", {"caffe": True, "size": 227}, 1_248_424, 861_339_936),
    ("squeezenet", {"version": "1.1"}, 1_235_496, 349_151_936),
    ("squeezenet", {"version": "1.1", "size": 227}, 1_235_496, 387_747_520),
    ("shufflenet", {"groups": 1}, 1_531_936, 143_078_976),
    ("shufflenet", {"groups": 2}, 1_733_848, 140_836_512),
    ("shufflenet", {"groups": 3}, 1_865_728, 137_460_672),
    ("shufflenet", {"groups": 4}, 1_968_344, 134_339_776),
    ("shufflenet", {"groups": 8}, 2_434_768, 138_365_952),
    # The paper's counts leave out the last layer's bias.
    ("shufflenet", {"width": 0.5}, 717_324 + 1000, 37_589_856),
    ("shufflenet", {"width": 1.5}, 3_441_168 + 1000, 292_443_552),
    ("shufflenet", {"width": 2.0}, 5_449_776 + 1000, 524_045_184),
    ("pvanet", {"head": "none"}, 2_902_592, 511_092_736),
    ("pvanet", {"head": "none", "size": 640}, 2_902_592, 4_172_185_600),
    ("pvanet", {}, 3_287_592, 511_476_736),
    ("pvanet", {"head": "none", "version": "9.1"}, 2_888_576 + 16_528, 511_092_736),
    ("pvanet", {"head": "caffe", "version": "9.1"}, 100_874_232, 609_036_288),
    ("pvanet", {"head": "caffe"}, 100_871_720, 609_036_288),
    ("pvanet", {"head": "caffe", "size": 192}, 80_424_488, None),
    ("pvanet", {"head": "detection"}, 2_902_592 + 6_144 + 393_728 + 442_752 + 19_250 + 38_500, None),
]


@pytest.mark.parametrize(("name", "settings", "parameters", "macs"), GOLDEN)
def test_golden(name, settings, parameters, macs):
    found = counts_of(find("nets", name)(**settings))
    assert found.parameters == parameters
    assert macs is None or found.macs == macs


def test_every_net_has_golden_counts_but_lbcnn():
    assert {m.path for m in methods("nets")} - {f"nets/{name}" for name, *_ in GOLDEN} == {"nets/lbcnn"}


MOBILENET = {
    "stem": (864, 10_838_016),
    "block1": (288 + 2048, 3_612_672 + 25_690_112),
    "block2": (576 + 8192, 1_806_336 + 25_690_112),
    "block3": (1152 + 16384, 3_612_672 + 51_380_224),
    "block4": (1152 + 32768, 903_168 + 25_690_112),
    "block5": (2304 + 65536, 1_806_336 + 51_380_224),
    "block6": (2304 + 131_072, 451_584 + 25_690_112),
    "block9": (4608 + 262_144, 903_168 + 51_380_224),
    "block12": (4608 + 524_288, 225_792 + 25_690_112),
    "block13": (9216 + 1_048_576, 451_584 + 51_380_224),
    "fc": (1_024_000, 1_024_000),
}
SHUFFLENET = {
    "stem": (648, 8_128_512),
    "stage2.0": (1440 + 540 + 4320, 4_515_840 + 423_360 + 3_386_880),
    "stage2.1": (4800 + 540 + 4800, 3_763_200 + 423_360 + 3_763_200),
    "stage3.0": (9600 + 1080 + 9600, 7_526_400 + 211_680 + 1_881_600),
    "stage3.7": (19_200 + 1080 + 19_200, 3_763_200 + 211_680 + 3_763_200),
    "stage4.0": (38_400 + 2160 + 38_400, 7_526_400 + 105_840 + 1_881_600),
    "stage4.3": (76_800 + 2160 + 76_800, 3_763_200 + 105_840 + 3_763_200),
}
PVANET = {
    "conv1_1": (2352, 29_503_488),
    "conv2_1": (11_136 - 64, 34_721_792),
    "conv2_3": (9792, 30_707_712),
    "conv3_1": (44_416 - 128, 34_721_792),
    "conv3_4": (39_168, 30_707_712),
    "conv4_1": (247_424 - 256, 48_444_928),
    "conv4_4": (205_184, 40_216_064),
    "conv5_1": (573_824 - 384, 28_098_560),
    "conv5_4": (417_792, 20_471_808),
}
FIRE = {2: 11_920, 3: 12_432, 4: 45_344, 5: 49_440, 6: 104_880, 7: 111_024, 8: 188_992, 9: 197_184}


@pytest.mark.parametrize(("name", "rows"), [("mobilenet", MOBILENET), ("shufflenet", SHUFFLENET), ("pvanet", PVANET)])
def test_rows_of_the_papers_tables(name, rows):
    """Weights (without biases and norms) and multiplications, row by row."""
    net = find("nets", name)()
    with torch.device("meta"):
        model = net.build().eval()
        seen = {}
        for path in rows:
            model.get_submodule(path).register_forward_pre_hook(
                lambda module, args, path=path: seen.setdefault(path, args)
            )
        model(torch.empty(1, 3, 224, 224))
    for path, (weights, macs) in rows.items():
        module = model.get_submodule(path)
        found = sum(p.numel() for p in module.parameters() if p.ndim > 1)
        assert (found, counts(module, seen[path]).macs) == (weights, macs), path


def test_pvanet_s_scales_and_biases():
    model = find("nets", "pvanet")(head="none").build()
    biases = [p.numel() for name, p in model.named_parameters() if "proj.0.bias" in name]
    assert biases == [64, 128, 256, 384]
    assert sum(p.numel() for p in model.parameters() if p.ndim == 1) - sum(biases) == 17_424


def test_fires_of_squeezenet():
    model = find("nets", "squeezenet")().build()
    assert {n: sum(p.numel() for p in getattr(model, f"fire{n}").parameters()) for n in FIRE} == FIRE
    assert sum(p.numel() for p in model.conv1.parameters()) == 14_208
    assert sum(p.numel() for p in model.conv10.parameters()) == 513_000
    later = find("nets", "squeezenet")("1.1").build()
    assert sum(p.numel() for p in later.fire2.parameters()) == 11_408


def test_counts_by_hand():
    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 6, (3, 1), 2, 1, groups=2), torch.nn.Flatten(), torch.nn.Linear(54, 5)
    )
    found = counts(model.train(), torch.rand(1, 4, 5, 4))
    # (5 + 2 - 3) // 2 + 1 = 3 rows, (4 + 2 - 1) // 2 + 1 = 3 columns, 2 inputs a group, a window of 3.
    assert model.training
    assert found.macs == 6 * 2 * 3 * 3 * 3 + 54 * 5
    assert found.parameters == 6 * 2 * 3 + 6 + 54 * 5 + 5
