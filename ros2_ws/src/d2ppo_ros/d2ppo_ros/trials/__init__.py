"""Trials judged by a person: the protocol as pure logic, and the desk, page and terminal from which it is run."""
