"""The commands, one file per noun. A command asks the daemon through the client and renders the reply.

They import client, render and wire when they run, not when they are read: ``kbctl --version`` and
``--help`` then load neither HTTP nor tables.
"""
