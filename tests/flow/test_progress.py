import builtins

import pytest
import torch
from torch import nn

from sparseq import Layer, Plan, Quant, calibrate, prepare
from sparseq.flow.outputs import float_leaves, layer_outputs, run_batch
from sparseq.flow.progress import tracked


def model():
    return prepare(nn.Linear(4, 2), Plan({"*": Layer(input=Quant())}))


def batches(count=3):
    return [torch.randn(2, 4) for _ in range(count)]


def test_a_function_is_told():
    told = []
    calibrate(model(), batches(), progress=lambda *news: told.append(news))
    assert told == [("calibrate", done, 3) for done in range(4)]
    told.clear()
    calibrate(model(), iter(batches(2)), progress=lambda *news: told.append(news))
    assert told == [("calibrate", done, None) for done in range(3)]


def test_a_bar_is_shown(capsys):
    calibrate(model(), batches(), progress=True)
    captured = capsys.readouterr()
    assert "calibrate" in captured.err and "3/3" in captured.err and captured.out == ""


def test_a_bar_of_unknown_length(capsys):
    calibrate(model(), iter(batches()), progress=True)
    assert "3/?" in capsys.readouterr().err


def test_without_rich_it_says_what_to_do(monkeypatch):
    known = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("rich"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return known(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ModuleNotFoundError, match="progress=True needs the package rich"):
        calibrate(model(), batches(), progress=True)
    calibrate(model(), batches())


def test_another_progress_is_an_error():
    with pytest.raises(TypeError, match="calibrate: progress must be True, False or a function"):
        list(tracked([1], "yes", "step"))


def test_outputs_are_kept_as_they_were():
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True))
    x = torch.randn(5, 4)
    with layer_outputs(network, ["0"]) as seen:
        network(x)
        network(2 * x)
    assert len(seen["0"]) == 2
    assert torch.equal(seen["0"][0], network[0](x))
    assert not network[0]._forward_hooks
    with pytest.raises(AttributeError), layer_outputs(network, ["0", "9"]):
        pass
    assert not network[0]._forward_hooks


def test_batches_of_all_kinds():
    linear, x = nn.Linear(4, 3), torch.randn(5, 4)
    for batch in (x, (x, 1), [x], {"input": x}):
        assert torch.equal(run_batch("f", linear, batch), linear(x))
    with pytest.raises(TypeError, match=r"f: a batch must be a tensor, .* got int"):
        run_batch("f", linear, 1)
    found = float_leaves({"a": (x, torch.tensor(1)), "b": None})
    assert len(found) == 1 and found[0] is x
