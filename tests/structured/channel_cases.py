"""Networks as cases: random weights, small inputs."""

from itertools import pairwise

import torch
from torch import nn

from sparseq.run.models import ResNet


def settled(model):
    """Batch norms with statistics and scales of their own, so that no channel is like another."""
    generator = torch.Generator().manual_seed(1)

    def random(like):
        return torch.rand(like.shape, generator=generator)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)):
                module.weight.copy_(0.5 + random(module.weight))
                module.bias.copy_(random(module.bias) - 0.5)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(random(module.running_mean) - 0.5)
                module.running_var.copy_(0.5 + random(module.running_var))
    return model.eval()


def torchvision_model(name, **arguments):
    import torchvision

    torch.manual_seed(0)
    return settled(torchvision.models.get_model(name, weights=None, num_classes=10, **arguments))


def timm_model(name, **arguments):
    import timm

    torch.manual_seed(0)
    return settled(timm.create_model(name, pretrained=False, num_classes=10, **arguments))


def vit():
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    model = VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10)
    nn.init.normal_(model.heads.head.weight)  # zero as torchvision makes it
    return settled(model)


def convnext():
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    torch.manual_seed(0)
    blocks = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 2)]
    return settled(ConvNeXt(blocks, num_classes=10, layer_scale=0.5))


def swin():
    from torchvision.models import SwinTransformer

    torch.manual_seed(0)
    return settled(SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=10))


def densenet():
    from torchvision.models import DenseNet

    torch.manual_seed(0)
    return settled(DenseNet(8, (3, 3), 16, num_classes=10))


def vgg():
    from torchvision.models.vgg import VGG, make_layers

    torch.manual_seed(0)
    model = VGG(make_layers([16, "M", 24, 32, "M"], batch_norm=True), num_classes=10)
    model.avgpool = nn.AdaptiveAvgPool2d(3)  # flattened: nine features to a channel
    model.classifier = nn.Sequential(nn.Linear(288, 64), nn.ReLU(), nn.Linear(64, 10))
    return settled(model)


CASES = {  # how to build it, and the side of its images
    "resnet18": (lambda: torchvision_model("resnet18"), 32),
    "resnext50_32x4d": (lambda: torchvision_model("resnext50_32x4d"), 32),
    "mobilenet_v2": (lambda: torchvision_model("mobilenet_v2"), 32),
    "mobilenet_v3_small": (lambda: torchvision_model("mobilenet_v3_small"), 32),
    "densenet121": (lambda: torchvision_model("densenet121"), 32),
    "densenet": (densenet, 32),
    "efficientnet_b0": (lambda: torchvision_model("efficientnet_b0"), 32),
    "vgg": (vgg, 32),
    "regnet_y_400mf": (lambda: torchvision_model("regnet_y_400mf"), 32),
    "vit": (vit, 32),
    "convnext": (convnext, 32),
    "swin": (swin, 32),
    "timm vit": (lambda: timm_model("vit_tiny_patch16_224", img_size=32, depth=2), 32),
    "timm resnet": (lambda: timm_model("resnet10t"), 32),
}


def example(name, batch=1):
    side = CASES[name][1]
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(2))


IMAGE = torch.randn(1, 3, 16, 16)


def resnet20(width=16):
    torch.manual_seed(0)
    return ResNet(3, 10, width=width, depth=3, stages=3).eval()


def mlp(*sizes):
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    return nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())][:-1])
