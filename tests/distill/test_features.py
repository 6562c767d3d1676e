"""A loss with terms in a training loop: names, hooks, wrappers, mixed precision."""

import copy
import gc
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import sparseq
from sparseq import Layer, Plan, Quant, distill
from sparseq.distill import AttentionTransfer, Hint, Loss, Relational


class Net(nn.Module):
    def __init__(self, width, checkpointed=False):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(width, 5)
        self.checkpointed = checkpointed

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        x = checkpoint(self.body, x, use_reentrant=False) if self.checkpointed else self.body(x)
        return self.head(x.mean((2, 3)))


X, LABELS = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 5


def terms():
    return [
        Hint({"body": "body"}, weight=2.0),
        AttentionTransfer({"norm": "norm"}, weight=3.0),
        Relational({"head": "head"}, weight=0.5),
    ]


def hooks(model):
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


@pytest.fixture
def pair():
    return Net(4), Net(6)


def features(model, name):
    """What a layer gives, found by a hook of this test's own."""
    found = []
    handle = model.get_submodule(name).register_forward_hook(
        lambda m, a, output: found.append(output.clone())
    )
    logits = model(X)
    handle.remove()
    return logits, found[0]


def test_value_is_the_sum_of_its_parts(pair):
    student, teacher = pair
    loss = Loss(teacher, 3.0, 0.4, terms=terms(), student=student, example=X[:1])
    got = loss(student(X), LABELS, X)
    expected = distill.kd_loss(student(X), teacher(X), LABELS, 3.0, 0.4)
    layers = zip(loss.terms, ("body", "norm", "head"), (2.0, 3.0, 0.5), strict=True)
    values = {}
    for term, name, weight in layers:
        values[name] = term([(features(student, name)[1], features(teacher, name)[1])])
        expected = expected + weight * values[name]
    torch.testing.assert_close(got, expected)
    assert list(loss.parts) == ["hard", "soft", "Hint 0", "AttentionTransfer 1", "Relational 2"]
    torch.testing.assert_close(loss.parts["Relational 2"], values["head"].detach())
    assert not any(part.requires_grad for part in loss.parts.values())


def test_projections_are_the_losss_parameters_and_learn(pair):
    student, teacher = pair
    loss = Loss(teacher, terms=terms(), student=student, example=X)
    names = [name for name, _ in loss.named_parameters()]
    assert names == ["terms.0.projections.0.weight", "terms.0.projections.0.bias"]
    assert set(loss.state_dict()) == set(names)
    assert not any("projections" in name for name, _ in student.named_parameters())
    optimizer = torch.optim.SGD([*student.parameters(), *loss.parameters()], 0.05)
    values = []
    before = [p.detach().clone() for p in loss.parameters()]
    for _ in range(100):
        value = loss(student(X), LABELS, X)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(loss.parts["Hint 0"].item())
    assert values[-1] < 0.7 * values[0]
    assert all(not torch.equal(a, b) for a, b in zip(before, loss.parameters(), strict=True))


def test_example_changes_nothing_in_the_networks(pair):
    student, teacher = pair
    states = [copy.deepcopy(m.state_dict()) for m in pair]
    student.train()
    student.norm.eval()
    Loss(teacher, terms=terms(), student=student, example=X)
    assert student.training and not student.norm.training
    for model, state in zip(pair, states, strict=True):
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), name


def test_an_inplace_relu_does_not_reach_what_was_noted(pair):
    student, teacher = pair
    term = Hint({"norm": "norm"}, projection="always")
    loss = Loss(teacher, terms=[term], student=student, example=X)
    _, noted = features(student, "norm")
    assert (noted < 0).any()  # what the in-place ReLU behind it would have made 0
    loss(student(X), LABELS, X)
    wanted = term([(noted, features(teacher, "norm")[1])])
    torch.testing.assert_close(loss.parts["Hint 0"], wanted.detach())


def test_unknown_names_are_one_error_with_near_matches(pair):
    student, teacher = pair
    wrong = [Hint({"bodi": "body", "norm": "nrm"}), AttentionTransfer({"bodi": "zzzz"})]
    with pytest.raises(ValueError) as error:
        Loss(teacher, terms=wrong, student=student, example=X)
    text = str(error.value)
    assert text.startswith("Loss: terms must name layers that exist, got ")
    assert text.count("student's 'bodi' (near: 'body'") == 1
    assert "teacher's 'nrm' (near: 'norm'" in text
    assert "teacher's 'zzzz' (nothing near; it has stem, norm, relu" in text
    assert hooks(student) == hooks(teacher) == 0


def test_arguments_that_do_not_go_together(pair, tmp_path):
    student, teacher = pair
    with pytest.raises(ValueError, match="student must be given with terms, got None"):
        Loss(teacher, terms=terms())
    with pytest.raises(ValueError, match="example must be given: Hint makes its projections"):
        Loss(teacher, terms=terms(), student=student)
    with pytest.raises(ValueError, match="teacher must be from 0 to 0, got 1"):
        Loss(teacher, terms=[Hint({"body": "body"}, teacher=1)], student=student, example=X)
    with pytest.raises(ValueError, match="student must be another network"):
        Loss(teacher, terms=terms(), student=teacher, example=X)
    with pytest.raises(TypeError, match=r"terms must be distill\.Term, got Linear"):
        Loss(teacher, terms=[nn.Linear(2, 2)], student=student)
    with pytest.raises(ValueError, match=r"must not be nn\.DataParallel"):
        Loss(teacher, terms=terms(), student=nn.DataParallel(student), example=X)
    cache = distill.CachedLogits.write(tmp_path / "t", teacher, [(torch.arange(6), X)])
    with pytest.raises(ValueError, match=r"Hint needs the teacher itself .* got cached logits"):
        Loss(cache, terms=terms(), student=student, example=X)
    assert hooks(student) == hooks(teacher) == 0


def test_hooks_go_with_close_with_the_block_and_with_the_loss(pair):
    student, teacher = pair
    with Loss(teacher, terms=terms(), student=student, example=X) as loss:
        assert hooks(student) == hooks(teacher) == 4
    assert hooks(student) == hooks(teacher) == 0
    with pytest.raises(RuntimeError, match=r"removed by close\(\)"):
        loss(student(X), LABELS, X)
    loss = Loss(teacher, terms=terms(), student=student, example=X)
    loss(student(X), LABELS, X).backward()
    del loss
    gc.collect()
    assert hooks(student) == hooks(teacher) == 0


def test_hooks_go_where_the_example_does_not_fit(pair):
    student, teacher = pair
    with pytest.raises(ValueError, match="Hint: 'body' and 'head' must give as many dimensions"):
        Loss(teacher, terms=[Hint({"body": "head"})], student=student, example=X)
    with pytest.raises(RuntimeError):
        Loss(teacher, terms=terms(), student=student, example=X[:, :2])
    assert hooks(student) == hooks(teacher) == 0


def test_student_must_run_before_each_call(pair):
    student, teacher = pair
    loss = Loss(teacher, terms=terms(), student=student, example=X)
    logits = student(X)
    loss(logits, LABELS, X)
    with pytest.raises(RuntimeError, match="student's 'body' has not run since the last call"):
        loss(logits, LABELS, X)


def test_passes_between_calls_leave_nothing(pair):
    student, teacher = pair
    loss = Loss(teacher, terms=terms(), student=student, example=X)
    expected = loss(student(X), LABELS, X)
    with torch.no_grad():
        student(X[:2])  # an evaluation
    torch.testing.assert_close(loss(student(X), LABELS, X), expected)


def test_a_layer_that_runs_twice_is_an_error():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(self.layer(x))

    student = Twice()
    loss = Loss(Twice(), terms=[Relational({"layer": "layer"})], student=student)
    with pytest.raises(RuntimeError, match="student's 'layer' ran 2 times in one forward pass"):
        loss(student(torch.randn(3, 4)), torch.tensor([0, 1, 2]), torch.randn(3, 4))


def test_frozen_layers_are_an_error_in_training_only(pair):
    student, teacher = pair
    student.stem.requires_grad_(False)
    loss = Loss(teacher, terms=[Hint({"stem": "stem"})], student=student, example=X)
    with pytest.raises(RuntimeError, match="Hint: the student's 'stem' gave no gradient"):
        loss(student(X), LABELS, X)
    with torch.no_grad():
        assert loss(student(X), LABELS, X).isfinite()


def test_copies_and_pickles_of_the_student_have_no_part_in_it(pair):
    student, teacher = pair
    loss = Loss(teacher, terms=terms(), student=student, example=X)
    expected = loss(student(X), LABELS, X)
    logits = student(X)
    copy.deepcopy(student)(X[:2])
    pickle.loads(pickle.dumps(student))(X[:2])
    torch.testing.assert_close(loss(logits, LABELS, X), expected)


def gradients(model):
    return [p.grad.clone() for p in model.parameters()]


def step(loss, network, student):
    student.zero_grad()
    value = loss(network(X), LABELS, X)
    value.backward()
    return value.detach(), gradients(student)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_student_and_teacher(pair):
    student, teacher = pair
    with Loss(teacher, terms=terms(), student=student, example=X) as loss:
        state = copy.deepcopy(loss.state_dict())
        value, wanted = step(loss, student, student)
    fast, slow = (torch.compile(m, backend="aot_eager", fullgraph=True) for m in pair)
    loss = Loss(slow, terms=terms(), student=fast, example=X)
    loss.load_state_dict(state)
    for _ in range(2):
        got, found = step(loss, fast, student)
        torch.testing.assert_close(got, value)
        for a, b in zip(found, wanted, strict=True):
            torch.testing.assert_close(a, b)


def test_checkpointed_student(pair):
    student, teacher = pair
    value, wanted = step(Loss(teacher, terms=terms()[1:], student=student), student, student)
    again = Net(4, checkpointed=True)
    again.load_state_dict(student.state_dict())
    loss = Loss(teacher, terms=[*terms()[1:], Relational({"body": "body"}, 0.0)], student=again)
    got, found = step(loss, again, again)
    torch.testing.assert_close(got, value)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(RuntimeError, match="has not run since"):  # the repeated pass is not noted
        loss(again.head(torch.zeros(6, 4)), LABELS, X)


def test_autocast(pair):
    student, teacher = pair
    loss = Loss(teacher, terms=terms(), student=student, example=X)
    wanted, exact = step(loss, student, student)
    student.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(student(X), LABELS, X)
    value.backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.detach(), wanted, rtol=0.05, atol=0.05)
    for a, b in zip(gradients(student), exact, strict=True):
        assert (a - b).norm() <= 0.1 * b.norm() + 0.02


def test_terms_on_the_second_of_two_teachers(pair):
    student, teacher = pair
    other = Net(4)
    term = AttentionTransfer({"body": "body"}, teacher=1)
    loss = Loss([teacher, other], terms=[term], student=student)
    loss(student(X), LABELS, X)
    wanted = distill.attention_loss(features(student, "body")[1], features(other, "body")[1])
    torch.testing.assert_close(loss.parts["AttentionTransfer 0"], wanted.detach())
    assert hooks(teacher) == 0


def test_inputs_by_name_and_logits_by_name():
    class Output:
        def __init__(self, logits):
            self.logits = logits

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, *, pixels, scale):
            return Output(self.layer(pixels) * scale)

    inputs = {"pixels": torch.randn(5, 4), "scale": 2.0}
    student, teacher = Named(), Named()
    labels = torch.tensor([0, 1, 2, 0, 1])
    loss = Loss(teacher, terms=[Hint({"layer": "layer"})], student=student, example=inputs)
    got = loss(student(**inputs).logits, labels, inputs)
    logits = student(**inputs).logits, teacher(**inputs).logits
    expected = distill.kd_loss(*logits, labels) + nn.functional.mse_loss(
        logits[0] / 2, logits[1] / 2
    )
    torch.testing.assert_close(got, expected)
    with pytest.raises(TypeError, match=r"must give logits, .* got tuple"):
        Loss(nn.LSTM(3, 3))(torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(2, 3))


def test_a_prepared_student_learns_with_terms(pair):
    student, teacher = pair
    sparseq.prepare(student, Plan({"*": Layer(Quant(axis=0), Quant(symmetric=False))}))
    sparseq.calibrate(student, [X])
    loss = Loss(teacher, terms=terms(), student=student, example=X)
    value, found = step(loss, student, student)
    assert value.isfinite() and all(g.isfinite().all() for g in found)
    fast = sparseq.convert(student)
    assert fast(X).shape == (6, 5) and hooks(teacher) == 4
