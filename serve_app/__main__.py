"""`python -m serve_app`: a server on this machine, from nothing to ready, until Ctrl-C.

`python -m serve_app env` prints the environment that Ray must be started with elsewhere; `compile` has the routing
brain compiled, and `interpret` undoes that.
"""

from __future__ import annotations

import argparse
import shlex
import socket
import sys

from serve_app.compiled import compile_policy, interpret_policy, require_current
from serve_app.environment import apply_local_environment, cluster_environment, find_haproxy
from serve_app.errors import SettingsError, SetupError
from serve_app.keys import Keys
from serve_app.ports import family_of
from serve_app.registry import load_ladder
from serve_app.settings import Settings, parse_settings

LOOPBACK = "127.0.0.1"
ANY_GPUS = 1.0  # before Ray starts nobody knows; the app builder asks the cluster


def parser() -> argparse.ArgumentParser:
    """The command line; every setting is a flag."""
    top = argparse.ArgumentParser(
        prog="serve_app",
        description="Serve embeddings; each request gets the best variant that meets its budget.",
    )
    top.add_argument("command", nargs="?", choices=("run", *COMMANDS), default="run")
    top.add_argument("--host", default=LOOPBACK, help="address to listen on (default: %(default)s)")
    top.add_argument("--port", type=int, default=8000, help="port (default: %(default)s)")
    top.add_argument("--num-cpus", type=int, help="CPUs that Ray may use (default: all)")
    top.add_argument(
        "--dashboard", action="store_true", help="start Ray's dashboard, for `serve status`"
    )
    top.add_argument(
        "--proxy",
        action="store_true",
        help="HTTP through Serve's HAProxy, as on a cluster, not straight to the router; more than one "
        "router needs it",
    )
    for name, field in Settings.model_fields.items():
        top.add_argument(
            f"--{name.replace('_', '-')}", help=f"{field.description} (default: {field.default})"
        )
    return top


def main() -> None:
    """Run one command; errors that a person can mend are one line and exit code 2."""
    args = parser().parse_args()
    try:
        if args.command in COMMANDS:
            COMMANDS[args.command]()
            return
        require_current()
        given = {n: v for n in Settings.model_fields if (v := getattr(args, n)) is not None}
        settings = parse_settings(given)
        _require_what_is_here(settings)
        ladder = load_ladder(settings.artifacts, named=settings.variants, gpus=ANY_GPUS)
        Keys.read(settings.api_keys_file)  # what is wrong with it is said before a cluster starts
        require_free_port(args.host, args.port)
        if ladder.caveat:
            say(f"warning: {ladder.caveat}")
        proxy = args.proxy or settings.routers > 1
        haproxy = find_haproxy() if proxy else None
        if proxy and haproxy is None:
            say("warning: no HAProxy here; Serve's own proxy is several times slower")
        apply_local_environment(
            haproxy=haproxy, localhost_only=args.host == LOOPBACK, dashboard=args.dashboard
        )
        from serve_app.app import run_locally  # reads the environment that is set only now

        run_locally(
            given,
            listen=(args.host, args.port),
            num_cpus=args.num_cpus,
            dashboard=args.dashboard,
            proxy=proxy,
            say=say,
        )
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def print_environment() -> None:
    """For a shell to `eval`."""
    for name, value in cluster_environment(haproxy=find_haproxy() is not None).items():
        print(f"export {name}={shlex.quote(value)}")


COMMANDS = {"env": print_environment, "compile": compile_policy, "interpret": interpret_policy}


def _require_what_is_here(settings: Settings) -> None:
    """A cluster of its own is this host: replicas that waited for nodes would wait for ever.

    Raises:
        SettingsError: a setting counts on nodes to come.
    """
    for name in ("cluster_cpus", "cluster_gpus"):
        if getattr(settings, name) is not None:
            raise SettingsError(
                f"setting {name}: {getattr(settings, name)} is for a cluster that nodes may join "
                "(serve deploy, serve run); this host is all there is here"
            )


def require_free_port(host: str, port: int) -> None:
    """Find out before a cluster is started.

    Raises:
        SettingsError: the address is taken or not ours.
    """
    with socket.socket(family_of(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise SettingsError(
                f"cannot listen on {host}:{port} ({error}); stop what runs there, or pass --port"
            ) from error


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
