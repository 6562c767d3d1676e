import pytest
import torch

from sparseq.run import data, models, train
from sparseq.run.recipe import Training


@pytest.fixture(scope="session")
def digits():
    """A small trained network, and batches of real digits with labels."""
    images = data.load("digits")
    torch.manual_seed(0)
    model = models.ResNet(1, 10, width=8, depth=1, stages=3)
    train.train(model, images, Training(epochs=4, rate=0.1))
    batches = list(images.test_batches(100))[:3]
    return model, batches
