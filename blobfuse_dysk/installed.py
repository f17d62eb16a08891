"""Where this program is installed, as far as more than one version of it may run on a machine side by side.

A node's Kubernetes driver unpacks its image as TREES/ID (kubernetes/host/tree.py): a whole installation with an
interpreter of its own, of which there are as many as versions are in use. Everything else is the machine's one
installation: the package's, or a clone's. Standard library only: the holder imports it.
"""

from __future__ import annotations

import os

__all__ = ["TREES", "interpreter_of", "own_tree", "tree_of"]

TREES = "/var/lib/dysk"
_PACKAGE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 -- pathlib would cost the holder 1 MiB


def own_tree() -> str | None:
    """The ID of the tree that this program runs from; None if it runs from none."""
    return tree_of(_PACKAGE)


def tree_of(path: str) -> str | None:
    """The ID of the tree that a path lies in; None for one that lies in none."""
    above, _, rest = os.path.normpath(path).partition(f"{TREES}/")
    tree, slash, _ = rest.partition("/")
    return tree if not above and slash and tree and not tree.startswith(".") else None


def interpreter_of(tree: str) -> str:
    """The one program of a tree that runs Python."""
    return f"{TREES}/{tree}/bin/python3"
