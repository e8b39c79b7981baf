"""`python -m converters build | import | measure | verify | list | report`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from converters.arguments import parser
from converters.workplace import EXIT_INTERRUPTED, INTERRUPTED, is_complete, models_in
from serve_app.errors import ConversionError, SetupError
from serve_app.manifest import MANIFEST_NAME, Manifest, verify
from serve_app.registry import standings

if TYPE_CHECKING:
    from converters.build import Outcome
    from converters.checkpoint import Checkpoint
    from converters.finish import Texts
    from converters.progress import Progress
    from converters.recipes import Recipe

TABLE_WIDTH = 180


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
    from converters.recipes import DEFAULT_VARIANTS, MIXED, RECIPES, RECOVERED, choose
    from converters.remeasure import remeasure_foreign

    progress = Progress()
    names = [] if args.variants in (None, "all") else args.variants.split(",")
    if args.variants is None:
        variants, skipped = choose([], otherwise=DEFAULT_VARIANTS)
    else:
        variants, skipped = choose(names)
    if args.mixed and MIXED not in variants:
        variants.append(MIXED)
    if args.recover:
        _require_recoverable(args, variants)
    if args.missing:
        measured = remeasure_foreign(
            args.out,
            prepare=lambda: _load_libraries(progress),
            step=progress.step,
            say=progress.line,
        )
        if is_complete(args.out, variants) or _is_of_another_model(args, progress):
            if measured:
                _list(args)
            return
    for variant, reason in skipped.items():
        progress.line(f"{variant}: skipped, {reason}")
    asked = {*names, *([MIXED] if args.mixed else []), *(RECOVERED if args.recover else [])}
    recipes = {variant: RECIPES[variant] for variant in variants}
    _convert(args, recipes, progress, asked=asked.intersection(variants))


def _is_of_another_model(args: argparse.Namespace, progress: Progress) -> bool:
    """Whether the folder was built from a checkpoint of one's own, and no other was named now."""
    from converters.checkpoint import DEFAULT_CHECKPOINT, PACKAGES

    there = models_in(args.out)
    if not there or args.checkpoint != DEFAULT_CHECKPOINT or PACKAGES[args.checkpoint][0] in there:
        return False
    progress.line(
        f"{args.out} holds {', '.join(sorted(there))}: nothing is built beside it without --checkpoint"
    )
    return True


def _require_recoverable(args: argparse.Namespace, variants: Sequence[str]) -> None:
    from converters.recipes import RECOVERED

    if args.recover_minutes <= 0:
        raise ConversionError(f"--recover-minutes must be above 0, got {args.recover_minutes}")
    if not set(RECOVERED).intersection(variants):
        raise ConversionError(f"--recover changes {' and '.join(RECOVERED)}: build one of them")


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

    recipes = adoption(args.file, variant=args.variant_name)
    _convert(args, recipes, Progress(), asked=set(recipes))


def _convert(
    args: argparse.Namespace,
    recipes: Mapping[str, Recipe],
    progress: Progress,
    *,
    asked: Collection[str],
) -> None:
    """Build, print the table, and fail for what was asked for by name, or if there is nothing."""
    _load_libraries(progress)
    from converters.build import Options, build
    from converters.checkpoint import open_checkpoint

    with progress.step(f"open checkpoint {args.checkpoint}"):
        checkpoint = open_checkpoint(
            args.checkpoint,
            name=args.name,
            pooling=args.pooling,
            trust_remote_code=args.trust_remote_code,
        )
    outcome = build(
        checkpoint,
        recipes,
        texts=_texts(checkpoint, args),
        out=args.out,
        options=Options(
            threads=args.threads,
            recover_minutes=args.recover_minutes if getattr(args, "recover", False) else None,
            missing=getattr(args, "missing", False),
        ),
        progress=progress,
    )
    for line in _news(outcome, asked):
        progress.line(line)
    failed = "; ".join(f"{v}: {reason}" for v, reason in outcome.failed.items() if v in asked)
    if any(args.out.glob(f"*/{MANIFEST_NAME}")):
        _list(args)
    else:
        failed = failed or "nothing could be built"
    if failed:
        raise ConversionError(failed)


def _news(outcome: Outcome, asked: Collection[str]) -> Iterator[str]:
    """A line for each variant that recovered, misses a gate, or could not be built and is no error."""
    for manifest in outcome.built.values():
        if done := manifest.recovered:
            change = f"fidelity {done.p1_before:.5f} to {done.p1_after:.5f}"
            yield f"{manifest.variant}: {done.minutes:g} minutes of recovery, {change}"
        if manifest.off_ladder is not None:
            yield f"{manifest.variant}: built, off the ladder: {manifest.off_ladder}"
    for variant, reason in outcome.failed.items():
        if variant not in asked:
            yield f"{variant}: not built: {reason}"


def _load_libraries(progress: Progress) -> None:
    # Before transformers loads: progress bars of libraries would tear ours.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with progress.step("load PyTorch and transformers"):
        import torch
        import transformers
    torch.set_num_threads(1)  # two threads on two busy cores wait for each other: 9 times slower
    transformers.utils.logging.disable_progress_bar()


def _texts(checkpoint: Checkpoint, args: argparse.Namespace) -> Texts:
    from converters.corpus import calibration_texts, probe_texts, read_corpus
    from converters.fidelity import tokenize
    from converters.finish import Texts
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
    from converters.latency import gpu_count
    from converters.table import variants_table

    ladder = standings(args.out, gpus=gpu_count())
    Console(width=TABLE_WIDTH).print(variants_table(_manifests(args.out), ladder))
    if ladder.caveat:
        print(f"warning: {ladder.caveat}", file=sys.stderr)


def _manifests(out: Path) -> list[Manifest]:
    return [verify(file.parent) for file in sorted(out.glob(f"*/{MANIFEST_NAME}"))]


if __name__ == "__main__":
    main()
