"""`python -m converters build | import | measure | verify | list | report`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from converters.workplace import EXIT_INTERRUPTED, INTERRUPTED
from serve_app.errors import ConversionError, SetupError
from serve_app.manifest import MANIFEST_NAME, Manifest, verify
from serve_app.registry import load_ladder

if TYPE_CHECKING:
    from converters.build import Texts
    from converters.checkpoint import Checkpoint
    from converters.progress import Progress
    from converters.recipes import Recipe

TABLE_WIDTH = 180


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


def main() -> None:
    """Run one command; errors that a person can mend are one line and exit code 2."""
    args = parser().parse_args()
    try:
        commands = {
            "build": _build,
            "import": _import,
            "measure": _measure,
            "verify": _verify,
            "list": _list,
            "report": _report,
        }
        commands[args.command](args)
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:  # before or after the work itself, see `workplace`
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def _build(args: argparse.Namespace) -> None:
    from converters.progress import Progress
    from converters.recipes import DEFAULT_VARIANTS, MIXED, RECIPES, choose
    from converters.remeasure import remeasure_foreign

    progress = Progress()
    if args.variants is None:
        variants, skipped = choose([], otherwise=DEFAULT_VARIANTS)
    else:
        variants, skipped = choose([] if args.variants == "all" else args.variants.split(","))
    if args.mixed and MIXED not in variants:
        variants.append(MIXED)
    if args.recover and args.recover_minutes <= 0:
        raise ConversionError(f"--recover-minutes must be above 0, got {args.recover_minutes}")
    if args.missing:
        measured = remeasure_foreign(
            args.out,
            prepare=lambda: _load_libraries(progress),
            step=progress.step,
            say=progress.line,
        )
        variants = [v for v in variants if not (args.out / v / MANIFEST_NAME).exists()]
        if not variants:
            if measured:
                _list(args)
            return
    for variant, reason in skipped.items():
        progress.line(f"{variant}: skipped, {reason}")
    _convert(args, {variant: RECIPES[variant] for variant in variants}, progress)


def _measure(args: argparse.Namespace) -> None:
    from converters.progress import Progress
    from converters.remeasure import artifacts, remeasure

    _manifests(args.out)  # before much is loaded: a broken artifact is one line
    progress = Progress()
    if artifacts(args.out):
        _load_libraries(progress)
        remeasure(args.out, artifacts, step=progress.step, say=progress.line)
    _list(args)


def _import(args: argparse.Namespace) -> None:
    from converters.adopt import adoption
    from converters.progress import Progress

    _convert(args, adoption(args.file, variant=args.variant_name), Progress())


def _convert(args: argparse.Namespace, recipes: Mapping[str, Recipe], progress: Progress) -> None:
    _load_libraries(progress)
    from converters.build import Options, build
    from converters.checkpoint import open_checkpoint

    recover_minutes = args.recover_minutes if getattr(args, "recover", False) else None
    with progress.step(f"open checkpoint {args.checkpoint}"):
        checkpoint = open_checkpoint(
            args.checkpoint,
            name=args.name,
            pooling=args.pooling,
            trust_remote_code=args.trust_remote_code,
        )
    build(
        checkpoint,
        recipes,
        texts=_texts(checkpoint, args),
        out=args.out,
        options=Options(threads=args.threads, recover_minutes=recover_minutes),
        step=progress.step,
    )
    _list(args)


def _load_libraries(progress: Progress) -> None:
    # Before transformers loads: progress bars of libraries would tear ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with progress.step("load PyTorch and transformers"):
        import torch
        import transformers
    torch.set_num_threads(1)  # two threads on two busy cores wait for each other: 9 times slower
    transformers.utils.logging.disable_progress_bar()


def _texts(checkpoint: Checkpoint, args: argparse.Namespace) -> Texts:
    from converters.build import Texts
    from converters.corpus import calibration_texts, probe_texts, read_corpus
    from converters.fidelity import tokenize
    from converters.tasks import Tasks
    from serve_app.engines.tokenization import Tokenizer

    if args.corpus is None:
        calibration, probe = calibration_texts(), probe_texts()
    else:
        own = read_corpus(args.corpus)
        calibration, probe = own[::2], own[1::2]
    tokenizer = Tokenizer(checkpoint.tokenizer_file, max_tokens=checkpoint.facts.max_tokens)
    return Texts(
        calibration=tokenize(checkpoint, calibration),
        probe=tokenize(checkpoint, probe),
        tasks=Tasks.read(tokenizer, sts=args.sts, beir=args.beir),
    )


def _report(args: argparse.Namespace) -> None:
    from converters.progress import Progress

    progress = Progress()
    _load_libraries(progress)

    from converters.checkpoint import open_checkpoint
    from converters.findings import Built
    from converters.report import report

    built = Built.read(args.out)
    checkpoint = open_checkpoint(args.checkpoint)
    texts = _texts(checkpoint, args)
    print(report(checkpoint, built, texts=texts, to=args.to, step=progress.step))


def _verify(args: argparse.Namespace) -> None:
    for manifest in _manifests(args.out):
        print(f"{manifest.variant}: {len(manifest.files)} files as promised")


def _list(args: argparse.Namespace) -> None:
    from converters.table import variants_table

    ladder = load_ladder(args.out)
    Console(width=TABLE_WIDTH).print(variants_table(_manifests(args.out), ladder))
    if ladder.caveat:
        print(f"warning: {ladder.caveat}", file=sys.stderr)


def _manifests(out: Path) -> list[Manifest]:
    return [verify(file.parent) for file in sorted(out.glob(f"*/{MANIFEST_NAME}"))]


if __name__ == "__main__":
    main()
