"""`d2ppo trials run` and `d2ppo trials results`."""

from __future__ import annotations

import json
import secrets
import signal
import threading
from collections.abc import Sequence
from pathlib import Path

from d2ppo_core.cli import HELP, Parser
from d2ppo_core.errors import UserError

from ..alone import require_alone
from . import results
from .desk import Desk
from .journal import NAME, Journal, read
from .options import Chosen, choose, resumed, usage
from .policies import Curtain, Policy, again, find
from .server import Page
from .session import Plan, Session
from .terminal import Terminal


def run(arguments: Sequence[str]) -> int:
    """`d2ppo trials run key=value ...`; 0: all trials are done, 130: it was left before."""
    if not arguments or any(argument in HELP for argument in arguments):
        print(usage())
        return 0
    chosen = choose(arguments)
    path = Path(chosen.run.run_dir) / NAME
    events, _ = read(path)
    if chosen.run.resume and events:
        chosen = resumed(arguments, events[0].get("options", {"run": {}, "system": []}))
        policies = again(events[0].get("policies", ()))
        plan = None
    elif events:
        raise UserError(f"{path} holds a session already; go on with resume=true, or choose another run_dir")
    else:
        policies = find(chosen.run.policies)
        plan = _plan(chosen, policies)
    return _operate(chosen, policies, plan, path)


def _plan(chosen: Chosen, policies: list[Policy]) -> Plan:
    from ..scenarios import parse

    first = int(getattr(parse(chosen.run.system, chosen.system), "first_seed", 0))
    starts = tuple(range(first, first + chosen.run.episodes))
    if starts[-1] >= 2**32:
        raise UserError(f"first_seed={first} and {chosen.run.episodes} episodes go beyond 2**32; choose a smaller one")
    seed = chosen.run.order_seed or secrets.randbits(62)
    return Plan(seed, starts, chosen.run.blind, tuple(policy.about for policy in policies), chosen.saved())


def _operate(chosen: Chosen, policies: list[Policy], plan: Plan | None, path: Path) -> int:
    """Everything is checked before anything is written or started."""
    from .rig import Rig, build

    system = build(chosen, policies, path.parent.absolute() / "records")
    new = not path.exists()
    journal = Journal(path)  # waits for the nodes of a program that was killed
    try:
        require_alone(system)
        page = Page(chosen.run.port) if chosen.run.page else None
    except UserError:
        journal.close()
        if new:
            path.unlink()
        raise
    interrupted = threading.Event()
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, lambda *_: interrupted.set())
    try:
        session = Session(journal, plan)
        curtain = Curtain([policy.about for policy in policies], session.hidden)
        rig = Rig(system, chosen, curtain, path.parent / "nodes.log", journal.lock,
                  page.reachable if page else lambda: True)  # fmt: skip
        desk = Desk(session, policies, rig, path.parent, curtain)
        _serve(desk, page, interrupted)
    finally:
        if page:
            page.close()
        journal.close()
    return _last_words(session, path.parent, told=not chosen.run.page)


def _serve(desk: Desk, page: Page | None, interrupted: threading.Event) -> None:
    """Until the person, or a signal, ends it."""
    try:
        desk.begin()
        if page is None:
            Terminal(desk).run(interrupted)
            return
        page.desk = desk
        print(f"the operator's page, for a browser on this machine:\n\n  {page.url}\n\nCtrl-C ends it; "
              "resume=true goes on then", flush=True)  # fmt: skip
        while not (interrupted.wait(0.1) or desk.finished.is_set()):
            pass
    finally:
        desk.close()


def _last_words(session: Session, folder: Path, told: bool) -> int:
    """What is left to say, and the exit code; `told`: the results were shown already."""
    if session.complete:
        print("" if told else results.table(results.of(session)), end="")
        print(folder / results.NAMES[0])
        return 0
    print(f"{session.done} of {session.total} trials are done; go on with: "
          f"d2ppo trials run run_dir={folder} resume=true", flush=True)  # fmt: skip
    return 130


def show_results(arguments: Sequence[str]) -> int:
    """`d2ppo trials results DIR [--reveal]`."""
    parser = Parser(
        prog="d2ppo trials results", description="What a session of `d2ppo trials run` has given so far. A blind one "
        "says it only when all trials are done, or after --reveal, which is written into its file.",
    )  # fmt: skip
    parser.add_argument("run_dir", type=Path, help="folder of the session")
    parser.add_argument("--reveal", action="store_true", help="say which policy is which; the rest is no longer blind")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    options = parser.parse_args(arguments)
    path = options.run_dir / NAME
    if not read(path)[0]:
        raise UserError(f"{options.run_dir} holds no session ({NAME} is missing or empty); give its run_dir")
    journal = Journal(path, patience=0.0)
    try:
        session = Session(journal)
        if options.reveal and session.hidden:
            session.reveal()
        if session.hidden:
            raise UserError(
                f"{session.done} of {session.total} trials are done, and the session is blind until the last one; go "
                f"on with `d2ppo trials run run_dir={options.run_dir} resume=true`, or end the blindness with --reveal"
            )
        found = results.write(session, options.run_dir)
        print(json.dumps(results.as_json(session, found), indent=2) if options.json else results.table(found), end="")
    finally:
        journal.close()
    return 0
