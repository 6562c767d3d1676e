"""Run a benchmark file and write benchmarks/results/<name>.{json,md}, stamped with the environment.

usage: run.py [ops | gemm | export | qat | roof | transformer | structured |
               networks [NAME ...] [smoke] |
               {cifar10 | cifar10_pruning | cifar10_distil} DATA.npz]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sparseq import bench
from sparseq.files import atomic_path

HERE = Path(__file__).parent


def table(results: list[dict]) -> str:
    """Medians in ms; how many times faster than each peer; share of the copy bandwidth."""
    lines = ["| work | sparseq ms | peer | peer ms | ratio | GB/s |", "|---|---|---|---|---|---|"]
    for result in results:
        info = result["extra_info"]
        ours = info["median_s"]
        rate = f"{info['moved'] / ours / 1e9:.1f}" if info["moved"] else ""
        name = result["name"].removeprefix("test_row[").removesuffix("]")
        peers = info["peers"] or {"": None}
        for number, (peer, theirs) in enumerate(peers.items()):
            first = number == 0
            lines.append(
                f"| {name if first else ''} | {f'{ours * 1e3:.2f}' if first else ''} | {peer} | "
                f"{'' if theirs is None else f'{theirs * 1e3:.2f}'} | "
                f"{'' if theirs is None else f'{theirs / ours:.2f}x'} | {rate if first else ''} |"
            )
    return "\n".join(lines)


def main() -> None:
    name = sys.argv[1] if len(sys.argv) > 1 else "ops"
    if name == "roof":
        import roof

        return roof.main()
    if name == "qat":
        import qat

        return qat.main(sys.argv[2:])
    if name == "networks":
        if os.environ.pop("OMP_WAIT_POLICY", None):  # see below; read when torch was imported
            os.execv(sys.executable, [sys.executable, __file__, *sys.argv[1:]])
        import networks

        return networks.main(sys.argv[2:])
    if name == "cifar10":
        import cifar10

        return cifar10.main(sys.argv[2:])
    if name == "structured":
        import structured

        return structured.main(sys.argv[2:])
    if name == "cifar10_distil":
        import cifar10_distil

        return cifar10_distil.main(sys.argv[2:])
    if name == "transformer":
        import transformer

        return transformer.main()
    if name == "cifar10_pruning":
        import cifar10_pruning

        return cifar10_pruning.main(sys.argv[2:])
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        command = [sys.executable, "-m", "pytest", "-q", str(HERE / f"{name}.py")]
        environment = {**os.environ, "PYTHONPATH": str(HERE)}
        # contenders wake each other's threads within one process: waiting that sleeps at once
        # would charge each call with a wake-up, which a loop of one engine's calls does not pay
        environment.pop("OMP_WAIT_POLICY", None)
        subprocess.run([*command, f"--benchmark-json={file.name}"], check=True, env=environment)
        results = json.load(open(file.name))["benchmarks"]
    stamp = bench.environment()
    kept = [
        {
            "work": r["name"].removeprefix("test_row[").removesuffix("]"),
            "rounds": r["stats"]["rounds"],
            **r["extra_info"],
        }
        for r in results
    ]
    with atomic_path(HERE / "results" / f"{name}.json") as path:
        path.write_text(json.dumps({"environment": stamp, "results": kept}, indent=1) + "\n")
    about = "\n".join(f"- {key}: {value}" for key, value in stamp.items())
    intro = "Medians, ours and peers alternating; `make bench`."
    text = f"# {name}\n\n{intro}\n\n{table(results)}\n\n{about}\n"
    with atomic_path(HERE / "results" / f"{name}.md") as path:
        path.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
