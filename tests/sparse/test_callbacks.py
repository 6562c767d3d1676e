"""Schedules in Lightning's and Hugging Face's own trainers."""

import importlib
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sparseq import Layer, Plan, Unstructured, prepare, testing
from sparseq.sparse import PruningSchedule, lightning_callback, masks_of, transformers_callback

pytestmark = pytest.mark.filterwarnings("ignore")  # of the trainers, about their own affairs
X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 2))
    return prepare(model, Plan({"*": Layer(sparsity=Unstructured(0.75))}))


def fit_with_lightning(folder, epochs, every, resume=None, watch=None):
    lightning = pytest.importorskip("lightning.pytorch", reason="needs lightning")

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = network()

        def training_step(self, batch, index):
            if watch is not None:
                watch.append((self.current_epoch, index, schedule.sparsity))
            return self.model(batch).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    module = Module()
    schedule = PruningSchedule(module, 4, "linear")
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=[lightning_callback(schedule, every)],
    )
    loader = torch.utils.data.DataLoader(X, batch_size=10)
    trainer.fit(module, loader, ckpt_path=resume)
    trainer.save_checkpoint(folder / f"{epochs}.ckpt", weights_only=False)
    return module, schedule


def shares(taken):
    return [round(0.75 * t / 4 * 80) / 80 for t in taken]


def test_lightning_prunes_before_each_epoch(tmp_path):
    watch = []
    _, schedule = fit_with_lightning(tmp_path, 5, None, watch=watch)
    assert schedule.done
    assert [s for _, index, s in watch if index == 0] == shares([1, 2, 3, 4, 4])


def test_lightning_prunes_every_so_many_steps(tmp_path):
    watch = []
    fit_with_lightning(tmp_path, 2, 3, watch=watch)
    assert [s for *_, s in watch] == shares([0, 0, 0, 1, 1, 1, 2, 2])


def test_lightning_resumes(tmp_path):
    through, _ = fit_with_lightning(tmp_path, 3, None)
    fit_with_lightning(tmp_path, 2, None)
    watch = []
    resumed, schedule = fit_with_lightning(tmp_path, 3, None, tmp_path / "2.ckpt", watch)
    assert [s for *_, s in watch] == shares([3] * 4) and schedule.taken == 3
    for key, value in through.state_dict().items():
        testing.assert_equal(resumed.state_dict()[key], value)


def fit_with_transformers(folder, epochs, every, resume=None, watch=None):
    transformers = pytest.importorskip("transformers", reason="needs transformers")
    pytest.importorskip("accelerate", reason="transformers' Trainer needs accelerate")

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = network()

        def forward(self, x, labels):
            if watch is not None:
                watch.append(schedule.sparsity)
            logits = self.model(x)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    module = Module()
    schedule = PruningSchedule(module, 4, "linear")
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=epochs,
        per_device_train_batch_size=10,
        save_strategy="epoch",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        seed=0,
    )
    trainer = transformers.Trainer(
        model=module,
        args=arguments,
        train_dataset=[{"x": x, "labels": i % 2} for i, x in enumerate(X)],
        callbacks=[transformers_callback(schedule, every)],
    )
    taken, step = [], schedule.step
    schedule.step = lambda: taken.append(step())
    trainer.train(resume_from_checkpoint=resume)
    schedule.calls = len(taken)
    return module, schedule


def test_transformers_prunes_before_each_epoch(tmp_path):
    watch = []
    _, schedule = fit_with_transformers(tmp_path, 5, None, watch=watch)
    assert schedule.done and watch[::4] == shares([1, 2, 3, 4, 4])


def test_transformers_prunes_every_so_many_steps(tmp_path):
    watch = []
    fit_with_transformers(tmp_path, 2, 3, watch=watch)
    assert watch == shares([0, 0, 0, 1, 1, 1, 2, 2])


@pytest.mark.parametrize(("every", "taken", "calls"), [(None, 3, 1), (2, 4, 0)])
def test_transformers_resumes(every, taken, calls, tmp_path):
    through, _ = fit_with_transformers(tmp_path / "through", 3, every)
    fit_with_transformers(tmp_path / "cut", 2, every)
    watch = []
    checkpoint = str(tmp_path / "cut" / "checkpoint-8")
    resumed, schedule = fit_with_transformers(tmp_path / "cut", 3, every, checkpoint, watch)
    assert len(watch) == 4 and schedule.taken == taken and schedule.calls == calls
    for key, value in through.state_dict().items():
        testing.assert_equal(resumed.state_dict()[key], value)
    assert [int((~m.mask).sum()) for m, _ in masks_of(resumed)] == [
        int((~m.mask).sum()) for m, _ in masks_of(through)
    ]


@pytest.mark.parametrize(
    ("make", "packages"),
    [
        (lightning_callback, ("lightning", "pytorch_lightning")),
        (transformers_callback, ("transformers",)),
    ],
)
def test_absent_packages_and_bad_arguments(make, packages, monkeypatch):
    schedule = PruningSchedule(network(), 2)
    with pytest.raises(TypeError, match="schedule must be a PruningSchedule, got int"):
        make(3)
    for every in (0, True, 1.5):
        with pytest.raises(ValueError, match="every must be a number of optimizer steps"):
            make(schedule, every)
    found = importlib.import_module

    def absent(name, package=None):
        if name.split(".")[0] in packages:
            raise ModuleNotFoundError(name)
        return found(name, package)

    monkeypatch.setattr(importlib, "import_module", absent)
    for name in packages:
        monkeypatch.setitem(sys.modules, name, None)
    with (
        warnings.catch_warnings(),
        pytest.raises(ModuleNotFoundError, match=rf"pip install 'sparseq\[{packages[0]}\]'"),
    ):
        make(schedule)
