"""The job folder: its records, states, paths, writes, locks, manifests, queue and runner.

Modules in this folder import the standard library, filelock and one another, nothing else; the server,
the agent, the push and the command line stand on them (docs/format.md is their specification).
"""

__version__ = "1.0.0.dev1"
