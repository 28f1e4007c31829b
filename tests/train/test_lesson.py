"""Lessons: in `fit`, in a loop of one's own, with teachers of every sort; and what is refused."""

import copy
import re

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

import lilliput
from lilliput.core.errors import DataError, FileError, LilliputError, ModelError
from lilliput.distill.attention import Attention
from lilliput.distill.hints import Hints
from lilliput.distill.logits import Logits
from lilliput.distill.relation import Relation
from lilliput.nets.lenet import LeNet
from lilliput.nets.resnet import ResNet
from lilliput.train.fit import FitOptions
from lilliput.train.lesson import Lesson
from lilliput.train.teacher import CachedLogits

GROUPS = ("layer1", "layer2", "layer3")


def small(seed=0, width=0.25, classes=4):
    torch.manual_seed(seed)
    return ResNet(8, "cifar", width, num_classes=classes, channels=1, size=8).build()


def batches(count=3, size=8):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count * size, 1, 8, 8, generator=generator)
    y = torch.randint(4, (count * size,), generator=generator)
    return [(x[i : i + size], y[i : i + size]) for i in range(0, count * size, size)]


ALL = [Logits(), Attention(GROUPS), Hints(("layer2",)), Relation(), Attention(form="gradient", weight=0.1)]


def test_the_sum_of_losses_is_what_each_gives_alone():
    student, teacher = small().eval(), small(1, 0.5)
    x, y = batches(1)[0]
    together = Lesson(student, teacher, ALL, example=x)(x, y)
    alone = [Lesson(student, teacher, loss, example=x)(x, y) for loss in ALL]
    assert float(together) == pytest.approx(sum(map(float, alone)), rel=1e-5)
    assert float(alone[0]) == pytest.approx(float(Logits().loss(student(x), teacher.eval()(x), y)), rel=1e-5)


def test_attention_is_of_the_layers_that_are_named():
    student, teacher = small().eval(), small(1, 0.5).eval()
    x, _ = batches(1)[0]
    own, theirs = student.relu(student.bn1(student.conv1(x))), teacher.relu(teacher.bn1(teacher.conv1(x)))
    expected = 0.0
    for name in GROUPS:
        own, theirs = getattr(student, name)(own), getattr(teacher, name)(theirs)
        expected += float(Attention(GROUPS).between(own, theirs))
    assert float(Lesson(student, teacher, Attention(GROUPS))(x)) == pytest.approx(expected, rel=1e-5)


def test_a_loop_of_one_s_own_leaves_both_models_as_they_are():
    student, teacher = small(), small(1, 0.5)
    before = copy.deepcopy(teacher.state_dict())
    lesson = Lesson(student, teacher, ALL, example=batches(1)[0][0])
    assert sum(p.numel() for p in lesson.parameters()) == 8 * 16 + 16
    optimizer = torch.optim.Adam([*student.parameters(), *lesson.parameters()], 3e-3)
    losses = []
    for _ in range(8):
        for x, y in batches():
            loss = lesson(x, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert lesson.output.shape == (8, 4)
    assert student.training
    assert teacher.training
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None for p in teacher.parameters())
    assert not any(module._forward_hooks for model in (student, teacher) for module in model.modules())
    copy.deepcopy(student)


@pytest.mark.parametrize("loss", ALL, ids=lambda loss: type(loss).__name__ + getattr(loss, "form", ""))
def test_fit_with_each(loss):
    student = small()
    losses = lilliput.fit(student, batches(), epochs=5, loss=loss, teacher=small(1, 0.5))
    assert losses[-1] < losses[0]


def test_fit_trains_regressors_and_goes_on_from_a_checkpoint(tmp_path):
    data, teacher = batches(), small(1, 0.5)
    whole = small()
    straight = lilliput.fit(whole, data, epochs=3, loss=[Logits(), Hints(("layer1",))], teacher=teacher)

    class Killed(Exception):
        pass

    def killed(values, step):
        if step == 5:
            raise Killed

    options = FitOptions(checkpoint=tmp_path / "c", every=1)
    broken = small()
    with pytest.raises(Killed):
        lilliput.fit(
            broken, data, epochs=3, loss=[Logits(), Hints(("layer1",))], teacher=teacher,
            options=FitOptions(checkpoint=tmp_path / "c", every=1, log=killed),
        )  # fmt: skip
    again = small(5)
    resumed = lilliput.fit(again, data, epochs=3, loss=[Logits(), Hints(("layer1",))], teacher=teacher, options=options)
    assert resumed == straight
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_a_compressed_copy_is_taught_by_its_original():
    """Recipe and distillation in one run: the file is nearer to the teacher than one that was only compressed."""
    teacher = LeNet("300-100").build()
    x = torch.rand(64, 1, 28, 28)
    data = [(part, teacher(part).argmax(1).detach()) for part in x.split(16)]
    recipe = lilliput.Recipe.loads('[[rule]]\nsteps = [{method = "prune/magnitude", sparsity = 0.95}]\n')
    student = lilliput.attach(copy.deepcopy(teacher), recipe, example=x[:1])
    before = functional.mse_loss(student(x), teacher(x)).item()
    lilliput.fit(student, data, epochs=12, loss=[Logits(weight=1.0), Relation(("fc2",))], teacher=teacher)
    after = functional.mse_loss(lilliput.load(lilliput.pack(student.eval()))(x), teacher(x)).item()
    assert after < 0.5 * before


def test_any_callable_teaches():
    teacher = small(1, 0.5).eval()
    x, y = batches(1)[0]
    by_module = Lesson(small().eval(), teacher)(x, y)
    assert torch.equal(Lesson(small().eval(), lambda pictures: {"logits": teacher(pictures)})(x, y), by_module)


def test_cached_logits_teach_as_the_teacher_does(tmp_path):
    teacher, data = small(1, 0.5), batches()
    cached = CachedLogits.write(tmp_path / "teacher.safetensors", teacher, data)
    assert teacher.training
    models = [small(), small()]
    for model, taught in zip(models, (teacher, CachedLogits(tmp_path / "teacher.safetensors"))):
        lilliput.fit(model, data[::-1], epochs=2, teacher=taught)
    assert all(torch.allclose(v, models[1].state_dict()[k], atol=1e-6) for k, v in models[0].state_dict().items())
    x = data[1][0]
    with torch.no_grad():
        assert torch.allclose(cached(x[[5, 2]]), teacher.eval()(x)[[5, 2]], atol=1e-6)


def test_cached_logits_are_small_and_of_any_inputs(tmp_path):
    def teacher(a, b):
        return torch.stack([a.float(), b.float().sum(1)], 1)

    data = [{"a": torch.arange(4), "b": torch.rand(4, 3), "labels": torch.zeros(4)}]
    cached = CachedLogits.write(tmp_path / "t", teacher, data * 2, torch.float16)
    assert len(cached.places) == 4
    assert cached.logits.dtype == torch.float16
    assert cached(a=data[0]["a"][1:2], b=data[0]["b"][1:2])[0, 0] == 1.0
    assert (tmp_path / "t").stat().st_size < 400


def test_a_cache_says_what_is_wrong(tmp_path):
    path = tmp_path / "t.safetensors"
    cached = CachedLogits.write(path, small(1), batches(1))
    with pytest.raises(DataError, match=r"example 0 of a batch isn't in .*without random augmentation"):
        cached(torch.rand(2, 1, 8, 8))
    with pytest.raises(DataError, match="the data is empty"):
        CachedLogits.write(path, small(1), [])
    with pytest.raises(FileError, match="no file"):
        CachedLogits(tmp_path / "none")
    save_file({"keys": torch.zeros(2, 2)}, path)
    with pytest.raises(FileError, match="no teacher's logits"):
        CachedLogits(path)
    save_file({"keys": torch.zeros(2, 2), "logits": torch.zeros(3, 2)}, path, {"lilliput.teacher": "1"})
    with pytest.raises(FileError, match="don't fit"):
        CachedLogits(path)


X, Y = batches(1)[0]
BAD = {
    "classes": (lambda: Lesson(small(), small(classes=5))(X, Y), r"student gives \(8, 4\), teacher \(8, 5\)"),
    "input size": (
        lambda: Lesson(small(), LeNet("300-100").build())(X, Y),
        r"the teacher can't take the student's inputs \(\(8, 1, 8, 8\)\): mat1",
    ),
    "student's layer": (
        lambda: Lesson(small(), small(), Attention(("layr1",))),
        "the student has no layer 'layr1'; there is layer1",
    ),
    "teacher's layer": (
        lambda: Lesson(small(), small(), Attention(("layer1",), ("stage1",))),
        "the teacher has no layer 'stage1'",
    ),
    "no layers": (lambda: Lesson(small(), small(), Attention()), "distill/attention: name the layers"),
    "pairs": (lambda: Lesson(small(), small(), Hints(("layer1",), GROUPS)), "1 layers of the student and 3 of the"),
    "no example": (lambda: Lesson(small(), small(), Hints(("layer1",))), "give example=, one input"),
    "callable": (lambda: Lesson(small(), lambda x: x, Attention(GROUPS)), "need a teacher that is a module"),
    "no loss": (lambda: Lesson(small(), small(), []), "give losses of distillation"),
    "other loss": (lambda: Lesson(small(), small(), functional.cross_entropy), "give losses of distillation"),
    "no target": (lambda: Lesson(small(), small(), Attention(form="gradient"))(X), "needs targets"),
    "far apart": (
        lambda: Lesson(small(), small(), Hints(("layer3",), ("layer1",)), example=X),
        "can't be taken to the teacher's",
    ),
    "not a map": (lambda: Lesson(small(), small(), Attention(("fc",)))(X, Y), "which is no map"),
}


@pytest.mark.parametrize("name", BAD)
def test_one_clear_line(name):
    function, message = BAD[name]
    with pytest.raises(LilliputError, match=message) as caught:
        function()
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, DataError | ModelError)
    assert not re.search(r"Traceback|torch\.nn", str(caught.value))
