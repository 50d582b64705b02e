"""Which kbctl this is: one number for the command and its daemon."""

__version__ = "0.1.0"
