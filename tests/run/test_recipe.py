from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparseq.run import models, recipe_file
from sparseq.run.folder import Stage, stages_of
from sparseq.run.recipe import LETTERS, Recipe, chain_of

POSITIVE = st.floats(1e-6, 1e6)
TRAINING = {
    "epochs": st.integers(1, 500),
    "rate": POSITIVE,
    "batch": st.integers(1, 4096),
    "schedule": st.sampled_from(["one_cycle", "cosine"]),
    "momentum": st.floats(0, 0.999),
    "weight_decay": st.floats(0, 1),
}
NAMES = ["Q", "P", "S", "D", "Q+P", "Q+S", "P+D", "Q+P+D", "Q+S+D", "QP", "PD", "QDP", "SD"]


@st.composite
def recipes(draw):
    order = "".join(draw(st.permutations(LETTERS)))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True))
    chains = {chain_of(name, order): name for name in names}  # each chain under one name
    prune = {"curve": st.sampled_from(["cubic", "linear", "geometric"])}
    prune |= {"sparsity": st.floats(0, 0.99), "steps": st.none() | st.integers(1, 1)}
    distil = {"temperature": POSITIVE, "alpha": st.floats(0, 1)}
    quantise = {"calibration": st.integers(1, 99), "symmetric": st.booleans()}
    parts = {
        "train": TRAINING,
        "distil": TRAINING | distil,
        "prune": TRAINING | prune,
        "sparse24": TRAINING,
        "quantise": TRAINING | quantise,
    }
    chosen = draw(st.sets(st.sampled_from(sorted(parts))))
    content = {
        name: draw(st.fixed_dictionaries({}, optional=parts[name])) for name in sorted(chosen)
    }
    text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1)
    content |= draw(
        st.fixed_dictionaries(
            {},
            optional={
                "name": text,
                "data": text,
                "model": st.sampled_from(models.MODELS),
                "seeds": st.lists(st.integers(0, 2**31), min_size=1, unique=True),
                "amp": st.sampled_from(["auto", True, False]),
                "limit": POSITIVE,
                "repeats": st.none() | st.integers(1, 9),
            },
        )
    )
    content |= {"order": order, "variants": list(chains.values())}
    return Recipe.model_validate(content)


@given(recipes())
@settings(max_examples=60)
def test_a_recipe_comes_back_from_yaml(tmp_path_factory, recipe):
    path = tmp_path_factory.getbasetemp() / "round.yaml"
    path.write_text(recipe_file.dump(recipe), "utf-8")
    assert recipe_file.load(path) == recipe


@given(recipes())
@settings(max_examples=60)
def test_stages_come_after_what_they_need_and_once(recipe):
    stages = stages_of(recipe)
    assert len(set(stages)) == len(stages)
    for place, stage in enumerate(stages):
        assert stage.parent is None or stage.parent in stages[:place]
    for seed in recipe.seeds:
        assert {Stage(seed, chain) for chain in recipe.chains.values()} <= set(stages)
    needed = {c[:end] for c in recipe.chains.values() for end in range(len(c) + 1)}
    assert len(stages) == len(recipe.seeds) * len(needed)


@pytest.mark.parametrize("name", recipe_file.READY)
def test_ready_recipes(name):
    recipe = recipe_file.load(name)
    assert recipe.name == name and next(iter(recipe.chains)) == "baseline"
    assert {"Q", "P", "D", "Q+P", "Q+D", "P+D", "Q+P+D"} <= set(recipe.chains)
    assert recipe.chains["Q+P+D"] in ("DPQ", "PDQ") and recipe.prune.sparsity == 0.8


def test_a_minimal_recipe_is_named_after_its_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("model: resnet18\n")
    assert recipe_file.load(path) == Recipe(name="mine", model="resnet18")


CASES = {
    "a typo": ("model: small\ntrain:\n  epoch: 3", r"bad\.yaml:3: train\.epoch: unknown key "
               r"\(did you mean epochs\?\), allowed: epochs, rate, batch, "),
    "an unknown key": ("zzz: 1", r"bad\.yaml:1: zzz: unknown key, allowed: name, data, "),
    "text": ("train:\n  rate: fast", r"bad\.yaml:2: train\.rate: must be a number, got 'fast'"),
    "a fraction": ("train: {epochs: 1.5}", r"bad\.yaml:1: train\.epochs: must be a whole number"),
    "a bool": ("train: {epochs: yes}", r"train\.epochs: must be a whole number, got True"),
    "too small": ("\n\ntrain: {epochs: 0}", r"bad\.yaml:3: train\.epochs: must be greater than or "
                  "equal to 1, got 0"),
    "not finite": ("train: {rate: .nan}", r"train\.rate: must be .*, got nan"),
    "a word": ("model: vgg", r"bad\.yaml:1: model: must be 'small', 'resnet20', "
               r"'resnet18_quarter' or 'resnet18', got 'vgg'"),
    "no part": ("train: 3", r"bad\.yaml:1: train: must be keys with values, allowed: epochs, "),
    "no list": ("seeds: 3", r"bad\.yaml:1: seeds: must be a list, got 3"),
    "an entry": ("seeds:\n- 1\n- two", r"bad\.yaml:3: seeds\.1: must be a whole number, got 'two'"),
    "a seed twice": ("seeds: [1, 1]", r"bad\.yaml:1: seeds: each seed must be listed once"),
    "a letter": ("variants: [Q,\n X]", r"bad\.yaml:2: variants\.1: must be letters of D, P, S and"),
    "a mixture": ("variants: [Q+PD]", r"'Q\+PD' must have a \+ between all of its letters, or non"),
    "two masks": ("variants: [P+S]", r"'P\+S' must have P or S, not both"),
    "a letter twice": ("variants: [Q+Q]", r"'Q\+Q' must name each technique once"),
    "one chain twice": ("variants: [Q+P, PQ]", r"'Q\+P' and 'PQ' are the same chain"),
    "an order": ("order: DPQ", r"bad\.yaml:1: order: must be letters of D, P, S and Q, each once"),
    "an order's letters": ("order: DDPQ", r"order: must hold each of D, P, S and Q once"),
    "steps": ("prune: {epochs: 2, steps: 3}", r"bad\.yaml:1: prune: steps must be at most epochs"),
    "no YAML": ("a: [1\nb: 2", r"bad\.yaml:2: must be YAML: "),
    "a key twice": ("model: small\ndata: x\nmodel: small", r"bad\.yaml:3: model: stands twice, "
                    r"first at .*bad\.yaml:1"),
    "no keys": ("- 3", r"bad\.yaml:1: must be keys with values"),
    "an object": ("model: !!python/object:os.system {}", r"bad\.yaml:1: must be YAML: "),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_mistakes_are_told_with_line_key_and_what_is_allowed(tmp_path, case):
    text, message = CASES[case]
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        recipe_file.load(path)
    assert "pydantic" not in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("modell: small\ntrain: {epochs: three}\n")
    with pytest.raises(ValueError, match=r"yaml:2: .*; .*yaml:1: modell: .*did you mean model"):
        recipe_file.load(path)


def test_no_recipe(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nix is not a file, nor .*cifar10-quick.*digits"):
        recipe_file.load("nix")
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9")
    with pytest.raises(ValueError, match=r"latin\.yaml: must be text in UTF-8"):
        recipe_file.load(path)


def test_overrides():
    changes = ["train.epochs=3", "seeds=[1, 2]", "train.rate=1e-3", "train.epochs=4", "amp=false"]
    recipe = recipe_file.load("digits", [*changes, f"data={recipe_file.quoted('1: x')}"])
    assert recipe.train.epochs == 4 and recipe.train.rate == 1e-3 and recipe.train.batch == 64
    assert recipe.seeds == (1, 2) and recipe.amp is False and recipe.data == "1: x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.epoch=3", r"^--set train\.epoch: train\.epoch: unknown key \(did you mean epochs"),
        ("train.epochs=x", r"^--set train\.epochs: train\.epochs: must be a whole number, got 'x'"),
        ("train.epochs.x=1", r"train\.epochs: must be a whole number"),
        ("epochs", r"--set: must be KEY=VALUE, such as train\.epochs=3, got 'epochs'"),
        ("model=[", r"--set model=\[: the value must be YAML"),
    ],
)
def test_overrides_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        recipe_file.load("digits", [change])


def test_nothing_changes_later():
    with pytest.raises(ValueError, match="frozen"):
        Recipe().model = "resnet18"


def test_the_readme_s_recipe_is_one(tmp_path):
    text = (Path(__file__).parents[2] / "README.md").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(text.partition("```yaml\n")[2].partition("```")[0])
    recipe = recipe_file.load(path)
    assert recipe.chains["Q+P"] == "PQ" and recipe.chains["QP"] == "QP"
