import pytest
import torch

from sparseq.run import models


@pytest.mark.parametrize("name", models.MODELS)
def test_student_has_at_most_a_quarter_of_the_parameters(name):
    teacher, student = (models.build(name, 3, 10, student=s) for s in (False, True))
    assert 0 < models.parameters(student) <= models.parameters(teacher) / 4


@pytest.mark.parametrize("student", [False, True])
@pytest.mark.parametrize(("name", "size"), [("small", 8), *((name, 32) for name in models.MODELS)])
def test_shapes(name, size, student):
    model = models.build(name, 1, 7, student=student).eval()
    assert model(torch.randn(2, 1, size, size)).shape == (2, 7)


def test_parameters_by_hand():
    # stem 1*4*9 + bn 8, one block 2 * (4*4*9 + bn 8), fc 4*3 + 3
    model = models.ResNet(1, 3, width=4, depth=1, stages=1)
    assert models.parameters(model) == 36 + 8 + 2 * (144 + 8) + 15


def test_frozen_parameters_count():
    model = models.ResNet(1, 3, width=4, depth=1, stages=1)
    count = models.parameters(model)
    assert models.parameters(model.requires_grad_(False)) == count


def test_resnet18_keeps_its_resolution_for_small_images():
    model = models.build("resnet18", 3, 10)
    seen = []
    model.layer1.register_forward_hook(lambda *a: seen.append(a[-1].shape))
    model.eval()(torch.zeros(1, 3, 32, 32))
    assert seen == [(1, 64, 32, 32)]


def test_errors_name_the_argument():
    with pytest.raises(
        ValueError, match=r"model: must be one of small, resnet20, .*resnet18, got 'vgg'"
    ):
        models.build("vgg", 3, 10)
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        models.ResNet(3, 10, width=0)


def test_resnet20_is_the_paper_s():
    model = models.build("resnet20", 3, 10)
    layers = [m for m in model.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    assert sum("shortcut" not in n for n, m in model.named_modules() if m in layers) == 20
    assert 0.27e6 < models.parameters(model) < 0.275e6


def test_a_quarter_of_resnet18_is_torchvision_s_but_for_the_width():
    def convolutions(name):
        built = models.build(name, 3, 10).modules()
        return sorted(tuple(m.weight.shape) for m in built if isinstance(m, torch.nn.Conv2d))

    narrow, whole = convolutions("resnet18_quarter"), convolutions("resnet18")
    divided = [(out // 4, inputs if inputs == 3 else inputs // 4, *k) for out, inputs, *k in whole]
    assert narrow == sorted(divided)
