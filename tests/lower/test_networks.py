"""Whole networks: every integer layer is in a program, and rounding stays small."""

import pytest
import torch
import torchvision
from torch import nn

from sparseq import explain
from sparseq.lower import layerwise
from tests.lower.lowering import assert_all_in_programs, lowered, relative, settle

models = torchvision.models


def encoder(norm_first=False, **more):
    layer = nn.TransformerEncoderLayer(
        32, 4, 64, batch_first=True, activation="gelu", norm_first=norm_first, **more
    )
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def vit():
    made = models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=10)
    nn.init.normal_(made.heads.head.weight, std=0.1)
    return made


# what it is, an input, programs, and how much rounding may add beside the layers' own error
NETWORKS = {
    "resnet18": (lambda: models.resnet18(), (2, 3, 64, 64), 1, 1.5),
    "resnet50": (lambda: models.resnet50(), (2, 3, 64, 64), 1, 1.5),
    "mobilenet_v2": (lambda: models.mobilenet_v2(), (2, 3, 64, 64), 1, 1.5),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(), (2, 3, 64, 64), 1, 1.5),
    "vgg11": (lambda: models.vgg11(num_classes=10), (1, 3, 32, 32), 1, 1e-6),
    "densenet121": (lambda: models.densenet121(), (2, 3, 64, 64), 1, 0.1),
    "efficientnet_b0": (lambda: models.efficientnet_b0(), (2, 3, 64, 64), 1, 1.5),
    "convnext_tiny": (lambda: models.convnext_tiny(), (2, 3, 64, 64), 1, 2.0),
    "squeezenet": (lambda: models.squeezenet1_1(), (2, 3, 64, 64), 1, 0.1),
    "vit": (vit, (2, 3, 32, 32), 3, 0.1),
    "encoder": (encoder, (2, 7, 32), 1, 0.1),
    "encoder, norms first": (lambda: encoder(norm_first=True), (2, 7, 32), 1, 0.1),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_runs_in_a_program(name):
    make, shape, programs, bound = NETWORKS[name]
    x = torch.randn(shape)
    net = make()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    settle(net, x)
    with torch.no_grad():
        wanted = net(x)
    fast = lowered(net, x)
    assert_all_in_programs(fast)
    assert len(fast.assembled.programs) == programs
    with torch.inference_mode():
        y, by_layers = fast(x), layerwise(fast)(x)
        more = fast(torch.cat([x, x[:1]]))
    assert relative(y, by_layers) <= bound * relative(by_layers, wanted)
    assert torch.equal(more[: len(y)], y) or programs > 1  # torch's attention may sum otherwise
    torch.testing.assert_close(more[: len(y)], y, rtol=1e-3, atol=1e-2)


def test_any_image_size():
    fast = lowered(settle(models.resnet18(), torch.randn(2, 3, 64, 64)), torch.randn(2, 3, 64, 64))
    with torch.inference_mode():
        for size in ((1, 3, 96, 64), (3, 3, 33, 47)):
            x = torch.randn(size)
            assert relative(fast(x), layerwise(fast)(x)) < 0.1


def test_timms_networks():
    timm = pytest.importorskip("timm")
    for name in ("convnext_atto", "vit_tiny_patch16_224"):
        size = {"img_size": 32} if "vit" in name else {}
        net = timm.create_model(name, pretrained=False, num_classes=10, **size)
        fast = lowered(net, torch.randn(2, 3, 32, 32))
        assert_all_in_programs(fast)


def test_bert():
    """Of the transformers package: every linear layer, at other lengths than the example's too."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
        vocab_size=50, attn_implementation="sdpa",
    )  # fmt: skip
    ids = torch.randint(0, 50, (2, 9))
    fast = lowered(transformers.BertModel(config), ids)
    rows = [row for row in explain(fast).rows if row.kind == "SparseQuantLinear"]
    assert len(rows) == 13 and all(row.program for row in rows)
    with torch.inference_mode():
        for other in (ids, torch.randint(0, 50, (3, 9)), torch.randint(0, 50, (1, 5))):
            y, by_layers = fast(other), layerwise(fast)(other)
            for key in ("last_hidden_state", "pooler_output"):
                assert relative(y[key], by_layers[key]) < 0.03
