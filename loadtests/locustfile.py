"""Load for Locust: `locust -f loadtests/locustfile.py --host URL`.

Without more, users by the hint they send, as many as --users says (closed loop). With --arrivals,
requests at given times instead (open loop, see `open_loop.py`), shared among all workers. Options
are those of `settings.py`, the lines in Locust's tables those of `tally.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, ClassVar

from gevent import sleep
from locust import User, between, events, task
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner

# Locust runs this file by its path, from wherever its user stands.
sys.path.append(str(Path(__file__).parents[1]))

from loadtests.driver import Load, Master, prepare
from loadtests.errors import BadOption, LoadTestError
from loadtests.settings import OPTIONS, Settings, variable
from loadtests.shapes import Shape
from loadtests.workload import HintClass


class EmbeddingUser(User):
    """A client that embeds one text after another over a connection of its own."""

    abstract = True
    wait_time = between(0.01, 0.1)
    hint: ClassVar[str]  # the name of its class in the mix
    load: ClassVar[Load]

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self.send = self.load.closed_loop(self.hint)

    @task
    def embed(self) -> None:
        """One request."""
        self.send()


class TightBudget(EmbeddingUser):
    """A search box that waits for its vector."""

    hint = "tight"


class Interactive(EmbeddingUser):
    """A page that loads."""

    hint = "interactive"


class Relaxed(EmbeddingUser):
    """A job that can wait a second."""

    hint = "relaxed"


class BestQuality(EmbeddingUser):
    """Evaluation runs."""

    hint = "best"


class Unhinted(EmbeddingUser):
    """A client that knows nothing of hints."""

    hint = "unhinted"


class Indexing(EmbeddingUser):
    """Documents in bulk, 32 at a time, by one variant."""

    hint = "bulk"


class Scheduled(User):
    """Stands for the arrivals of an open loop: Locust wants a user to run, and this one does nothing."""

    abstract = True

    @task
    def wait(self) -> None:
        """Leave the sending to the dispatcher."""
        sleep(1.0)


USERS: dict[str, type[EmbeddingUser]] = {
    user.hint: user for user in (TightBudget, Interactive, Relaxed, BestQuality, Unhinted, Indexing)
}


def _user_of(hint_class: HintClass) -> type[EmbeddingUser]:
    """The users of a class; of a budget such as 50ms, users made for it."""
    user = USERS.get(hint_class.name)
    if user is None:
        user = type(f"Budget{hint_class.name}", (EmbeddingUser,), {"hint": hint_class.name})
    user.weight = hint_class.weight
    return user


def _arrange(environment: Environment, settings: Settings) -> None:
    """Give Locust the users that the settings ask for."""
    picked = environment.parsed_options.user_classes if environment.parsed_options else []
    if settings.arrivals is not None:
        if picked:
            raise BadOption("--arrivals", " ".join(picked), "choose classes by --mix, not by name")
        environment.user_classes[:] = [Scheduled]
        return
    chosen = {name for name, user in USERS.items() if user in environment.user_classes}
    classes = [c for c in settings.workload.classes if c.name in chosen or not picked]
    if not classes:
        raise BadOption("--mix", "", "it gives no weight to the classes of users that were named")
    environment.user_classes[:] = [_user_of(hint_class) for hint_class in classes]


def _options(parser: Any, **_: object) -> None:
    # Those of a group are left out of the web page's form: they hold from start to end.
    group = parser.add_argument_group("Load", "what this load adds to Locust's own options")
    for name, text in OPTIONS.items():
        group.add_argument(f"--{name}", env_var=variable(name), help=text, metavar="…")


def _init(environment: Any, **_: object) -> None:
    runner, options = environment.runner, environment.parsed_options
    load = Load(environment, arrange=_arrange)
    EmbeddingUser.load = load
    events.test_start.add_listener(load.start)
    events.test_stop.add_listener(load.stop)
    if isinstance(runner, WorkerRunner):
        runner.register_message("arrivals_begin", load.begin)
        return  # its settings come from the master
    try:
        settings = prepare(environment)
        _arrange(environment, settings)
    except LoadTestError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    if settings.shape is not None:
        environment.shape_class = Shape(
            settings.shape, users=options.num_users, duration_s=options.run_time
        )
    if isinstance(runner, MasterRunner):
        Master(environment, settings).listen()


events.init_command_line_parser.add_listener(_options)
events.init.add_listener(_init)
