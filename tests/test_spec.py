import dataclasses
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparseq import NM, Block, Layer, Plan, Quant, Unstructured
from sparseq.spec import CRITERIA, DTYPES

quants = st.builds(
    Quant,
    bits=st.integers(2, 8),
    signed=st.booleans(),
    symmetric=st.booleans(),
    axis=st.none() | st.integers(-3, 3),
    group_size=st.none() | st.integers(1, 128),
    observer=st.sampled_from(("minmax", "moving_average")),
    learned=st.booleans(),
)
inputs = st.builds(
    Quant,
    bits=st.integers(2, 8),
    signed=st.booleans(),
    symmetric=st.booleans(),
    learned=st.booleans(),
)
criteria = st.sampled_from(CRITERIA)
shares = st.floats(0, 1, exclude_max=True)
nms = st.integers(2, 16).flatmap(
    lambda m: (
        st.builds(NM, st.integers(1, m - 1), st.just(m), criteria)
        | st.builds(NM, st.integers(1, m - 1), st.just(m), refined=st.floats(0, 1))
    )
)
scopes = st.sampled_from(("global", "local", "output"))
sizes = st.integers(1, 64)
sparsities = (
    nms
    | st.builds(Unstructured, shares, scopes, criteria)
    | st.builds(Block, sizes, sizes, shares, st.sampled_from(("global", "local")), criteria)
)
layers = st.builds(
    Layer,
    weight=st.none() | quants,
    input=st.none() | inputs,
    sparsity=st.none() | sparsities,
) | st.builds(Layer, sparsity=st.none() | sparsities, dtype=st.sampled_from(DTYPES))
plans = st.builds(Plan, st.dictionaries(st.text(), st.none() | layers, min_size=1))


@given(layers)
def test_layer_round_trip(layer):
    assert Layer.from_dict(json.loads(json.dumps(layer.to_dict()))) == layer


@given(plans)
def test_plan_round_trip(plan):
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert list(again.rules) == list(plan.rules)  # the order says who wins


@given(quants)
def test_quant_range(quant):
    span = quant.quant_max - quant.quant_min
    assert span == 2**quant.bits - 1 - (quant.signed and quant.symmetric)
    assert quant.quant_min <= 0 < quant.quant_max
    assert quant.quant_min >= -128 and quant.quant_max <= (127 if quant.signed else 255)


def test_ranges_by_hand():
    assert (Quant().quant_min, Quant().quant_max) == (-127, 127)
    asymmetric = Quant(symmetric=False)
    assert (asymmetric.quant_min, asymmetric.quant_max) == (-128, 127)
    unsigned = Quant(bits=4, signed=False)
    assert (unsigned.quant_min, unsigned.quant_max) == (0, 15)


def test_group_size_implies_axis_0():
    assert Quant(group_size=32).axis == 0
    assert Quant(group_size=32, axis=1).axis == 1


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: Quant(bits=1), "Quant: bits must be a whole number from 2 to 8, got 1"),
        (lambda: Quant(bits=9), "bits must .* got 9"),
        (lambda: Quant(bits=8.0), "bits must .* got 8.0"),
        (lambda: Quant(bits=True), "bits must .* got True"),
        (lambda: Quant(bits="8"), "bits must .* got '8'"),
        (lambda: Quant(signed=1), "signed must be True or False, got 1"),
        (lambda: Quant(symmetric=None), "symmetric must be True or False, got None"),
        (lambda: Quant(learned="yes"), "learned must be one of .False, True, 'pact'., got 'yes'"),
        (lambda: Quant(axis=1.5), "axis must be an axis or None, got 1.5"),
        (lambda: Quant(axis="rows"), "axis must be an axis or None, got 'rows'"),
        (lambda: Quant(group_size=0), "group_size must be at least 1 or None, got 0"),
        (lambda: Quant(observer="best"), "observer must be one of .*minmax.*, got 'best'"),
        (lambda: NM(4, 4), "NM: n must be from 1 to m - 1 = 3, got 4"),
        (lambda: NM(0, 4), "n must .* got 0"),
        (lambda: NM(1, 1), "m must be a whole number of at least 2, got 1"),
        (lambda: NM(2.0, 4), "n must .* got 2.0"),
        (lambda: Unstructured(1.0), r"Unstructured: sparsity must be in \[0, 1\), got 1.0"),
        (lambda: Unstructured(-0.1), "sparsity must .* got -0.1"),
        (lambda: Unstructured(float("nan")), "sparsity must .* got nan"),
        (lambda: Unstructured("half"), "sparsity must .* got 'half'"),
        (lambda: Unstructured(0.5, "layer"), "scope must be one of .* got 'layer'"),
        (lambda: Unstructured(criterion="best"), "Unstructured: criterion must be one of .*'best'"),
        (lambda: NM(criterion=None), "NM: criterion must be one of .* got None"),
        (lambda: NM(refined=-1), "NM: refined must be at least 0, got -1"),
        (lambda: NM(refined=True), "refined must be at least 0, got True"),
        (lambda: NM(refined=float("nan")), "refined must be at least 0, got nan"),
        (lambda: NM(refined=1e-4, criterion="snip"), "\"magnitude\" with refined, got 'snip'"),
        (lambda: Block(0, 4), "Block: rows must be a whole number of at least 1, got 0"),
        (lambda: Block(4, 2.0), "Block: columns must .* got 2.0"),
        (lambda: Block(4, 4, 1.0), r"Block: sparsity must be in \[0, 1\), got 1.0"),
        (lambda: Block(4, 4, scope="output"), "Block: scope must be one of .* got 'output'"),
        (lambda: Block(4, 4, criterion="L1"), "Block: criterion must be one of .* got 'L1'"),
        (lambda: Layer(weight=8), "Layer: weight must be a Quant or None, got 8"),
        (lambda: Layer(input=NM(2, 4)), "input must be a Quant or None, got NM"),
        (lambda: Layer(sparsity=0.5), "sparsity must be NM, Unstructured, Block or None, got 0.5"),
        (lambda: Layer(input=Quant(axis=0)), "input must be per tensor"),
        (lambda: Layer(input=Quant(group_size=8)), "input must be per tensor"),
        (
            lambda: Layer(dtype="half"),
            r"dtype must be one of \('float16', 'bfloat16', 'float32'\) or None, got 'half'",
        ),
        (lambda: Layer(dtype=16), "Layer: dtype must be one of .* got 16"),
        (
            lambda: Layer(weight=Quant(), dtype="float16"),
            "Layer: dtype must be None where weight or input is quantised, got 'float16'",
        ),
        (lambda: Layer(input=Quant(), dtype="float32"), "dtype must be None where"),
        (lambda: Plan({}), "Plan: rules must be a mapping with at least one pattern"),
        (lambda: Plan(None), "rules must be a mapping"),
        (lambda: Plan([("*", None)]), "rules must be a mapping"),
        (lambda: Plan({1: None}), "pattern must be a string, got 1"),
        (lambda: Plan({"fc": Quant()}), "fc must be a Layer or None, got Quant"),
    ],
)
def test_bad_values_are_named(build, text):
    with pytest.raises(ValueError, match=text):
        build()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "5",
        "{}",
        '{"version": 1}',
        '{"version": 1, "rules": []}',
        '{"version": 1, "rules": {}}',
        '{"version": 2, "rules": {"*": null}}',
        '{"rules": {"*": null}}',
        '{"version": 1, "rules": {"*": 5}}',
        '{"version": 1, "rules": {"*": ["weight"]}}',
        '{"version": 1, "rules": {"*": {"bias": null}}}',
        '{"version": 1, "rules": {"*": {"weight": null}}}',
        '{"version": 1, "rules": {"*": {"dtype": null}}}',
        '{"version": 1, "rules": {"*": {"dtype": "int8"}}}',
        '{"version": 1, "rules": {"*": {"dtype": ["float16"]}}}',
        '{"version": 1, "rules": {"*": {"weight": {"bits": 8}}}}',
        '{"version": 1, "rules": {"*": {"weight": {"type": "Thing"}}}}',
        '{"version": 1, "rules": {"*": {"weight": {"type": []}}}}',
        '{"version": 1, "rules": {"*": {"weight": {"type": "NM"}}}}',
        '{"version": 1, "rules": {"*": {"weight": {"type": "Quant", "bits": 99}}}}',
        '{"version": 1, "rules": {"*": {"weight": {"type": "Quant", "depth": 3}}}}',
        '{"version": 1, "rules": {"*": {"sparsity": {"type": "Unstructured", "sparsity": NaN}}}}',
    ],
)
def test_bad_json_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"^(Plan|Layer|Quant|Unstructured): "):
        Plan.from_json(text)


def test_specs_are_frozen_and_hold_no_reference_to_the_users_mapping():
    rules = {"*": Layer(weight=Quant())}
    plan = Plan(rules)
    rules["fc"] = None
    assert list(plan.rules) == ["*"]
    for spec in (Quant(), NM(), Unstructured(), Layer(), plan):
        name = dataclasses.fields(spec)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(spec, name, None)


NAMES = ["stem", "block.0.conv1", "block.0.conv2", "block.1.conv1", "fc"]
A, B = Layer(weight=Quant()), Layer(weight=Quant(bits=4))


@pytest.mark.parametrize(
    ("rules", "wanted"),
    [
        ({"*": A}, dict.fromkeys(NAMES, A)),
        ({"*": A, "fc": None}, dict.fromkeys(NAMES[:-1], A)),
        ({"fc": None, "*": A}, dict.fromkeys(NAMES, A)),
        ({"fc": None}, {}),
        ({"*": A, "block.?.conv1": B}, {**dict.fromkeys(NAMES, A), NAMES[1]: B, NAMES[3]: B}),
        ({"block.0.*": A}, {NAMES[1]: A, NAMES[2]: A}),
        ({"block.[1-9].*": B}, {NAMES[3]: B}),
        ({"*": None, "*.conv2": A}, {NAMES[2]: A}),
    ],
)
def test_the_last_match_wins(rules, wanted):
    got = Plan(rules).match(NAMES)
    assert got == wanted
    assert list(got) == [name for name in NAMES if name in wanted]


@pytest.mark.parametrize("pattern", ["head", "FC", "block", "fc.*", ""])
def test_a_pattern_without_a_layer_is_an_error(pattern):
    text = re.escape(f"pattern {pattern!r} matches no layer; the layers are stem, ")
    with pytest.raises(ValueError, match=text):
        Plan({"*": A, pattern: None}).match(NAMES)


def test_json_of_a_plan_without_dtype_is_as_it_always_was():
    text = Plan({"*": Layer(sparsity=NM(2, 4))}).to_json()
    assert json.loads(text)["rules"]["*"] == {"sparsity": {"type": "NM", "n": 2, "m": 4}}


def test_what_came_later_is_said_only_where_it_differs():
    text = Plan({"*": Layer(sparsity=Unstructured(0.5))}).to_json()
    wanted = {"type": "Unstructured", "sparsity": 0.5, "scope": "global"}
    assert json.loads(text)["rules"]["*"]["sparsity"] == wanted
    assert repr(NM(2, 4)) == "NM(n=2, m=4)"
    assert repr(NM(2, 4, refined=2e-4)) == "NM(n=2, m=4, refined=0.0002)"
    assert repr(Unstructured(criterion="snip")).endswith("scope='global', criterion='snip')")


def test_sparsity_of_nm():
    assert NM(2, 4).sparsity == 0.5 and NM(1, 4).sparsity == 0.75
