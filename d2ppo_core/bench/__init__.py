"""`d2ppo bench NAME`: every house registers what it can measure (entry-point group `d2ppo.benches`)."""

from __future__ import annotations

from ..cli import HELP, listing, registered
from ..errors import UserError, choose


def main(arguments: list[str]) -> int:
    """Run one of the installed benchmarks, or list them."""
    benches = registered("d2ppo.benches", "d2ppo bench")
    name, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if name in HELP:
        print(
            "d2ppo bench: measure this machine.\n\n"
            "usage: d2ppo bench NAME [options]        d2ppo bench NAME --help\n\n" + listing(benches)
        )
        return 0
    if name not in benches:
        said = f"there is no benchmark '{name}'" if name else "no benchmark is named"
        raise UserError(f"{said}{choose(name, benches)} (`d2ppo bench --help` says what each measures)")
    return benches[name].run(rest)
