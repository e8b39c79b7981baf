"""The command line of `python -m converters`."""

from __future__ import annotations

import argparse
from pathlib import Path


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from converters.checkpoint import DEFAULT_CHECKPOINT

    top = argparse.ArgumentParser(prog="converters", description="Build and check model variants.")
    commands = top.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="convert a checkpoint and measure each variant")
    build.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        help="model package, local Hugging Face folder, or hub id (default: %(default)s)",
    )
    build.add_argument(
        "--variants", help="comma-separated names, or all (default: those worth a first look)"
    )
    build.add_argument(
        "--missing",
        action="store_true",
        help="build only what the folder lacks, measure again what was measured elsewhere",
    )
    build.add_argument(
        "--mixed", action="store_true", help="build torch-fp16-mixed too: FP32 weights, autocast"
    )
    build.add_argument(
        "--recover",
        action="store_true",
        help="let static INT8 learn from its FP32 self for a while",
    )
    build.add_argument(
        "--recover-minutes", type=float, default=3.0, help="how long (default: %(default)s)"
    )
    adopt = commands.add_parser("import", help="make an existing ONNX file a variant")
    adopt.add_argument("file", type=Path, help="the .onnx file, as model hubs ship them")
    adopt.add_argument("--checkpoint", required=True, help="what it was made from, as for build")
    adopt.add_argument("--variant-name", help="default: onnx-imported-<precision>")
    for command in (build, adopt):
        command.add_argument(
            "--pooling", help="of a checkpoint without modules.json: mean, cls, lasttoken, max, …"
        )
        command.add_argument(
            "--trust-remote-code",
            action="store_true",
            help="run Python code that the checkpoint brings",
        )
        command.add_argument("--name", help="model name for clients (default: the checkpoint's)")
        command.add_argument(
            "--threads", type=int, default=1, help="threads of a replica (default: %(default)s)"
        )
    measure = commands.add_parser(
        "measure", help="measure the times of what is built again, on this machine"
    )
    check = commands.add_parser("verify", help="check every artifact against its manifest")
    show = commands.add_parser("list", help="print the table of built variants")
    report = commands.add_parser("report", help="write a page with figures about what was built")
    report.add_argument("--to", type=Path, default=Path("report"), help="folder of the page")
    for command in (build, adopt, report):
        command.add_argument(
            "--corpus", type=Path, help="your own texts, one a line, or .jsonl with text"
        )
        command.add_argument(
            "--sts", type=Path, help="score similarity: lines of genre, score, a, b"
        )
        command.add_argument("--beir", type=Path, help="score retrieval: a folder in BEIR's layout")
    report.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        help="what was built from (default: %(default)s)",
    )
    for command in (build, adopt, measure, check, show, report):
        command.add_argument("--out", type=Path, default=Path("artifacts"), help="artifacts folder")
    return top
