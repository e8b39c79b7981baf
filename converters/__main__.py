"""`python -m converters build | verify | list`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from serve_app.errors import ConversionError, SetupError
from serve_app.manifest import MANIFEST_NAME, Manifest, verify
from serve_app.registry import load_ladder

if TYPE_CHECKING:
    from converters.build import Texts
    from converters.checkpoint import Checkpoint

TABLE_WIDTH = 160


def parser() -> argparse.ArgumentParser:
    """The command line."""
    from converters.checkpoint import DEFAULT_CHECKPOINT

    top = argparse.ArgumentParser(prog="converters", description="Build and check model variants.")
    commands = top.add_subparsers(dest="command", required=True)
    build = commands.add_parser("build", help="convert a checkpoint and measure each variant")
    build.add_argument(
        "--checkpoint",
        default=DEFAULT_CHECKPOINT,
        help="model package, local sentence-transformers folder, or hub id (default: %(default)s)",
    )
    build.add_argument("--name", help="model name for clients (default: from the checkpoint)")
    build.add_argument(
        "--variants", default="all", help="comma-separated names, or all (default: %(default)s)"
    )
    build.add_argument(
        "--corpus", type=Path, help="your own texts, one a line, or .jsonl with text"
    )
    build.add_argument(
        "--threads", type=int, default=1, help="threads of a replica (default: %(default)s)"
    )
    build.add_argument(
        "--missing", action="store_true", help="build only what the folder lacks; nothing if none"
    )
    build.add_argument(
        "--mixed", action="store_true", help="build torch-fp16-mixed too: FP32 weights, autocast"
    )
    build.add_argument(
        "--recover", action="store_true", help="let onnx-int8 learn from its FP32 self for a while"
    )
    build.add_argument(
        "--recover-minutes", type=float, default=3.0, help="how long (default: %(default)s)"
    )
    check = commands.add_parser("verify", help="check every artifact against its manifest")
    show = commands.add_parser("list", help="print the table of built variants")
    for command in (build, check, show):
        command.add_argument("--out", type=Path, default=Path("artifacts"), help="artifacts folder")
    return top


def main() -> None:
    """Run one command; errors that a person can mend are one line and exit code 2."""
    args = parser().parse_args()
    try:
        {"build": _build, "verify": _verify, "list": _list}[args.command](args)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; the artifacts that were there are unchanged", file=sys.stderr)
        sys.exit(130)


def _build(args: argparse.Namespace) -> None:
    # Before torch loads: progress bars of libraries would tear ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from converters.progress import Progress
    from converters.recipes import INT8, MIXED, choose

    progress = Progress()
    names = [] if args.variants == "all" else args.variants.split(",")
    variants, skipped = choose(names)
    if args.mixed and MIXED not in variants:
        variants.append(MIXED)
    if args.recover and (INT8 not in variants or args.recover_minutes <= 0):
        raise ConversionError(f"--recover needs {INT8} among the variants, and more than 0 minutes")
    if args.missing:
        variants = [v for v in variants if not (args.out / v / MANIFEST_NAME).exists()]
        if not variants:
            return
    for variant, reason in skipped.items():
        progress.line(f"{variant}: skipped, {reason}")
    with progress.step("load PyTorch and transformers"):
        import torch
        import transformers
    torch.set_num_threads(1)  # two threads on two busy cores wait for each other: 9 times slower
    transformers.utils.logging.disable_progress_bar()

    from converters.build import build
    from converters.checkpoint import open_checkpoint

    with progress.step(f"open checkpoint {args.checkpoint}"):
        checkpoint = open_checkpoint(args.checkpoint, name=args.name)
    build(
        checkpoint,
        variants,
        texts=_texts(checkpoint, args.corpus),
        out=args.out,
        threads=args.threads,
        step=progress.step,
        recover_minutes=args.recover_minutes if args.recover else None,
    )
    _list(args)


def _texts(checkpoint: Checkpoint, corpus: Path | None) -> Texts:
    from converters.build import Texts
    from converters.corpus import calibration_texts, probe_texts, read_corpus
    from converters.fidelity import tokenize

    if corpus is None:
        calibration, probe = calibration_texts(), probe_texts()
    else:
        own = read_corpus(corpus)
        calibration, probe = own[::2], own[1::2]
    return Texts(calibration=tokenize(checkpoint, calibration), probe=tokenize(checkpoint, probe))


def _verify(args: argparse.Namespace) -> None:
    for manifest in _manifests(args.out):
        print(f"{manifest.variant}: {len(manifest.files)} files as promised")


def _list(args: argparse.Namespace) -> None:
    from converters.table import variants_table

    ladder = load_ladder(args.out)
    Console(width=TABLE_WIDTH).print(variants_table(_manifests(args.out), ladder))


def _manifests(out: Path) -> list[Manifest]:
    return [verify(file.parent) for file in sorted(out.glob(f"*/{MANIFEST_NAME}"))]


if __name__ == "__main__":
    main()
