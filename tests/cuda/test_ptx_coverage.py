"""Line coverage of kernels."""

from __future__ import annotations

from ptx.coverage import Coverage
from snippets import kernel, run

BODY = """
setp.eq.u64 %p1, %at0, 0;
@%p1 bra $zero;
mov.u32 %r1, 1;
add.u32 %r1, %r1, 1;
bra $end;
$zero:
mov.u32 %r2, 2;
$end:
mov.u32 %r3, 3;
"""


def test_blocks_that_never_ran_are_named() -> None:
    module = kernel(BODY)
    coverage = Coverage(module)
    assert len(coverage.report({})) == 4  # nothing has run: every block
    coverage.add(run(module, 0))
    (line,) = coverage.report({})
    assert line.startswith("k: 3 instructions not run from `mov.u32 %r1, 1` (PTX line ")
    coverage.add(run(module, 5))
    assert coverage.report({}) == []


def test_exemptions_name_a_block_and_must_apply() -> None:
    module = kernel(BODY)
    coverage = Coverage(module)
    coverage.add(run(module, 0))
    assert coverage.report({"k: .*add.u32": "a reason"}) == []
    lines = coverage.report({"k: .*add.u32": "a reason", "other": "none"})
    assert lines == ["exemption 'other' applies to nothing"]
